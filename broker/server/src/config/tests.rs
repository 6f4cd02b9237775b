use super::*;

fn flags(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn flags_lie_over_the_file_and_the_file_over_defaults() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("broker.toml");
    std::fs::write(&file, "broker_id = 7\nshards = 2\n[wal]\nbytes_max = 1073741824\n").expect("written");
    let config = BrokerConfig::load(Some(&file), &flags(&[("shards", "3")])).expect("loads");
    assert_eq!((config.broker_id, config.shards), (7, Some(3)));
    assert_eq!(config.wal.bytes_max, 1 << 30);
    assert_eq!(config.wal.cache_bytes, WalSettings::default().cache_bytes);
}

fn in_environment(variables: &[(&str, &str)]) -> Result<BrokerConfig, ConfigError> {
    BrokerConfig::load_with(None, flags(variables), &[])
}

#[test]
fn the_environment_lies_over_the_file_and_flags_over_the_environment() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("broker.toml");
    std::fs::write(&file, "shards = 2\nbroker_id = 7\n[wal]\nbytes_max = 1073741824\n").expect("written");
    let environment =
        flags(&[("TIDEMILL_SHARDS", "3"), ("TIDEMILL_WAL__BYTES_MAX", "536870912"), ("HOME", "x")]);
    let load = |flags: &[(String, String)]| BrokerConfig::load_with(Some(&file), environment.clone(), flags);
    let config = load(&[]).expect("loads");
    assert_eq!((config.broker_id, config.shards, config.wal.bytes_max), (7, Some(3), 512 << 20));
    let config = load(&flags(&[("wal.bytes_max", "268435456"), ("wal.direct_io", "false")])).expect("loads");
    assert_eq!((config.shards, config.wal.bytes_max, config.wal.direct_io), (Some(3), 256 << 20, false));
}

#[test]
fn lists_stand_between_commas_in_flags_and_in_the_environment() {
    let by_flags = flags(&[("advertise", "a:1, b:2"), ("tls_names", "log1")]);
    let config = BrokerConfig::load_with(None, [], &by_flags).expect("loads");
    assert_eq!(config.advertise, ["a:1", "b:2"]);
    assert_eq!(config.tls_names, ["log1"]);
    let config =
        in_environment(&[("TIDEMILL_ADVERTISE", "a:1,b:2"), ("TIDEMILL_TLS_NAMES", "")]).expect("loads");
    assert_eq!(config.advertise, ["a:1", "b:2"]);
    assert_eq!(config.tls_names, [""; 0]);
}

#[test]
fn a_mistyped_setting_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("broker.toml");
    std::fs::write(&file, "brokr_id = 7\n").expect("written");
    let error = BrokerConfig::load(Some(&file), &[]).expect_err("unknown").to_string();
    assert!(error.contains("brokr_id"), "{error}");
}

#[test]
fn listening_beyond_loopback_needs_a_decision() {
    let open = flags(&[("listen", "0.0.0.0:9630")]);
    let error = BrokerConfig::load(None, &open).expect_err("refused").to_string();
    assert!(error.contains("--client-ca") && error.contains("--insecure"), "{error}");
    let decided =
        flags(&[("listen", "0.0.0.0:9630"), ("insecure", "true"), ("peers.advertise", "log1:9640")]);
    BrokerConfig::load(None, &decided).expect("said so");
}

#[test]
fn other_brokers_are_told_an_address_that_leads_somewhere() {
    let nowhere = flags(&[("listen", "0.0.0.0:9630"), ("insecure", "true")]);
    let error = BrokerConfig::load(None, &nowhere).expect_err("refused").to_string();
    assert!(error.contains("--peers-advertise") && error.contains("--peers-listen"), "{error}");
    let alone =
        flags(&[("listen", "0.0.0.0:9630"), ("insecure", "true"), ("peers.listen", "127.0.0.1:9640")]);
    let config = BrokerConfig::load(None, &alone).expect("said so");
    assert_eq!(config.peer_listen(), SocketAddr::from(([127, 0, 0, 1], 9640)));
    let beside = BrokerConfig::default();
    assert_eq!(beside.peer_listen(), SocketAddr::from(([127, 0, 0, 1], 9640)));
}

#[test]
fn addresses_that_others_are_told_lead_somewhere_too() {
    for setting in ["advertise", "peers.advertise", "peers.seeds"] {
        let error = BrokerConfig::load(None, &flags(&[(setting, "nohost")])).expect_err(setting).to_string();
        assert!(error.starts_with(&format!("{setting}: \"nohost\" names no port")), "{error}");
    }
}

#[test]
fn metrics_beyond_loopback_need_a_decision_too() {
    let open = flags(&[("metrics.listen", "0.0.0.0:9464")]);
    let error = BrokerConfig::load(None, &open).expect_err("refused").to_string();
    assert!(error.contains("metrics.insecure"), "{error}");
    let decided = flags(&[("metrics.listen", "0.0.0.0:9464"), ("metrics.insecure", "true")]);
    BrokerConfig::load(None, &decided).expect("said so");
    let here = BrokerConfig::load(None, &flags(&[("metrics.listen", "127.0.0.1:0")])).expect("loopback");
    assert!(here.metrics.listen.is_some() && BrokerConfig::default().metrics.listen.is_none());
}

#[test]
fn settings_that_contradict_are_refused() {
    for (key, value) in [
        ("shards", "0"),
        ("broker_id", "0"),
        ("advertise", "log1:9630,log2"),
        ("peers.advertise", "log1"),
        ("peers.seeds", "127.0.0.1"),
        ("wal.bytes_max", "1"),
        ("storage.write_behind_bytes_max", "1"),
        ("storage.state_hash_bytes", "65535"),
        ("storage.state_hash_interval_ms", "999"),
        ("limits.decompressed_bytes_max", "268435457"),
        ("limits.produce_in_flight_max", "0"),
        ("tls_key", "k.pem"),
    ] {
        BrokerConfig::load(None, &flags(&[(key, value)])).expect_err(key);
    }
}
