//! The command line's grammar.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::commands::{
    bench, cluster, consume, context, deploy, deployment, group, inspect, plugin, produce, server, state,
    topic,
};

/// Help texts are broken at so many columns, however wide the terminal is.
const HELP_COLUMNS_MAX: usize = 96;

/// A durable, programmable commit log.
#[derive(Debug, Parser)]
#[command(
    name = "tidemill",
    version,
    max_term_width = HELP_COLUMNS_MAX,
    after_help = "\
Examples:
  tidemill dev                                    start a broker here
  tidemill topic create plays --partitions 3      make a topic
  echo hello | tidemill produce plays             write a record
  tidemill consume plays --from earliest --max 1  read it back

Exit codes: 0 done, 1 failed, 2 wrong arguments or input, 3 no connection, 4 not there, 5 a
check failed, 6 two runs of a plugin differ."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// The words of a command line, the program's name first.
    ///
    /// # Errors
    /// They do not stand, or ask for help: clap says so.
    pub(crate) fn of<W: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Self, clap::Error> {
        let mut words: Vec<OsString> = words.into_iter().map(Into::into).collect();
        if asks_for_help_of_help(&words) {
            words.pop();
        }
        let arguments = Self::try_parse_from(words)?;
        let checked = match &arguments.command {
            Command::Produce(produce) => produce.format.check(),
            Command::Plugin(plugin) => plugin.check(),
            _ => Ok(()),
        };
        checked.map_err(|reason| Self::command().error(ErrorKind::ArgumentConflict, reason))?;
        Ok(arguments)
    }
}

/// `tidemill cluster help --help`: clap takes the flag for a command's name. Below a command without commands, `help` is an argument.
fn asks_for_help_of_help(words: &[OsString]) -> bool {
    let [_, commands @ .., help, flag] = words else { return false };
    let is_asked = help == "help" && (flag == "--help" || flag == "-h");
    let grammar = Arguments::command();
    let command = commands.iter().try_fold(&grammar, |command, name| command.find_subcommand(name));
    is_asked && command.is_some_and(clap::Command::has_subcommands)
}

/// How to reach a broker; every command takes these.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct Connection {
    /// A broker's address, port 9630 where none is named; several with commas.
    #[arg(long, global = true, env = "TIDEMILL_ADDRESS", value_name = "HOST[:PORT]")]
    pub(crate) address: Option<String>,
    /// PEM file of the authority that signed the broker's certificate.
    #[arg(long, global = true, env = "TIDEMILL_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// PEM file of your own certificate, where the broker asks for one.
    #[arg(long, global = true, requires = "certificate_key", value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[arg(long, global = true, requires = "certificate", value_name = "FILE")]
    pub(crate) certificate_key: Option<PathBuf>,
    /// A saved connection; see `tidemill context`.
    #[arg(long, global = true, env = "TIDEMILL_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// How long to wait for a broker that does not answer; unless said 5s for a connection, 30s
    /// for a request, 60s for records (10min at most for produce), and for ever with
    /// `consume --follow`.
    #[arg(long, global = true, value_name = "TIME", value_parser = crate::text::duration)]
    pub(crate) timeout: Option<std::time::Duration>,
    /// Print JSON: one document, or one per line where there is no end.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a single broker with defaults, for development
    Dev(server::Dev),
    /// Start a broker
    Server(server::Server),
    /// Form, watch, grow and shrink a cluster of brokers
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Save and choose connections
    #[command(subcommand)]
    Context(context::Context),
    /// Create, list, describe and delete topics
    #[command(subcommand)]
    Topic(topic::Topic),
    /// Write records from standard input or a file
    Produce(produce::Produce),
    /// Read records
    Consume(consume::Consume),
    /// Committed positions of consumer groups
    #[command(subcommand)]
    Group(group::Group),
    /// Make, build, test and upload plugins
    #[command(
        subcommand,
        after_help = "\
Examples:
  tidemill plugin new only-phones --kind filter
  tidemill plugin build only-phones
  tidemill plugin upload only-phones/target/plugins/components/only-phones.wasm"
    )]
    Plugin(plugin::Plugin),
    /// Bind a plugin to a place
    #[command(subcommand)]
    Deploy(deploy::Deploy),
    /// What is deployed: list, describe, pause, resume, logs, delete
    #[command(subcommand)]
    Deployment(deployment::Deployment),
    /// Keyed state of hosted consumers
    #[command(subcommand)]
    State(state::State),
    /// How the broker and its shards are doing
    #[command(after_help = "Examples:\n  tidemill status\n  tidemill status --address log1:9630 --json")]
    Status,
    /// What the broker counts and measures
    #[command(after_help = "\
Examples:
  tidemill metrics                                 as Prometheus reads it
  tidemill metrics --json

Scrapers get the same over HTTP where the broker has metrics.listen.")]
    Metrics,
    /// Measure a broker with made-up records
    Bench(bench::Bench),
    /// Look into files of a stopped broker
    #[command(subcommand)]
    Inspect(inspect::Inspect),
    /// Print a shell's completion script
    #[command(after_help = "\
Examples:
  mkdir -p ~/.local/share/bash-completion/completions
  tidemill completions bash > ~/.local/share/bash-completion/completions/tidemill

  mkdir -p ~/.zfunc
  tidemill completions zsh > ~/.zfunc/_tidemill

zsh looks there where ~/.zshrc says fpath+=~/.zfunc before compinit.")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Compile a component (started by the broker itself)
    #[command(hide = true)]
    CompileWorker,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_explains_itself_and_an_argument_may_be_called_so() {
        let asks = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let is_help = |error: &clap::Error| error.kind() == ErrorKind::DisplayHelp;
            (asks_for_help_of_help(&words), Arguments::of(words).as_ref().err().is_some_and(is_help))
        };
        assert_eq!(asks("tidemill cluster help --help"), (true, true));
        assert_eq!(asks("tidemill help -h"), (true, true));
        assert_eq!(asks("tidemill produce help --help"), (false, true), "a topic");
        assert_eq!(asks("tidemill topic describe help --help"), (false, true));
        assert_eq!(asks("tidemill nothing help --help"), (false, false));
    }

    /// Lines that are too long are broken once more, and a word is left alone on the next one.
    #[test]
    fn what_stands_behind_the_arguments_is_broken_by_hand() {
        fn check(command: &clap::Command) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let prose = text.lines().filter(|line| !line.starts_with("  "));
            for line in prose {
                assert!(line.chars().count() <= HELP_COLUMNS_MAX, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }

    /// A command's argument of the same name would take the place of one that all commands have, with another type.
    #[test]
    fn no_command_has_an_argument_of_a_common_name() {
        fn check(command: &clap::Command, common: &[String]) {
            for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
                let id = argument.get_id().to_string();
                assert!(!common.contains(&id), "{}: {id}", command.get_name());
            }
            command.get_subcommands().for_each(|subcommand| check(subcommand, common));
        }
        let grammar = Arguments::command();
        grammar.clone().debug_assert();
        let common: Vec<String> = grammar
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(|argument| argument.get_id().to_string())
            .collect();
        assert!(common.contains(&"json".to_owned()), "{common:?}");
        check(&grammar, &common);
    }
}
