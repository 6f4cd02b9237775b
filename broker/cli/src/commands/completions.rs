//! `tidemill completions`.

use clap::CommandFactory;

use crate::arguments::Arguments;
use crate::error::CliError;

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tidemill", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    Ok(())
}
