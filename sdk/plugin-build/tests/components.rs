//! The whole way, with cargo: the plugins that ship, and new crates, become components.
//!
//! Needs a toolchain for WebAssembly, and some minutes the first time: runs where `TIDEMILL_TEST_COMPONENTS=1` asks for it.

#[allow(unreachable_pub, reason = "a library shares it")]
#[path = "../../../tests/fixtures/skips.rs"]
mod skips;

use std::path::{Path, PathBuf};
use std::process::Command;

use tidemill_plugin_build::{
    Kind, Options, SHIPPED_PLUGINS, World, build_crate, build_shipped_plugins, inspect, new_crate,
};

fn asked_for() -> bool {
    let asked = std::env::var("TIDEMILL_TEST_COMPONENTS").is_ok_and(|value| value == "1");
    if !asked {
        skips::skipped("takes minutes; `cargo xtask test --all` runs it (TIDEMILL_TEST_COMPONENTS=1)");
    }
    asked
}

/// One directory for all that these tests build, so that the SDK is compiled once.
fn options() -> Options {
    let target_dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    Options { target_dir: Some(target_dir), ..Options::from_env() }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_plugins_that_ship_are_components_of_their_worlds() {
    if !asked_for() {
        return;
    }
    let build = build_shipped_plugins(&root(), &options(), &mut |line| eprintln!("{line}")).unwrap();
    eprintln!("{} in {:?}", build.toolchain, build.elapsed);
    for component in &build.components {
        let shape = inspect(&component.bytes).unwrap();
        eprintln!(
            "{}: {}, {} bytes, imports {:?}",
            component.name,
            shape.world,
            component.bytes.len(),
            shape.imports
        );
        let expected = match component.name.as_str() {
            "key-hash" | "field-hash" => World::Partitioner,
            "json-filter" | "redact" => World::Filter,
            _ => World::Consumer,
        };
        assert_eq!((component.world, shape.world), (expected, expected), "{}", component.name);
        assert!(component.bytes.len() < 256 * 1024, "{} has {} bytes", component.name, component.bytes.len());
        let consumer_imports =
            shape.imports.iter().filter(|name| name.contains("/emit@") || name.contains("/state@"));
        assert!(
            expected == World::Consumer || consumer_imports.count() == 0,
            "{} imports {:?}",
            component.name,
            shape.imports
        );
        assert_eq!(std::fs::read(&component.path).unwrap(), component.bytes);
    }
    let mut names: Vec<&str> = build.components.iter().map(|component| component.name.as_str()).collect();
    let mut expected = SHIPPED_PLUGINS.to_vec();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn a_new_crate_passes_its_test_and_becomes_a_component() {
    if !asked_for() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    for (kind, name, world) in [
        (Kind::Filter, "my-filter", World::Filter),
        (Kind::Partitioner, "my-partitioner", World::Partitioner),
        (Kind::Consumer, "my-consumer", World::Consumer),
        (Kind::Transform, "my-transform", World::Consumer),
    ] {
        let made = new_crate(parent.path(), name, kind).unwrap();
        let tested = Command::new("cargo")
            .arg("test")
            .env("RUSTFLAGS", "-Dwarnings")
            .env("CARGO_TARGET_DIR", parent.path().join("target"))
            .current_dir(&made.dir)
            .output()
            .unwrap();
        assert!(
            tested.status.success(),
            "{}",
            String::from_utf8_lossy(&[tested.stdout, tested.stderr].concat())
        );
        let build = build_crate(&made.dir, &options(), &mut |line| eprintln!("{line}")).unwrap();
        assert_eq!(build.components.len(), 1);
        assert_eq!((build.components[0].name.as_str(), build.components[0].world), (name, world));
    }
}
