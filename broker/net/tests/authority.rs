//! The authority of a cluster: kept, copied, and never mixed up.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tidemill_net::{ClusterCa, DevCa};
use tidemill_protocol::{BrokerId, ClusterId};
use uuid::Uuid;

const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(0x7));

fn subject_and_issuer(path: &Path) -> (String, String) {
    let pem = std::fs::read(path).expect("a file");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
    let certificate = pem.parse_x509().expect("a certificate");
    (certificate.subject().to_string(), certificate.issuer().to_string())
}

#[test]
fn a_copy_signs_as_the_original_does() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = ClusterCa::open_or_create(dir.path().join("cluster")).expect("made");
    let opened = ClusterCa::open(dir.path().join("cluster")).expect("opened");
    assert_eq!(opened.fingerprint(), ca.fingerprint());
    assert_eq!(opened.certificate_pem(), ca.certificate_pem());

    let at_home = dir.path().join("broker-2");
    let copy = ClusterCa::from_pem(&at_home, ca.certificate_pem(), ca.key_pem()).expect("written");
    assert_eq!(copy.fingerprint(), ca.fingerprint());
    ClusterCa::from_pem(&at_home, ca.certificate_pem(), ca.key_pem()).expect("the same again");
    let peer = copy.issue_peer(CLUSTER, BrokerId::new(2), &at_home).expect("issued");
    let (subject, issuer) = subject_and_issuer(&peer.certificate);
    assert_eq!(subject, format!("CN=broker-2, O={}", CLUSTER.uuid()));
    assert_eq!(issuer, subject_and_issuer(&ca.authority()).0);
    copy.server(&["broker-2.example".into()]).expect("a certificate for clients");

    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode(&peer.key), mode(&at_home.join("ca.key")), mode(&at_home)), (0o600, 0o600, 0o700));
    assert!(!format!("{ca:?}").contains("PRIVATE"), "the key is in no log");
}

/// What broke off may have left its files, readable for anybody: no key is written into one of them.
#[test]
fn a_key_is_private_whatever_was_left_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = ClusterCa::open_or_create(dir.path().join("cluster")).expect("made");
    let at_home = dir.path().join("broker-2");
    std::fs::create_dir(&at_home).expect("made");
    for left in ["ca.new", "ca.pem.new", "ca.key.new"] {
        let path = at_home.join(left);
        std::fs::write(&path, "half of something").expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("for anybody");
    }
    ClusterCa::from_pem(&at_home, ca.certificate_pem(), ca.key_pem()).expect("written");
    let key = std::fs::metadata(at_home.join("ca.key")).expect("the key");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    assert!(!at_home.join("ca.key.new").exists() && !at_home.join("ca.pem.new").exists());
    assert_eq!(ClusterCa::open(&at_home).expect("opened").fingerprint(), ca.fingerprint());
}

/// The key is written first: alone it is what a beginning that broke off leaves.
#[test]
fn an_authority_that_was_begun_is_completed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let begun = ClusterCa::open_or_create(dir.path()).expect("made");
    std::fs::remove_file(begun.authority()).expect("removed");
    let whole = ClusterCa::open_or_create(dir.path()).expect("completed");
    assert_eq!(whole.key_pem(), begun.key_pem());
    assert_eq!(ClusterCa::open(dir.path()).expect("opened").fingerprint(), whole.fingerprint());
    std::fs::remove_file(dir.path().join("ca.key")).expect("removed");
    let lost = ClusterCa::open_or_create(dir.path()).expect_err("its key is lost").to_string();
    assert!(lost.contains("ca.key") && lost.contains("remove both"), "{lost}");
}

#[test]
fn a_certificate_is_renewed_and_its_key_kept() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = ClusterCa::open_or_create(dir.path()).expect("made");
    let issue = || {
        let files = ca.issue_peer(CLUSTER, BrokerId::new(1), dir.path()).expect("issued");
        (std::fs::read(files.certificate).expect("peer.pem"), std::fs::read(files.key).expect("peer.key"))
    };
    let (first, second) = (issue(), issue());
    assert_ne!(first.0, second.0, "serial numbers differ");
    assert_eq!(first.1, second.1);
}

#[test]
fn the_authority_of_a_single_broker_becomes_the_clusters() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let single = DevCa::open_or_create(dir.path()).expect("made");
    let ca = ClusterCa::open(dir.path()).expect("opened");
    assert_eq!(ca.fingerprint(), single.fingerprint());
    ca.issue_peer(CLUSTER, BrokerId::new(1), dir.path()).expect("issued");
}

#[test]
fn authorities_are_neither_replaced_nor_mixed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let missing = ClusterCa::open(&one).expect_err("nothing there").to_string();
    assert!(missing.contains("ca.pem") && missing.contains("cluster init"), "{missing}");
    let ca = ClusterCa::open_or_create(&one).expect("made");
    assert_eq!(ClusterCa::open_or_create(&one).expect("opened").fingerprint(), ca.fingerprint());
    let stranger = ClusterCa::open_or_create(&other).expect("made");
    assert_ne!(stranger.fingerprint(), ca.fingerprint());

    let replaced = ClusterCa::from_pem(&one, stranger.certificate_pem(), stranger.key_pem());
    assert!(replaced.expect_err("another").to_string().contains("another authority"));
    let mixed = ClusterCa::from_pem(dir.path().join("new"), ca.certificate_pem(), stranger.key_pem());
    assert!(mixed.expect_err("not its key").to_string().contains("not the key of ca.pem"));
    let no_authority = ca.issue_peer(CLUSTER, BrokerId::new(1), &one).expect("issued");
    let leaf = std::fs::read_to_string(no_authority.certificate).expect("peer.pem");
    let key = std::fs::read_to_string(no_authority.key).expect("peer.key");
    let error = ClusterCa::from_pem(dir.path().join("new"), &leaf, &key).expect_err("a broker's");
    assert!(error.to_string().contains("may sign no other"), "{error}");
    assert_eq!(ClusterCa::open(&one).expect("as before").fingerprint(), ca.fingerprint());
}
