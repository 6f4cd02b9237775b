//! A crate's manifest without its workspace: what it inherits is written out.
//!
//! Reads the few forms that this repository's manifests use, line by line, and refuses others: a build script needs no TOML parser.

/// Writes out what `manifest` inherits from `workspace`; leaves out lints and development dependencies.
pub(crate) fn standalone(manifest: &str, workspace: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim();
        }
        if matches!(section, "[lints]" | "[dev-dependencies]") {
            continue;
        }
        let table = if section == "[package]" { "[workspace.package]" } else { "[workspace.dependencies]" };
        if let Some(name) = line.strip_suffix(".workspace = true") {
            out.push_str(&format!("{name} = {}", inherited(workspace, table, name)?));
        } else if let Some((name, extra)) = line.split_once(" = { workspace = true") {
            let extra = extra.strip_suffix('}').ok_or_else(|| format!("not one line: {line}"))?.trim_end();
            let value = inherited(workspace, table, name)?;
            match value.strip_suffix('}') {
                Some(open) => out.push_str(&format!("{name} = {}{extra} }}", open.trim_end())),
                None => out.push_str(&format!("{name} = {{ version = {value}{extra} }}")),
            }
        } else if line.contains("workspace = true") {
            return Err(format!("not a form that is understood: {line}"));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    Ok(out)
}

/// The value of a key in a table of the workspace's manifest.
fn inherited<'w>(workspace: &'w str, table: &str, name: &str) -> Result<&'w str, String> {
    workspace
        .lines()
        .skip_while(|line| line.trim() != table)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .find_map(|line| line.split_once(" = ").filter(|(key, _)| *key == name))
        .map(|(_, value)| value.trim())
        .ok_or_else(|| format!("the workspace has no {name} in {table}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = r#"
[workspace.package]
version = "0.1.0"

[workspace.dependencies]
serde = { version = "1", features = ["derive"] }
serde_json = "1"
"#;

    #[test]
    fn what_is_inherited_is_written_out() {
        let manifest = r#"[package]
name = "x"
version.workspace = true

[lints]
workspace = true

[dependencies]
serde = { workspace = true, optional = true }
serde_json = { workspace = true, optional = true }

[target.'cfg(target_arch = "wasm32")'.dependencies]
serde_json.workspace = true

[dev-dependencies]
proptest.workspace = true
"#;
        let expected = r#"[package]
name = "x"
version = "0.1.0"

[dependencies]
serde = { version = "1", features = ["derive"], optional = true }
serde_json = { version = "1", optional = true }

[target.'cfg(target_arch = "wasm32")'.dependencies]
serde_json = "1"

"#;
        assert_eq!(standalone(manifest, WORKSPACE).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(
            standalone("[dependencies]\nrand.workspace = true\n", WORKSPACE).unwrap_err().contains("rand")
        );
        assert!(standalone("[dependencies.rand]\nworkspace = true\n", WORKSPACE).is_err());
    }
}
