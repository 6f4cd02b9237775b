use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tidemill_client::{Client, ClientConfig, ConnectError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::binary::without_variables;
use super::{BrokerOptions, WorldError, tidemill_binary};

/// Until a broker serves, on a machine that is busy with other things.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Until a broker that was asked to has stopped.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// What of a broker's log an error shows.
const LOG_TAIL_BYTES: u64 = 6_000;

/// A broker process on a loopback port, in a directory of its own. Killed and reaped when it is dropped.
#[derive(Debug)]
pub struct TestBroker {
    options: BrokerOptions,
    home: Home,
    address: SocketAddr,
    authority: PathBuf,
    metrics: Option<SocketAddr>,
    process: Option<Process>,
    starts: u32,
}

/// Where data and log are.
#[derive(Debug)]
enum Home {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Home {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(path) => path,
        }
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// What a broker says when it serves.
#[derive(Debug, serde::Deserialize)]
struct Announcement {
    listening: SocketAddr,
    ca: PathBuf,
    metrics: Option<SocketAddr>,
}

impl TestBroker {
    /// Starts a broker and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub async fn start(options: BrokerOptions) -> Result<Self, WorldError> {
        let home = match &options.directory {
            Some(path) => {
                let made = std::fs::create_dir_all(path);
                made.map_err(|source| WorldError::Io { path: path.clone(), source })?;
                Home::Kept(path.clone())
            }
            None => {
                let made = tempfile::Builder::new().prefix("tidemill-").tempdir();
                Home::Temporary(made.map_err(|source| WorldError::Io { path: std::env::temp_dir(), source })?)
            }
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let authority = PathBuf::new();
        let mut broker = Self { options, home, address, authority, metrics: None, process: None, starts: 0 };
        broker.restart().await?;
        Ok(broker)
    }

    /// Starts it again where it was: same directory, same port. Answers how long it took until it served.
    ///
    /// # Errors
    /// It does not serve.
    pub async fn restart(&mut self) -> Result<Duration, WorldError> {
        let begun = Instant::now();
        self.launch()?;
        self.serving().await?;
        Ok(begun.elapsed())
    }

    /// Starts it, and kills it after a while, however far it has got.
    ///
    /// # Errors
    /// It can't be started, or ends by itself before it is killed.
    pub async fn restart_and_kill(&mut self, after: Duration) -> Result<(), WorldError> {
        self.launch()?;
        tokio::time::sleep(after).await;
        let ended = self.has_ended()?;
        self.kill().await?;
        match ended {
            Some(status) => Err(WorldError::Ended { status, log: self.log_tail() }),
            None => Ok(()),
        }
    }

    /// How it ended, if it did so by itself. `None`: it runs, or was killed or stopped. It can still be killed or waited for afterwards.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>, WorldError> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let ended = process.child.try_wait();
        ended.map_err(|source| self.io("data", source))
    }

    /// kill -9, and waits until it is gone. One that has ended by itself is gone already: [`Self::has_ended`] says so before.
    ///
    /// # Errors
    /// It is not running.
    pub async fn kill(&mut self) -> Result<(), WorldError> {
        let mut process = self.process.take().ok_or(WorldError::NotRunning)?;
        // By its id, which nobody else can have before it is waited for.
        process.child.kill().await.map_err(|source| self.io("data", source))
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// It is not running, or goes on running.
    pub async fn stop(&mut self) -> Result<ExitStatus, WorldError> {
        let mut process = self.process.take().ok_or(WorldError::NotRunning)?;
        let id = process.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id {
            kill_process(id, Signal::TERM).map_err(|error| self.io("data", error.into()))?;
        }
        match timeout(STOP_DEADLINE, process.child.wait()).await {
            Ok(ended) => ended.map_err(|source| self.io("data", source)),
            Err(_) => {
                self.process = Some(process);
                Err(WorldError::TimedOut { what: "stop", after: STOP_DEADLINE, log: self.log_tail() })
            }
        }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It is not running, or goes on running.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus, WorldError> {
        let mut process = self.process.take().ok_or(WorldError::NotRunning)?;
        match timeout(within, process.child.wait()).await {
            Ok(ended) => ended.map_err(|source| self.io("data", source)),
            Err(_) => {
                self.process = Some(process);
                Err(WorldError::TimedOut { what: "end", after: within, log: self.log_tail() })
            }
        }
    }

    /// Holds it up where it stands (SIGSTOP), until [`Self::resume`] or [`Self::kill`].
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&self) -> Result<(), WorldError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&self) -> Result<(), WorldError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), WorldError> {
        let id = self.process_id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let id = id.ok_or(WorldError::NotRunning)?;
        kill_process(id, signal).map_err(|error| self.io("data", error.into()))
    }

    /// From the next start on it runs with these options, in the directory and at the address that it has.
    pub fn change(&mut self, options: BrokerOptions) {
        self.options = options;
    }

    /// From the next start on it runs with this setting, beside those that it has.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.options = self.options.clone().set(name, value);
    }

    /// Where its data directory and its log are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of its authority.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// Where it answers for metrics over HTTP, if it does.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().and_then(|process| process.child.id())
    }

    /// How often it was started.
    #[must_use]
    pub const fn starts(&self) -> u32 {
        self.starts
    }

    /// Leaves data and log where they are when the broker is dropped; answers where.
    pub fn keep(&mut self) -> PathBuf {
        if let Home::Temporary(dir) = &mut self.home {
            dir.disable_cleanup(true);
        }
        self.home.path().to_owned()
    }

    /// How a client reaches it, with reconnects that suit a broker which is killed now and then.
    #[must_use]
    pub fn client_config(&self) -> ClientConfig {
        ClientConfig::new([self.address.to_string()])
            .trust_file(&self.authority)
            .connect_timeout(Duration::from_secs(2))
            .backoff(Duration::from_millis(10), Duration::from_millis(250))
    }

    /// A client of its own.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        Client::connect(self.client_config().client_id("test")).await
    }

    /// The end of its log, over all its starts.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let mut tail = Vec::new();
        if let Ok(mut file) = File::open(self.log()) {
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let from = SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES));
            let read = file.seek(from).and_then(|_| file.read_to_end(&mut tail));
            if let Err(error) = read {
                return format!("(the log can't be read: {error})");
            }
        }
        String::from_utf8_lossy(&tail).into_owned()
    }

    /// All of its log, over all its starts.
    ///
    /// # Errors
    /// It can't be read.
    pub fn log_text(&self) -> std::io::Result<String> {
        // Whoever is killed while it writes may leave half a letter.
        let text = std::fs::read(self.log())?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("broker.log")
    }

    fn io(&self, name: &str, source: std::io::Error) -> WorldError {
        WorldError::Io { path: self.home.path().join(name), source }
    }

    fn launch(&mut self) -> Result<(), WorldError> {
        let open = OpenOptions::new().create(true).append(true).open(self.log());
        let log = open.map_err(|source| self.io("broker.log", source))?;
        let binary = tidemill_binary()?;
        let mut command = Command::new(&binary);
        command.args(["--json", "server", "--listen", &self.address.to_string(), "--data-dir"]);
        command.arg(self.data_dir());
        for (name, value) in &self.options.settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        command.args(&self.options.arguments);
        without_variables(&mut command);
        let verbosity =
            std::env::var("TIDEMILL_TEST_LOG").unwrap_or_else(|_| "info,openraft=warn".to_owned());
        command.env("TIDEMILL_LOG", verbosity);
        // The broker leaves its authority's certificate with the user: here that is nobody.
        command.env("HOME", self.home.path()).env_remove("XDG_CONFIG_HOME");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| WorldError::Io { path: binary, source })?;
        let output = child.stdout.take().ok_or(WorldError::NotRunning)?;
        self.process = Some(Process { child, output: BufReader::new(output) });
        self.starts += 1;
        Ok(())
    }

    async fn serving(&mut self) -> Result<(), WorldError> {
        let process = self.process.as_mut().ok_or(WorldError::NotRunning)?;
        let mut line = String::new();
        let read = timeout(START_DEADLINE, process.output.read_line(&mut line)).await;
        match read {
            Err(_) => {
                let log = self.log_tail();
                return Err(WorldError::TimedOut { what: "serve", after: START_DEADLINE, log });
            }
            Ok(Ok(0) | Err(_)) => {
                let status = process.child.wait().await;
                self.process = None;
                let status = status.map_err(|source| self.io("data", source))?;
                return Err(WorldError::Ended { status, log: self.log_tail() });
            }
            Ok(Ok(_)) => {}
        }
        let announced: Announcement =
            serde_json::from_str(&line).map_err(|_| WorldError::BadAnnouncement { line })?;
        self.address = announced.listening;
        self.authority = announced.ca;
        self.metrics = announced.metrics;
        Ok(())
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        if process.child.start_kill().is_err() {
            return;
        }
        // Gone before its directory goes; a killed process takes milliseconds.
        for _ in 0..500 {
            if !matches!(process.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
