//! `tidemill server` and `tidemill dev`.

use std::path::PathBuf;

use clap::Args;
use tidemill_server::{Broker, BrokerConfig};

use crate::contexts::publish_authority;
use crate::error::CliError;

/// A single broker with defaults.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill dev                             keep everything in ./tidemill-data
  tidemill dev --data-dir /tmp/t --port 0  a free port; the address is printed")]
pub(crate) struct Dev {
    /// Where everything is kept.
    #[arg(long, default_value = "tidemill-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// UDP port on loopback; 0 takes a free one.
    #[arg(long, default_value_t = tidemill_server::DEFAULT_PORT)]
    port: u16,
}

/// A broker as its settings say.
#[derive(Debug, Args)]
#[command(after_help = "\
Settings come from defaults, then the file, then the environment, then flags. Every setting has a dotted name:
--set wal.bytes_max=4294967296 on the command line is TIDEMILL_WAL__BYTES_MAX in the environment and bytes_max
under [wal] in the file. `tidemill server --print-config` shows all of them.

Examples:
  tidemill server --config /etc/tidemill.toml
  tidemill server --data-dir /var/lib/tidemill --listen 0.0.0.0:9630 --client-ca clients.pem
  tidemill server --set durability=replicated --set shards=12")]
pub(crate) struct Server {
    /// TOML file of settings.
    #[arg(long, env = "TIDEMILL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address to listen on.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address that clients are told; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Authorities of clients' certificates: every client must show one.
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Listen beyond loopback without asking clients who they are.
    #[arg(long)]
    insecure: bool,
    /// Start although acknowledged entries may be lost. Read the error that names this first.
    #[arg(long)]
    accept_data_loss: bool,
    /// Any setting by its dotted name.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = crate::text::key_value)]
    settings: Vec<(String, String)>,
    /// Print the settings as they would be used, and stop.
    #[arg(long)]
    print_config: bool,
}

pub(crate) async fn dev(dev: Dev, json: bool) -> Result<(), CliError> {
    let config = BrokerConfig {
        data_dir: dev.data_dir,
        listen: ([127, 0, 0, 1], dev.port).into(),
        ..BrokerConfig::default()
    };
    serve(config, json).await
}

pub(crate) async fn run(server: Server, json: bool) -> Result<(), CliError> {
    let mut flags = server.settings;
    let mut flag =
        |key: &str, value: Option<String>| flags.extend(value.map(|value| (key.to_owned(), value)));
    flag("data_dir", server.data_dir.map(|path| path.display().to_string()));
    flag("listen", server.listen);
    flag("client_ca", server.client_ca.map(|path| path.display().to_string()));
    flag("insecure", server.insecure.then(|| "true".to_owned()));
    flag("accept_data_loss", server.accept_data_loss.then(|| "true".to_owned()));
    let mut config = BrokerConfig::load(server.config.as_deref(), &flags)
        .map_err(|error| CliError::usage(error.to_string()))?;
    if !server.advertise.is_empty() {
        config.advertise = server.advertise;
    }
    if server.print_config {
        let text = toml::to_string(&config).map_err(|error| CliError::other(error.to_string()))?;
        print!("{text}");
        return Ok(());
    }
    serve(config, json).await
}

async fn serve(config: BrokerConfig, json: bool) -> Result<(), CliError> {
    let data_dir = config.data_dir.clone();
    let broker = Broker::start(config).await.map_err(|error| CliError::other(error.to_string()))?;
    let address = broker.local_addr();
    // Other commands on this machine find the authority by the port.
    let authority = broker.authority();
    if let Some(authority) = &authority
        && let Err(error) = publish_authority(authority, address.port())
    {
        tracing::warn!(%error, "the authority's certificate was not left for other commands; they need --ca");
    }
    if let Err(error) = announce(&broker, &data_dir, authority.as_deref(), json) {
        tracing::debug!(%error, "nobody reads where the broker listens");
    }
    let reason = tokio::select! {
        reason = signal() => reason,
        (shard, reason) = broker.failed() => {
            tracing::error!(%shard, %reason, "a shard stopped; what it acknowledged is on the disk");
            // It serves what it still can until somebody stops it: other shards are not concerned.
            signal().await
        }
    };
    broker.shutdown(reason).await;
    Ok(())
}

/// One line that programs may wait for.
fn announce(
    broker: &Broker,
    data_dir: &std::path::Path,
    authority: Option<&std::path::Path>,
    json: bool,
) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if json {
        let document = serde_json::json!({
            "listening": broker.local_addr().to_string(),
            "cluster": broker.cluster().to_string(),
            "data_dir": data_dir,
            "ca": authority,
            "metrics": broker.metrics_addr().map(|address| address.to_string()),
        });
        writeln!(out, "{document}")?;
    } else {
        writeln!(out, "tidemill listens on {} (data in {})", broker.local_addr(), data_dir.display())?;
        if let Some(authority) = authority {
            writeln!(
                out,
                "its authority is {}; commands on this machine find it by the port",
                authority.display()
            )?;
        }
        if let Some(metrics) = broker.metrics_addr() {
            writeln!(out, "metrics are at http://{metrics}/metrics")?;
        }
        writeln!(out, "try: tidemill topic create plays --partitions 3")?;
    }
    out.flush()
}

async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => _ = signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "interrupted",
        () = terminated => "terminated",
    }
}
