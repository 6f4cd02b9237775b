//! Embeds the plugin SDK's sources and the plugin contract, so that an installed `tidemill` can write crates that build anywhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "src/manifest.rs"]
mod manifest;

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here.join("../..");
    let (sdk, wit) = (here.join("../plugin"), root.join("wit"));
    let workspace_manifest = root.join("Cargo.toml");
    for watched in [&sdk.join("src"), &sdk.join("Cargo.toml"), &wit, &workspace_manifest] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }

    let read =
        |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let sdk_manifest = manifest::standalone(&read(&sdk.join("Cargo.toml")), &read(&workspace_manifest))
        .unwrap_or_else(|error| panic!("sdk/plugin/Cargo.toml: {error}"));

    let mut sources = Vec::new();
    list(&sdk.join("src"), "vendor/tidemill-plugin/src", &mut sources);
    list(&wit, "wit", &mut sources);
    sources.sort();

    let mut code = format!("pub(crate) const SDK_MANIFEST: &str = {sdk_manifest:?};\n");
    code.push_str("pub(crate) const SDK_FILES: &[(&str, &str)] = &[\n");
    for (name, path) in sources {
        let path = path.canonicalize().expect("it was just listed");
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("strings take everything");
    }
    code.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("embedded.rs");
    fs::write(&out, code).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}

fn list(dir: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let path = entry.expect("the directory can be read").path();
        let file_name = path.file_name().and_then(|name| name.to_str()).expect("our file names are text");
        let name = format!("{name}/{file_name}");
        if path.is_dir() {
            list(&path, &name, files);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "wit") {
            files.push((name, path));
        }
    }
}
