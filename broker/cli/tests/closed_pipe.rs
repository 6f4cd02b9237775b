//! Nobody reads on: `tidemill ... | head -1` ends quietly.

use std::process::{Command, Output, Stdio};

/// Runs a command whose output nobody reads: the pipe is closed before it begins.
fn unread(home: &std::path::Path, arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(arguments)
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .stdout(writer)
        .output()
        .expect("the binary runs")
}

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let home = tempfile::tempdir().expect("a directory");
    let data_dir = home.path().join("data");
    std::fs::create_dir(&data_dir).expect("made");
    let data_dir = data_dir.to_str().expect("text");
    let save = ["context", "save", "here", "--address", "127.0.0.1:9630"];
    assert!(unread(home.path(), &save).status.success());
    for arguments in [
        &["context", "list"][..],
        &["context", "list", "--json"],
        &["completions", "bash"],
        &["server", "--print-config"],
        &["inspect", "wal", data_dir],
        &["inspect", "wal", data_dir, "--json"],
        &["topic", "--help"],
    ] {
        let output = unread(home.path(), arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {:?}: {errors}", output.status);
        assert_eq!(errors, "", "{arguments:?}");
    }
}

/// A full disk behind the output is another matter: it is an error, and no panic.
#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        println!("SKIPPED: this system has no /dev/full");
        return;
    };
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["server", "--print-config"])
        .stdout(full)
        .output()
        .expect("the binary runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the output can't be written") && !errors.contains("panicked"), "{errors}");
}
