//! `tidemill completions`.

use clap::CommandFactory;
use serde_json::json;

use crate::arguments::Arguments;
use crate::error::CliError;
use crate::output;

pub(crate) fn run(shell: clap_complete::Shell, json: bool) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tidemill", &mut script);
    let script = String::from_utf8_lossy(&script);
    let document = json!({ "shell": shell.to_string(), "script": script });
    output::print(json, &document, || print!("{script}"))
}
