//! `tidemill server` and `tidemill dev`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use tidemill_server::{Broker, BrokerConfig, DEFAULT_PORT, JoinError, StartError};

use crate::contexts::publish_authority;
use crate::error::CliError;
use crate::output;

/// A single broker with defaults.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill dev                             on port 9630, keeping everything in ./tidemill-data
  tidemill dev --data-dir /tmp/t --port 0  a free port; the address is printed

A file and the environment are read as `tidemill server` reads them.")]
pub(crate) struct Dev {
    /// Where everything is kept; tidemill-data where nothing else is said.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP port on loopback, 9630 where nothing else is said; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    sources: Sources,
}

/// Where settings come from, beside the environment and the flags that have names of their own.
#[derive(Debug, Args)]
struct Sources {
    /// TOML file of settings.
    #[arg(long, env = "TIDEMILL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting by its dotted name; items of a list by commas.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = crate::text::name_value)]
    settings: Vec<(String, String)>,
}

impl Sources {
    /// The settings, with further flags over them.
    fn load(
        self,
        flags: impl IntoIterator<Item = (&'static str, Option<String>)>,
    ) -> Result<BrokerConfig, CliError> {
        let mut settings = self.settings;
        settings.extend(flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if let Some(fault) = settings.iter().find_map(|(name, value)| fault_of(name, value)) {
            return Err(CliError::usage(fault));
        }
        BrokerConfig::load(self.config.as_deref(), &settings)
            .map_err(|error| CliError::usage(error.to_string()))
    }
}

/// What is wrong with a setting of the command line, where the words of whoever reads it are not for people.
fn fault_of(name: &str, value: &str) -> Option<String> {
    let fault = match name {
        "durability" if !matches!(value, "fsync" | "replicated") => "is neither fsync nor replicated",
        "listen" | "peers.listen" | "metrics.listen" if value.parse::<SocketAddr>().is_err() => {
            "is no IP address and port, such as 127.0.0.1:9630"
        }
        _ => return None,
    };
    Some(format!("{name}: '{value}' {fault}"))
}

/// A broker as its settings say.
#[derive(Debug, Args)]
#[command(after_help = "\
Settings come from defaults, then the file, then the environment, then flags. Every setting
has a dotted name: --set wal.bytes_max=4294967296 on the command line is
TIDEMILL_WAL__BYTES_MAX in the environment and bytes_max under [wal] in the file.
`tidemill server --print-config` shows all of them.

Examples:
  tidemill server --config /etc/tidemill.toml
  tidemill server --data-dir /var/lib/tidemill --listen 0.0.0.0:9630 --client-ca clients.pem
  tidemill server --set durability=replicated --set shards=12
  tidemill server --cluster plan --broker-id 1 --data-dir tidemill-1 --seed 127.0.0.1:9641
  tidemill server --broker-id 4 --data-dir tidemill-4 --seed 127.0.0.1:9640 --join TOKEN

The last two are of a cluster: `tidemill cluster init` and `tidemill cluster add` print whole
lines.")]
pub(crate) struct Server {
    #[command(flatten)]
    sources: Sources,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address to listen on.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address that clients are told; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// This broker's number in its cluster; 1 where nothing else is said.
    #[arg(long, value_name = "N")]
    broker_id: Option<u32>,
    /// What `tidemill cluster init` wrote: form that cluster with its other brokers. The first start
    /// needs it; afterwards leave it out, and delete the copy.
    #[arg(long, value_name = "DIR")]
    cluster: Option<PathBuf>,
    /// A token of `tidemill cluster add`: become a broker of that cluster. The first start needs it;
    /// afterwards it counts for nothing. TIDEMILL_JOIN keeps it from who lists processes.
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,
    /// Where another broker listens for brokers; may be repeated. One that is up is enough. The first
    /// start needs --cluster or --join beside it.
    #[arg(long, value_name = "HOST:PORT")]
    seed: Vec<String>,
    /// UDP address to listen on for other brokers; unless said that of --listen, ten ports further.
    #[arg(long, value_name = "ADDRESS:PORT")]
    peers_listen: Option<String>,
    /// Address that other brokers are told; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    peers_advertise: Vec<String>,
    /// What fails together with this broker: a shard's replicas go to distinct racks where there are such.
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
    /// Authorities of clients' certificates: every client must show one.
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Listen beyond loopback without asking clients who they are.
    #[arg(long)]
    insecure: bool,
    /// Start although acknowledged entries may be lost. Read the error that names this first.
    #[arg(long)]
    accept_data_loss: bool,
    /// Print the settings as they would be used, and stop.
    #[arg(long)]
    print_config: bool,
}

pub(crate) async fn dev(dev: Dev, json: bool) -> Result<(), CliError> {
    let config = dev.sources.load([
        ("data_dir", dev.data_dir.map(|path| path.display().to_string())),
        ("listen", dev.port.map(|port| format!("127.0.0.1:{port}"))),
    ])?;
    let elsewhere = Elsewhere {
        clients: "another port with --port",
        peers: "another port with --port, or --set peers.listen=ADDRESS:PORT",
    };
    serve(config, elsewhere, json).await
}

pub(crate) async fn run(server: Server, json: bool) -> Result<(), CliError> {
    let list = |items: &[String]| (!items.is_empty()).then(|| items.join(","));
    let (advertise, seeds) = (list(&server.advertise), list(&server.seed));
    let peers_advertise = list(&server.peers_advertise);
    let config = server.sources.load([
        ("data_dir", server.data_dir.map(|path| path.display().to_string())),
        ("listen", server.listen),
        ("advertise", advertise),
        ("broker_id", server.broker_id.map(|number| number.to_string())),
        ("cluster", server.cluster.map(|path| path.display().to_string())),
        ("join", server.join),
        ("peers.seeds", seeds),
        ("peers.listen", server.peers_listen),
        ("peers.advertise", peers_advertise),
        ("rack", server.rack),
        ("client_ca", server.client_ca.map(|path| path.display().to_string())),
        ("insecure", server.insecure.then(|| "true".to_owned())),
        ("accept_data_loss", server.accept_data_loss.then(|| "true".to_owned())),
    ])?;
    if server.print_config {
        // Whoever has the token can be a broker of the cluster.
        let config = BrokerConfig { join: config.join.as_ref().map(|_| "(set)".to_owned()), ..config };
        let toml = toml::to_string(&config).map_err(|error| CliError::other(error.to_string()))?;
        let toml = with_unset(&toml);
        return output::print(json, &serde_json::to_value(&config)?, || print!("{toml}"));
    }
    let elsewhere =
        Elsewhere { clients: "another address with --listen", peers: "another address with --peers-listen" };
    serve(config, elsewhere, json).await
}

/// Settings that may be left unset: the table that each stands in, its name, and what holds then, as a comment says it.
const UNSET: [(&str, &str, &str); 9] = [
    ("", "cluster", "unset: a new broker forms no cluster; a directory of `tidemill cluster init`"),
    ("", "join", "unset: a new broker joins no cluster; a token of `tidemill cluster add`"),
    ("", "shards", "unset: as the data directory has it, and 4 for a new one"),
    ("", "durability", "unset: as the data directory has it, and \"fsync\" for a new one"),
    ("", "client_ca", "unset: clients show no certificate"),
    ("", "tls_certificate", "unset: the broker makes its own, in data_dir/tls"),
    ("", "tls_key", "unset: of the certificate that the broker makes"),
    ("peers", "listen", "unset: the address of the setting listen, ten ports further"),
    ("metrics", "listen", "unset: no metrics over HTTP; such as \"127.0.0.1:9631\""),
];

/// TOML has no word for a value that is not there: these settings stand in it as comments.
fn with_unset(toml: &str) -> String {
    let mut out = String::new();
    let mut table = "";
    let mut set: Vec<&str> = Vec::new();
    let end_table = |out: &mut String, table: &str, set: &mut Vec<&str>| {
        for (_, name, words) in UNSET.iter().filter(|(of, name, _)| *of == table && !set.contains(name)) {
            out.push_str(&format!("# {name} =    # {words}\n"));
        }
        set.clear();
    };
    for line in toml.lines() {
        if let Some(next) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            // The blank line before a table stays before it.
            let blank = out.ends_with("\n\n");
            if blank {
                out.pop();
            }
            end_table(&mut out, table, &mut set);
            if blank {
                out.push('\n');
            }
            table = next;
        } else if let Some((name, _)) = line.split_once(" = ") {
            set.push(name);
        }
        out.push_str(line);
        out.push('\n');
    }
    end_table(&mut out, table, &mut set);
    out
}

/// What may be chosen where an address can't be had.
struct Elsewhere {
    clients: &'static str,
    peers: &'static str,
}

/// Why a broker is to stop.
enum Stop {
    /// Somebody said so.
    Signal(&'static str),
    /// The cluster says that it is none of its own.
    Dismissed(String),
}

async fn serve(config: BrokerConfig, elsewhere: Elsewhere, json: bool) -> Result<(), CliError> {
    let data_dir = config.data_dir.clone();
    let asks_clients = config.client_ca.is_some();
    let broker = Broker::start(config).await.map_err(|error| not_started(&error, &elsewhere))?;
    let address = broker.local_addr();
    // Other commands on this machine find the authority by the port.
    let authority = broker.authority();
    if let Some(authority) = &authority
        && let Err(error) = publish_authority(authority, address.port())
    {
        tracing::warn!(%error, "the authority's certificate was not left for other commands; they need --ca");
    }
    // A certificate that the broker did not make is for names that are not known here.
    let first_command = authority.as_ref().map(|_| first_command(address, asks_clients));
    if let Err(error) = announce(&broker, &data_dir, authority.as_deref(), json) {
        tracing::debug!(%error, "nobody reads where the broker listens");
    }
    let stop = {
        let advised = async {
            if !json && let Err(error) = advise(&broker, first_command.as_deref()).await {
                tracing::debug!(%error, "nobody reads what comes next");
            }
            std::future::pending::<Stop>().await
        };
        let failed = async {
            let (shard, reason) = broker.failed().await;
            tracing::error!(%shard, %reason, "a shard stopped; what it acknowledged is on the disk");
            // It serves what it still can until somebody stops it: other shards are not concerned.
            std::future::pending::<Stop>().await
        };
        tokio::select! {
            reason = signal() => Stop::Signal(reason),
            reason = broker.dismissed() => Stop::Dismissed(reason),
            stop = failed => stop,
            stop = advised => stop,
        }
    };
    match stop {
        Stop::Signal(reason) => {
            broker.shutdown(reason).await;
            Ok(())
        }
        Stop::Dismissed(reason) => {
            tracing::error!(%reason, "the cluster does not want this broker, which stops");
            broker.shutdown("the cluster does not want this broker").await;
            Err(CliError::other(format!("the cluster does not want this broker: {reason}")))
        }
    }
}

/// Settings that do not stand, or do not fit what they name, are input of the command.
fn not_started(error: &StartError, elsewhere: &Elsewhere) -> CliError {
    let choice = match error {
        StartError::Bind(bind) if bind.concerns_address() => format!("; choose {}", elsewhere.clients),
        StartError::Peers(bind) if bind.concerns_address() => format!("; choose {}", elsewhere.peers),
        _ => String::new(),
    };
    let words = format!("{error}{choice}");
    match error {
        StartError::Config(_)
        | StartError::WrongBroker { .. }
        | StartError::Fixed { .. }
        | StartError::Tls(_)
        | StartError::Cluster(_)
        | StartError::NotPlanned { .. }
        | StartError::NoOrigin { .. }
        | StartError::OtherCluster { .. }
        | StartError::Join(JoinError::Token(_) | JoinError::NoSeed) => CliError::usage(words),
        _ => CliError::other(words),
    }
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
            "peers": broker.peer_addr().to_string(),
            "cluster": broker.cluster().to_string(),
            "data_dir": data_dir,
            "ca": authority,
            "metrics": broker.metrics_addr().map(|address| address.to_string()),
        });
        writeln!(out, "{document}")?;
    } else {
        writeln!(out, "tidemill listens on {} (data in {})", broker.local_addr(), data_dir.display())?;
        writeln!(out, "it listens for other brokers on {}", broker.peer_addr())?;
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
    }
    out.flush()
}

/// What comes next, for people: other brokers, or a first command where there is a cluster that takes it.
async fn advise(broker: &Broker, first_command: Option<&str>) -> std::io::Result<()> {
    use std::io::Write;
    let line = match (broker.waits_for().await, first_command) {
        (Some(others), _) => format!("it waits for {others}"),
        (None, Some(command)) => format!("try: {command}"),
        (None, None) => return Ok(()),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A command that reaches this broker from its own machine, with what it needs for that.
fn first_command(address: SocketAddr, asks_clients: bool) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let reached = SocketAddr::new(ip, address.port());
    let is_default = reached == SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT));
    let to = if is_default { String::new() } else { format!(" --address {reached}") };
    let shown = if asks_clients { " --certificate FILE --certificate-key FILE" } else { "" };
    format!("tidemill{to}{shown} topic create plays --partitions 3")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of settings that have no value, by table.
    fn without_value(config: &BrokerConfig) -> Vec<(String, String)> {
        let document = serde_json::to_value(config).expect("plain data");
        let of = |table: &str, settings: &serde_json::Value| -> Vec<(String, String)> {
            let settings = settings.as_object().into_iter().flatten();
            settings.filter(|(_, v)| v.is_null()).map(|(name, _)| (table.to_owned(), name.clone())).collect()
        };
        let mut unset = of("", &document);
        for (table, settings) in document.as_object().into_iter().flatten().filter(|(_, v)| v.is_object()) {
            unset.extend(of(table, settings));
        }
        unset
    }

    #[test]
    fn settings_that_do_not_stand_are_named_in_plain_words() {
        assert_eq!(
            fault_of("durability", "Fsync"),
            Some("durability: 'Fsync' is neither fsync nor replicated".to_owned())
        );
        for name in ["listen", "peers.listen", "metrics.listen"] {
            assert!(fault_of(name, "localhost:9777").is_some_and(|fault| fault.contains("127.0.0.1:9630")));
            assert_eq!(fault_of(name, "[::1]:9777"), None);
        }
        assert_eq!(fault_of("durability", "replicated"), None);
        assert_eq!(fault_of("advertise", "localhost:9777"), None);
        let elsewhere = Elsewhere { clients: "another port", peers: "another port" };
        let code = |error: StartError| not_started(&error, &elsewhere).exit_code();
        assert_eq!(code(StartError::Join(JoinError::NoSeed)), 2);
        assert_eq!(code(StartError::Join(JoinError::Refused("it was used".to_owned()))), 1);
        assert_eq!(code(StartError::NoOrigin { path: "data".to_owned() }), 2);
        assert_eq!(code(StartError::Interrupted), 1);
    }

    #[test]
    fn the_first_command_goes_to_this_broker() {
        let first = |address: &str, asks| first_command(address.parse().expect("an address"), asks);
        let plain = "tidemill topic create plays --partitions 3";
        assert_eq!(first("127.0.0.1:9630", false), plain);
        assert_eq!(first("0.0.0.0:9630", false), plain);
        let elsewhere = first("127.0.0.1:4711", false);
        assert_eq!(elsewhere, "tidemill --address 127.0.0.1:4711 topic create plays --partitions 3");
        let everywhere = first("0.0.0.0:4711", true);
        assert!(everywhere.contains("--address 127.0.0.1:4711 --certificate FILE --certificate-key FILE"));
    }

    #[test]
    fn every_setting_is_printed_whether_it_is_set_or_not() {
        let mut config = BrokerConfig::default();
        let expected: std::collections::BTreeSet<_> =
            UNSET.iter().map(|(table, name, _)| ((*table).to_owned(), (*name).to_owned())).collect();
        assert_eq!(without_value(&config).into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
        let printed = with_unset(&toml::to_string(&config).expect("it is written"));
        for (_, name, _) in UNSET {
            let tables = UNSET.iter().filter(|(_, other, _)| *other == name).count();
            assert_eq!(printed.matches(&format!("# {name} = ")).count(), tables, "{name} in {printed}");
        }
        assert!(printed.find("# shards =") < printed.find("[wal]"), "{printed}");
        let listen = (printed.find("# listen ="), printed.rfind("# listen ="));
        assert!(printed.find("[peers]") < listen.0 && listen.0 < printed.find("[wal]"), "{printed}");
        assert!(printed.find("[metrics]") < listen.1, "{printed}");
        // It reads as what it was.
        assert_eq!(toml::from_str::<BrokerConfig>(&printed).expect("it is read"), config);
        config.shards = Some(7);
        let printed = with_unset(&toml::to_string(&config).expect("it is written"));
        assert!(printed.contains("\nshards = 7\n") && !printed.contains("# shards"), "{printed}");
    }
}
