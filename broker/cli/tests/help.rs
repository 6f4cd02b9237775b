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

/// So many columns a terminal has at least, beside another window.
const COLUMNS_MAX: usize = 96;

fn check(path: &mut Vec<String>, seen: &mut usize, too_wide: &mut Vec<String>) {
    let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
    arguments.push("--help");
    let output = tidemill(&arguments);
    let help = text(&output.stdout);
    assert!(output.status.success(), "{path:?}: {}", text(&output.stderr));
    *seen += 1;
    let listed = subcommands(&help);
    assert!(help.contains("Example"), "{path:?} has no example:\n{help}");
    for line in help.lines().filter(|line| line.chars().count() > COLUMNS_MAX) {
        too_wide.push(format!("{path:?}: {line}"));
    }
    for name in listed {
        path.push(name);
        check(path, seen, too_wide);
        path.pop();
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let mut seen = 0;
    let mut too_wide = Vec::new();
    check(&mut Vec::new(), &mut seen, &mut too_wide);
    assert!(seen > 30, "only {seen} help texts were found");
    assert!(too_wide.is_empty(), "lines of more than {COLUMNS_MAX} columns:\n{}", too_wide.join("\n"));
}

#[test]
fn whoever_reads_as_a_group_is_told_that_it_divides_nothing() {
    for command in ["consume", "group"] {
        let help = text(&tidemill(&[command, "--help"]).stdout);
        assert!(help.contains("no members") && help.contains("--partition"), "{help}");
    }
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
    // What each shell's script begins a completion with, and how it names a command below another.
    for (shell, begins, knows) in [
        ("bash", "_tidemill()", "tidemill__subcmd__deployment"),
        ("zsh", "#compdef tidemill", "_tidemill__subcmd__deployment"),
        ("fish", "complete -c tidemill", "__fish_tidemill_using_subcommand deployment"),
    ] {
        let script = tidemill(&["completions", shell]);
        assert!(script.status.success(), "{shell}: {}", text(&script.stderr));
        let script = text(&script.stdout);
        assert!(script.contains(begins), "{shell}");
        for command in ["produce", "plugin", "resume"] {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
        assert!(script.contains(knows), "{shell} knows no commands below deployment");
    }
    let unknown = tidemill(&["completions", "nothing"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", text(&unknown.stderr));
}
