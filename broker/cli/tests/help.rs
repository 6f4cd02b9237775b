//! The command line's promises: every help text has an example, and errors say what to do.

use std::process::{Command, Output};

fn tidemill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(arguments)
        .env("HOME", std::env::temp_dir())
        .env_remove("TIDEMILL_ADDRESS")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

fn check(path: &mut Vec<String>, seen: &mut usize) {
    let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
    arguments.push("--help");
    let output = tidemill(&arguments);
    let help = text(&output.stdout);
    assert!(output.status.success(), "{path:?}: {}", text(&output.stderr));
    *seen += 1;
    let listed = subcommands(&help);
    assert!(help.contains("Example"), "{path:?} has no example:\n{help}");
    for name in listed {
        path.push(name);
        check(path, seen);
        path.pop();
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let mut seen = 0;
    check(&mut Vec::new(), &mut seen);
    assert!(seen > 30, "only {seen} help texts were found");
}

#[test]
fn an_error_says_what_to_do_and_its_exit_code_says_which_kind() {
    let nobody = tidemill(&["topic", "list", "--address", "127.0.0.1:9"]);
    assert_eq!(nobody.status.code(), Some(3), "{}", text(&nobody.stderr));
    assert!(text(&nobody.stderr).contains("tidemill dev"), "{}", text(&nobody.stderr));
    let open = tidemill(&["server", "--listen", "0.0.0.0:0", "--data-dir", "never-made"]);
    assert_eq!(open.status.code(), Some(2), "{}", text(&open.stderr));
    assert!(text(&open.stderr).contains("--insecure"), "{}", text(&open.stderr));
}

#[test]
fn completions_are_made_for_a_shell() {
    let script = tidemill(&["completions", "bash"]);
    assert!(text(&script.stdout).contains("_tidemill"));
}
