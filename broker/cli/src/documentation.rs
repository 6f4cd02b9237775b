//! Every command line that the documents show parses: those of README, of docs/, of the plugins' crate documentation, of what
//! `plugin new` writes, and of the help texts.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::arguments::Arguments;

/// A command line that a reader may type.
struct Shown {
    /// Where it stands.
    place: String,
    text: String,
    /// Mentioned within a sentence, where arguments may be left out or stand for others: `--partition N`.
    is_mentioned: bool,
}

#[test]
fn every_command_line_that_is_shown_parses() {
    let mut shown = Vec::new();
    for path in documents() {
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let text = if is_rust { crate_documentation(&text) } else { text };
        collect(&path.display().to_string(), &text, &mut shown);
    }
    helps(&Arguments::command(), &mut shown);
    let (mut commands, mut wrong) = (0, Vec::new());
    for Shown { place, text, is_mentioned } in &shown {
        for words in commands_of(text) {
            commands += 1;
            if let Err(error) = Arguments::of(&words)
                && !(is_fine(error.kind()) || *is_mentioned && is_placeholder(error.kind(), &words))
            {
                wrong.push(format!("{place}: {text}\n{error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} do not parse:\n\n{}", wrong.len(), wrong.join("\n"));
    assert!(commands > 150, "only {commands} command lines were found");
}

/// Help and versions are what was asked for.
const fn is_fine(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// `tidemill topic alter`, as a command is called, or an argument in capitals that stands for others.
fn is_placeholder(kind: ErrorKind, words: &[String]) -> bool {
    let is_capitals = |word: &String| word.chars().all(|character| character.is_ascii_uppercase());
    match kind {
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => words.iter().any(is_capitals),
        _ => false,
    }
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut documents = vec![root.join("README.md"), root.join("sdk/plugin-build/templates/readme.md")];
    let entries = |dir: &str| {
        let listed = std::fs::read_dir(root.join(dir)).expect(dir);
        listed.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    documents.extend(entries("docs").into_iter().chain(entries("docs/decisions")).filter(is_page));
    documents.extend(entries("plugins").into_iter().map(|plugin| plugin.join("src/lib.rs")));
    documents.sort();
    documents
}

fn crate_documentation(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

fn helps(command: &clap::Command, shown: &mut Vec<Shown>) {
    if let Some(help) = command.get_after_help() {
        let place = format!("the help of {}", command.get_name());
        for line in joined(&help.to_string()) {
            spans(&place, &line, shown);
            if line.starts_with("  ") {
                shown.push(Shown { place: place.clone(), text: line, is_mentioned: false });
            }
        }
    }
    for subcommand in command.get_subcommands() {
        helps(subcommand, shown);
    }
}

/// What stands in fenced blocks, and what stands between backticks elsewhere.
fn collect(place: &str, text: &str, shown: &mut Vec<Shown>) {
    let mut is_fenced = false;
    for line in joined(text) {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced {
            shown.push(Shown { place: place.to_owned(), text: line, is_mentioned: false });
        } else {
            spans(place, &line, shown);
        }
    }
}

fn spans(place: &str, line: &str, shown: &mut Vec<Shown>) {
    for span in line.split('`').skip(1).step_by(2) {
        shown.push(Shown { place: place.to_owned(), text: span.to_owned(), is_mentioned: true });
    }
}

/// Lines, where a backslash at the end of one takes the next along.
fn joined(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        let (part, more) = line.strip_suffix('\\').map_or((line, false), |part| (part.trim_end(), true));
        match lines.last_mut() {
            Some(last) if goes_on => *last = format!("{last} {}", part.trim_start()),
            _ => lines.push(part.to_owned()),
        }
        goes_on = more;
    }
    lines
}

/// The words of each `tidemill` in a line, as a shell splits them: enough of one for what is shown. A comment, or what
/// stands two spaces behind, explains the command.
fn commands_of(line: &str) -> Vec<Vec<String>> {
    // Prose leads up to it: "readable with: tidemill state get".
    let line = line.find(": tidemill ").map_or(line, |at| &line[at + 2..]).trim();
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut is_target = false;
    let mut characters = line.chars().chain([' ']).peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(character),
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ' | '|' | ';' | '&' | '<' | '>') => {
                // What is read from or written to is not the command's business.
                if let Some(word) = word.take()
                    && !std::mem::take(&mut is_target)
                    && let Some(command) = commands.last_mut()
                {
                    command.push(word);
                }
                match character {
                    ' ' if characters.peek() == Some(&' ') => break,
                    ' ' => {}
                    '<' | '>' => is_target = true,
                    _ => commands.push(Vec::new()),
                }
            }
            (None, _) => word.get_or_insert_default().push(character),
        }
    }
    commands.retain(|words| words.first().is_some_and(|first| first == "tidemill"));
    commands
}

#[test]
fn lines_are_split_as_a_shell_does() {
    let words =
        |line: &str| -> Vec<String> { commands_of(line).into_iter().map(|words| words.join("|")).collect() };
    assert_eq!(words("  tidemill topic list   shows the topics"), ["tidemill|topic|list"]);
    assert_eq!(words("echo a b | tidemill produce t # said"), ["tidemill|produce|t"]);
    assert_eq!(words("tidemill produce t --key a < in.txt"), ["tidemill|produce|t|--key|a"]);
    assert_eq!(words("tidemill produce t <<'END'"), ["tidemill|produce|t"]);
    assert_eq!(
        words(r#"tidemill x --set where='a == "b  c"' "d e""#),
        [r#"tidemill|x|--set|where=a == "b  c"|d e"#]
    );
    assert_eq!(words("tidemill a && tidemill b; tidemill c"), ["tidemill|a", "tidemill|b", "tidemill|c"]);
    assert_eq!(words("cargo install tidemill"), [""; 0]);
    assert_eq!(joined("a \\\n   b\nc"), ["a b", "c"]);
}
