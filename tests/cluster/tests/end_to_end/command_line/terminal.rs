//! A terminal: a broker, a home directory, and the binary.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker, tidemill_binary};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// No command of a test takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Somebody's terminal: commands find the broker by the environment, and keep their files in a home of their own.
pub(super) struct Terminal {
    pub(super) broker: TestBroker,
    home: tempfile::TempDir,
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Terminal {
    pub(super) async fn new() -> Outcome<Self> {
        let broker = TestBroker::start(BrokerOptions::default()).await?;
        Ok(Self { broker, home: tempfile::tempdir()? })
    }

    /// Where commands are started, and what is home to them.
    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The binary, before its arguments.
    pub(super) fn command(&self) -> Outcome<Command> {
        let mut command = Command::new(tidemill_binary()?);
        at_home(&mut command, self.home());
        command.env("TIDEMILL_ADDRESS", self.broker.address().to_string());
        command.env("TIDEMILL_CA", self.broker.authority());
        Ok(command)
    }

    /// `tidemill` with these arguments and this on its standard input.
    pub(super) async fn tidemill(&self, arguments: &[&str], stdin: impl AsRef<[u8]>) -> Outcome<Ran> {
        let mut command = self.command()?;
        command.args(arguments);
        run(&mut command, stdin.as_ref()).await
    }

    /// A command without quotes that must succeed; answers what it printed.
    pub(super) async fn done(&self, line: &str) -> Outcome<String> {
        self.fed(line, "").await
    }

    /// As [`done`](Self::done), with this on its standard input.
    pub(super) async fn fed(&self, line: &str, stdin: impl AsRef<[u8]>) -> Outcome<String> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.tidemill(&arguments, stdin).await?.succeeded(line)
    }

    /// As [`done`](Self::done) with `--json`: the one document that it prints.
    pub(super) async fn json(&self, line: &str) -> Outcome<Value> {
        let printed = self.done(&format!("{line} --json")).await?;
        Ok(serde_json::from_str(&printed).map_err(|error| format!("{line} printed {printed}: {error}"))?)
    }

    /// As [`json`](Self::json), for commands that print a document per line.
    pub(super) async fn documents(&self, line: &str) -> Outcome<Vec<Value>> {
        let printed = self.done(&format!("{line} --json")).await?;
        let parsed: Result<Vec<Value>, _> = printed.lines().map(serde_json::from_str).collect();
        Ok(parsed.map_err(|error| format!("{line} printed {printed}: {error}"))?)
    }

    /// Starts a command that runs on; answers it, and the lines that it prints.
    pub(super) fn started(&self, line: &str) -> Outcome<(Child, Printed)> {
        let mut command = self.command()?;
        command.args(line.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("it has an output")?;
        Ok((child, Printed(BufReader::new(output).lines())))
    }

    /// Starts a command that runs on, with a pipe for each of its three streams.
    pub(super) fn begun(&self, line: &str) -> Outcome<Child> {
        let mut command = self.command()?;
        command.args(line.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// A command without quotes that must fail with this code; answers what it said.
    pub(super) async fn fails(&self, line: &str, code: i32) -> Outcome<String> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let ran = self.tidemill(&arguments, "").await?;
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        assert!(ran.stderr.contains("error: "), "{line}: {ran:?}");
        Ok(ran.stderr)
    }
}

/// What a command that runs on has printed so far.
pub(super) struct Printed(Lines<BufReader<ChildStdout>>);

impl Printed {
    /// The next line, which must come in time.
    pub(super) async fn line(&mut self) -> Outcome<String> {
        Ok(tokio::time::timeout(DEADLINE, self.0.next_line()).await??.ok_or("it printed nothing more")?)
    }
}

impl Ran {
    /// What it printed, where it ended well.
    pub(super) fn succeeded(self, what: &str) -> Outcome<String> {
        if self.code == 0 { Ok(self.stdout) } else { Err(format!("{what}: {self:?}").into()) }
    }
}

/// Nothing of whoever runs the tests decides how they end.
pub(super) fn at_home(command: &mut Command, home: &Path) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TIDEMILL_"))
    {
        command.env_remove(name);
    }
    command.env("HOME", home).env_remove("XDG_CONFIG_HOME").current_dir(home).kill_on_drop(true);
}

/// Runs a command to its end.
pub(super) async fn run(command: &mut Command, stdin: &[u8]) -> Outcome<Ran> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().ok_or("it has an input")?;
    let feeding = async {
        // Whoever ends early reads no further.
        let _ = input.write_all(stdin).await;
        drop(input);
    };
    let running = async { tokio::join!(feeding, child.wait_with_output()).1 };
    let ended = tokio::time::timeout(DEADLINE, running).await;
    let output = ended.map_err(|_| format!("{command:?} does not end"))??;
    Ok(Ran {
        code: output.status.code().ok_or("it was killed")?,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
