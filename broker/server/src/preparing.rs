//! What is found out before a start makes or changes anything: whether the files that the settings name can be used and, at the first
//! start, whether the ports are free. Whoever mistyped something starts again as if nothing had been: no directory is left behind, and no
//! token was shown.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use tidemill_net::{BindError, ClientAuthentication, ServerTls, TlsError};

use crate::config::BrokerConfig;
use crate::opening::client_authentication;
use crate::start_error::StartError;

/// The ports of a broker that has no directory yet, kept from others until it has one.
pub(crate) struct HeldPorts {
    _udp: Vec<UdpSocket>,
    _tcp: Option<TcpListener>,
}

impl HeldPorts {
    /// Binds what a first start is going to bind. Nothing where there is a directory: that says itself whether another broker runs on it, and
    /// loses nothing by a start that fails.
    ///
    /// # Errors
    /// A port can't be had.
    pub(crate) fn of_first_start(config: &BrokerConfig) -> Result<Self, StartError> {
        if config.data_dir.join("meta").exists() {
            return Ok(Self { _udp: Vec::new(), _tcp: None });
        }
        let udp = |address: SocketAddr| {
            UdpSocket::bind(address).map_err(|source| BindError::Socket { address, source })
        };
        let clients = udp(config.listen).map_err(StartError::Bind)?;
        let peers = udp(config.peer_listen()).map_err(StartError::Peers)?;
        let metrics = config.metrics.listen.map(|address| {
            TcpListener::bind(address).map_err(|source| StartError::Metrics { address, source })
        });
        Ok(Self { _udp: vec![clients, peers], _tcp: metrics.transpose()? })
    }
}

/// Reads the files of certificates and keys that the settings name.
///
/// # Errors
/// One can't be used; which setting names it is said.
pub(crate) fn check_files(config: &BrokerConfig) -> Result<(), StartError> {
    let authorities = client_authentication(config);
    authorities.check().map_err(|source| StartError::File { setting: "client_ca", source })?;
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else { return Ok(()) };
    let clients = ClientAuthentication::None;
    let tls = ServerTls { certificate: certificate.clone(), key: key.clone(), clients };
    tls.check().map_err(|source| {
        let setting = match &source {
            TlsError::File { path, .. } | TlsError::Content { path, .. } if path == key => "tls_key",
            _ => "tls_certificate",
        };
        StartError::File { setting, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::config::MetricsSettings;

    #[tokio::test]
    async fn what_is_mistyped_leaves_no_directory_behind() {
        let home = tempfile::tempdir().expect("a directory");
        let data_dir = home.path().join("data");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bound");
        let udp_taken = udp.local_addr().expect("known");
        let tcp_taken = tcp.local_addr().expect("known");
        let sane = || BrokerConfig {
            data_dir: data_dir.clone(),
            listen: ([127, 0, 0, 1], 0).into(),
            ..BrokerConfig::default()
        };
        let mut no_peers = sane();
        no_peers.peers.listen = Some(udp_taken);
        let certificate = Some(home.path().join("certificate.pem"));
        let key = Some(home.path().join("key.pem"));
        let metrics = MetricsSettings { listen: Some(tcp_taken), insecure: false };
        for (config, said) in [
            (BrokerConfig { client_ca: Some("nope.pem".into()), ..sane() }, "client_ca: nope.pem: "),
            (BrokerConfig { tls_certificate: certificate, tls_key: key, ..sane() }, "tls_certificate: "),
            (BrokerConfig { listen: udp_taken, ..sane() }, "could not listen on UDP"),
            (no_peers, "peers.listen: could not listen on UDP"),
            (BrokerConfig { metrics, ..sane() }, "metrics.listen: "),
        ] {
            let Err(error) = Broker::start(config).await else { panic!("it starts in spite of {said}") };
            assert!(error.to_string().contains(said), "{error}");
            assert!(!data_dir.exists(), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_none_of_its_kind_is_named_with_its_setting() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("file.pem");
        std::fs::write(&path, "hello").expect("written");
        let config = BrokerConfig { client_ca: Some(path.clone()), ..BrokerConfig::default() };
        let said = check_files(&config).expect_err("no certificate in it").to_string();
        assert!(said.starts_with("client_ca: ") && said.contains("BEGIN CERTIFICATE"), "{said}");
        check_files(&BrokerConfig::default()).expect("nothing is named");
    }
}
