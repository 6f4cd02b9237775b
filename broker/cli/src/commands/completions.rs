//! `tidemill completions`.

use clap::CommandFactory;

use crate::arguments::Arguments;
use crate::error::CliError;

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), CliError> {
    clap_complete::generate(shell, &mut Arguments::command(), "tidemill", &mut std::io::stdout());
    Ok(())
}
