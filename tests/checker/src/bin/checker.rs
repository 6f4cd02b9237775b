//! Checks the history in a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tidemill_checker::{Checker, check_file};

/// Checks a recorded history of clients, and prints what is wrong with it.
///
/// Outputs and states of tasks are checked where a model of them is known, in the program that recorded them.
/// Ends with 1 where something was found, and with 2 where the file is no history.
#[derive(Parser)]
struct Arguments {
    /// The history.
    file: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = match check_file(&arguments.file, Checker::new()) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("checker: {}: {error}", arguments.file.display());
            return ExitCode::from(2);
        }
    };
    if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("checker: the report can't be written: {error}");
                return ExitCode::from(2);
            }
        }
    } else {
        println!("{report}");
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
