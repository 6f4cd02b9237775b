//! Writes one component per world of the contract as it is now, for the tests that keep every published version running:
//!
//! `cargo run -p tidemill-hostile --example write_fixtures broker/wasm/tests/fixtures/contract-0.1.0`
//!
//! Run once, when a version is published. What a version's fixtures are never changes after that.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: write_fixtures DIRECTORY");
    let directory = PathBuf::from(env::args_os().nth(1).ok_or_else(usage)?);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("partitioner.wasm"), tidemill_hostile::by_key_length())?;
    fs::write(directory.join("filter.wasm"), tidemill_hostile::keep_even())?;
    fs::write(directory.join("consumer.wasm"), tidemill_hostile::relay())?;
    fs::write(directory.join("consumer-with-state.wasm"), tidemill_hostile::count_in_state())
}
