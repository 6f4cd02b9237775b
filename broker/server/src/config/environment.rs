//! Settings in the environment: `TIDEMILL_WAL__BYTES_MAX` is `wal.bytes_max`.

use super::{BrokerConfig, ConfigError};
use crate::naming::nearest;

/// The settings among `TIDEMILL_*` variables, by their dotted names.
///
/// The command line and the tests have variables of that beginning too, and they are none of the broker's business. So a
/// variable that names no setting is an error where nothing else can be meant: two underscores stand only in settings' names,
/// and what is nearly a setting's name is a typing error.
pub(super) fn settings_in(
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let known = names();
    let mut settings = Vec::new();
    for (variable, value) in environment {
        let Some(name) = variable.strip_prefix("TIDEMILL_") else { continue };
        let name = name.to_lowercase().replace("__", ".");
        if known.contains(&name) {
            settings.push((name, value));
            continue;
        }
        match nearest(known.iter().map(String::as_str), &name) {
            Some(near) => return Err(ConfigError::Variable { variable, near: Some(variable_of(near)) }),
            None if name.contains('.') => return Err(ConfigError::Variable { variable, near: None }),
            None => tracing::debug!(variable, "is no setting of a broker"),
        }
    }
    Ok(settings)
}

fn variable_of(name: &str) -> String {
    format!("TIDEMILL_{}", name.to_uppercase().replace('.', "__"))
}

/// The dotted names of all settings.
fn names() -> Vec<String> {
    fn collect(prefix: &str, settings: &serde_json::Value, names: &mut Vec<String>) {
        for (key, value) in settings.as_object().into_iter().flatten() {
            if value.is_object() {
                collect(&format!("{prefix}{key}."), value, names);
            } else {
                names.push(format!("{prefix}{key}"));
            }
        }
    }
    let mut names = Vec::new();
    // Plain data: it always serialises, absent settings as null.
    let defaults = serde_json::to_value(BrokerConfig::default()).unwrap_or_default();
    collect("", &defaults, &mut names);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn in_environment(variables: &[(&str, &str)]) -> Result<BrokerConfig, ConfigError> {
        BrokerConfig::load_with(None, pairs(variables), &[])
    }

    #[test]
    fn every_setting_can_be_a_variable_or_a_flag() {
        let names = names();
        assert!(names.len() > 40 && names.contains(&"client_ca".to_owned()), "{names:?}");
        let defaults = serde_json::to_value(BrokerConfig::default()).expect("plain data");
        for name in &names {
            let value = defaults.pointer(&format!("/{}", name.replace('.', "/"))).expect(name);
            let texts = match value {
                serde_json::Value::String(text) => vec![text.clone()],
                serde_json::Value::Array(_) => vec!["one,two".to_owned(), "one:1,two:2".to_owned()],
                // Absent by default: a path, an address, a number or a word, whichever it takes.
                serde_json::Value::Null => {
                    ["file.pem", "127.0.0.1:1", "1", "replicated"].map(str::to_owned).to_vec()
                }
                other => vec![other.to_string()],
            };
            // A certificate needs its key, so both are there.
            let others = [("tls_certificate", "a.pem"), ("tls_key", "b.pem")];
            let by_flag = |text: &String| {
                let mut all = pairs(&others);
                all.push((name.clone(), text.clone()));
                BrokerConfig::load_with(None, [], &all)
            };
            let text = texts.iter().find(|text| by_flag(text).is_ok()).expect(name);
            let mut environment: Vec<(String, String)> =
                others.map(|(other, value)| (variable_of(other), value.to_owned())).to_vec();
            environment.retain(|(variable, _)| *variable != variable_of(name));
            environment.push((variable_of(name), text.clone()));
            let by_variable = BrokerConfig::load_with(None, environment, &[]).expect(name);
            assert_eq!(by_variable, by_flag(text).expect(name), "{name}");
        }
    }

    #[test]
    fn variables_of_tools_are_left_alone_and_typing_errors_are_not() {
        for tool in [
            "TIDEMILL_ADDRESS",
            "TIDEMILL_BENCH_DIR",
            "TIDEMILL_BIN",
            "TIDEMILL_CA",
            "TIDEMILL_CHAOS_SECONDS",
            "TIDEMILL_CHAOS_SEED",
            "TIDEMILL_COMPILER",
            "TIDEMILL_COMPONENTS",
            "TIDEMILL_CONFIG",
            "TIDEMILL_CONTEXT",
            "TIDEMILL_LOG",
            "TIDEMILL_MODEL_CASES",
            "TIDEMILL_PLUGIN_TOOLCHAIN",
            "TIDEMILL_TEST_COMPONENTS",
            "TIDEMILL_TEST_FULL",
            "TIDEMILL_TEST_LOG",
        ] {
            assert_eq!(in_environment(&[(tool, "x")]).expect(tool), BrokerConfig::default());
        }
        let refused = |variable| in_environment(&[(variable, "1")]).expect_err(variable).to_string();
        assert!(refused("TIDEMILL_SHRADS").contains("TIDEMILL_SHARDS"), "{}", refused("TIDEMILL_SHRADS"));
        assert!(refused("TIDEMILL_WAL__BYTE_MAX").contains("TIDEMILL_WAL__BYTES_MAX"));
        assert!(refused("TIDEMILL_WAL_BYTES_MAX").contains("TIDEMILL_WAL__BYTES_MAX"), "one underscore");
        assert!(refused("TIDEMILL_STORAGE__WHATEVER").contains("names no setting"));
    }
}
