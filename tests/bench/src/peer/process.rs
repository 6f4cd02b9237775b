use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::PeerClient;
use crate::Outcome;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// The peer's process. Killed and reaped when it is dropped.
pub(crate) struct PeerProcess {
    _child: Child,
    listening: SocketAddr,
    authority: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
struct Announcement {
    listening: SocketAddr,
    ca: PathBuf,
}

impl PeerProcess {
    /// Starts the peer; its keys lie in `dir`.
    pub(crate) async fn start(dir: &Path) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer").arg("--tls-dir").arg(dir.join("peer-tls"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("the bare peer has no output")?;
        let mut line = String::new();
        let mut output = BufReader::new(output);
        tokio::time::timeout(START_DEADLINE, output.read_line(&mut line)).await??;
        let announced: Announcement = serde_json::from_str(&line)
            .map_err(|_| format!("the bare peer said {line:?} where it should say where it listens"))?;
        Ok(Self { _child: child, listening: announced.listening, authority: announced.ca })
    }

    /// A connection of its own, as each of Tidemill's clients has.
    pub(crate) async fn connect(&self) -> Outcome<PeerClient> {
        PeerClient::connect(self.listening, &self.authority).await
    }
}
