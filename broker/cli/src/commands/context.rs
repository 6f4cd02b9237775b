//! `tidemill context`: saved connections.

use clap::Subcommand;
use serde_json::json;

use crate::arguments::Connection;
use crate::connect::addresses_of;
use crate::contexts::{Contexts, SavedContext, file};
use crate::error::CliError;
use crate::output;

/// Saved connections
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  tidemill context save prod --address log1:9630,log2:9630 --ca prod-ca.pem
  tidemill context use prod
  tidemill --context prod topic list
  tidemill --context prod status --address log2:9630   another broker, by the same CA

An --address without --context leaves the current context aside, with its CA and certificate.")]
pub(crate) enum Context {
    /// Save the connection that the flags name
    #[command(after_help = "\
Examples:
  tidemill context save prod --address log1:9630 --ca prod-ca.pem
  tidemill context save near --address log1:9630,log2:9630 --ca prod-ca.pem --rack a")]
    Save {
        /// Its name.
        name: String,
        /// Where you are, as the brokers name their racks: `consume` reads from replicas there, where there are any.
        #[arg(long, value_name = "RACK")]
        rack: Option<String>,
    },
    /// Use this one where none is named
    #[command(after_help = "Example:\n  tidemill context use prod")]
    Use {
        /// Its name.
        name: String,
    },
    /// Show what is saved
    #[command(after_help = "Example:\n  tidemill context list")]
    List,
    /// Forget one
    #[command(after_help = "Example:\n  tidemill context delete prod")]
    Delete {
        /// Its name.
        name: String,
    },
}

pub(crate) fn run(context: Context, connection: &Connection) -> Result<(), CliError> {
    let mut contexts = Contexts::load()?;
    match context {
        Context::Save { name, rack } => {
            let addresses = connection
                .address
                .as_deref()
                .map(addresses_of)
                .transpose()?
                .ok_or_else(|| CliError::usage("say which broker: --address HOST:PORT"))?;
            // A relative path would mean something else from another directory.
            let absolute =
                |path: &Option<std::path::PathBuf>| path.as_ref().map(std::path::absolute).transpose();
            let saved = SavedContext {
                addresses,
                ca: absolute(&connection.ca)?,
                certificate: absolute(&connection.certificate)?,
                key: absolute(&connection.certificate_key)?,
                rack,
            };
            let (document, addresses) =
                (json!({ "saved": name, "context": saved }), saved.addresses.join(","));
            contexts.contexts.insert(name.clone(), saved);
            let is_current = *contexts.current.get_or_insert_with(|| name.clone()) == name;
            contexts.save()?;
            output::print(connection.json, &document, || {
                let used = if is_current { "; it is used where none is named" } else { "" };
                println!("saved context {name}: {addresses}{used}");
            })
        }
        Context::Use { name } => {
            known(&contexts, &name)?;
            contexts.current = Some(name.clone());
            contexts.save()?;
            let document = json!({ "current": name });
            output::print(connection.json, &document, || {
                println!("context {name} is used where none is named")
            })
        }
        Context::Delete { name } => {
            known(&contexts, &name)?;
            contexts.contexts.remove(&name);
            contexts.current = contexts.current.filter(|current| *current != name);
            contexts.save()?;
            let document = json!({ "deleted": name });
            output::print(connection.json, &document, || println!("deleted context {name}"))
        }
        Context::List => list(&contexts, connection.json),
    }
}

fn known(contexts: &Contexts, name: &str) -> Result<(), CliError> {
    if contexts.contexts.contains_key(name) {
        return Ok(());
    }
    Err(CliError::usage(format!("there is no context '{name}' in {}", file()?.display())))
}

fn list(contexts: &Contexts, json: bool) -> Result<(), CliError> {
    let document = json!({ "current": contexts.current, "contexts": contexts.contexts });
    output::print(json, &document, || {
        let rows: Vec<Vec<String>> = contexts
            .contexts
            .iter()
            .map(|(name, saved)| {
                let current = contexts.current.as_ref() == Some(name);
                vec![
                    if current { "*".to_owned() } else { String::new() },
                    name.clone(),
                    saved.addresses.join(","),
                    saved.ca.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
                    saved.rack.clone().unwrap_or_default(),
                ]
            })
            .collect();
        output::table(&["", "name", "addresses", "ca", "rack"], &rows, &[]);
    })
}
