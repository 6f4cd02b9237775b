//! `tidemill plugin`: make, build, test and upload plugins.

mod report;
mod show;
mod test;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};
use tidemill_client::messages::{PluginKind, PluginVersion};
use tidemill_client::{Client, RequestError};
use tidemill_plugin_build::{Kind, Options, build_crate, new_crate};

use crate::arguments::Connection;
use crate::commands::ask;
use crate::error::CliError;
use crate::{output, text};

/// Plugins
#[derive(Debug, Subcommand)]
pub(crate) enum Plugin {
    /// Write a plugin crate that builds and whose test passes
    #[command(after_help = "\
Example:
  tidemill plugin new only-device --kind filter
  cd only-device && cargo test && tidemill plugin build
  tidemill plugin test target/plugins/components/only-device.wasm --input sample.txt --set device=phone")]
    New {
        /// The crate's name.
        name: String,
        /// filter, partitioner, consumer or transform.
        #[arg(long, default_value = "filter")]
        kind: Kind,
    },
    /// Build a plugin crate to a component
    #[command(
        after_help = "Examples:\n  tidemill plugin build\n  tidemill plugin build only-phones --install"
    )]
    Build {
        /// The crate's directory.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Install system packages for the WebAssembly target where they are needed.
        #[arg(long)]
        install: bool,
    },
    /// Run a component against a file of records, twice, in the broker's own engine
    Test(Box<test::Test>),
    /// Upload a component
    #[command(
        after_help = "Examples:\n  tidemill plugin upload target/plugins/components/only-phones.wasm\n  tidemill plugin upload my.wasm --name only-phones --version 2"
    )]
    Upload {
        /// The component.
        file: PathBuf,
        /// The plugin's name; the file's where none is given.
        #[arg(long)]
        name: Option<String>,
        /// Its version; where none is given the next whole number, or the version that has these
        /// very bytes already.
        #[arg(long)]
        version: Option<String>,
    },
    /// Show what was uploaded
    #[command(after_help = "Example:\n  tidemill plugin list")]
    List,
    /// Show a plugin: its world, what it does, its configuration
    #[command(after_help = "Example:\n  tidemill plugin describe json-filter")]
    Describe {
        /// NAME or NAME@VERSION.
        plugin: String,
    },
    /// Delete a version of a plugin, or all of them
    #[command(after_help = "Example:\n  tidemill plugin delete only-phones@1")]
    Delete {
        /// NAME or NAME@VERSION.
        plugin: String,
    },
}

impl Plugin {
    /// What the grammar can't say.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Test(test) => test.check(),
            _ => Ok(()),
        }
    }
}

pub(crate) async fn run(plugin: Plugin, connection: &Connection) -> Result<(), CliError> {
    let json = connection.json;
    match plugin {
        Plugin::New { name, kind } => new(&name, kind, json),
        Plugin::Build { dir, install } => build(&dir, install, json),
        Plugin::Test(test) => test::run(*test, json).await,
        Plugin::Upload { file, name, version } => {
            upload(connection, &file, name, version.as_deref().unwrap_or_default()).await
        }
        Plugin::List => {
            let versions =
                ask(connection, |client| asked(async move { client.plugins().list().await })).await?;
            let documents: Vec<Value> = versions.iter().map(document).collect();
            output::print(json, &json!(documents), || list(&versions))
        }
        Plugin::Describe { plugin } => {
            let (name, version) = text::name_version(&plugin);
            let describing =
                |client: Client| asked(async move { client.plugins().describe(&name, &version).await });
            let found = ask(connection, describing).await?;
            output::print(json, &document(&found), || describe(&found))
        }
        Plugin::Delete { plugin } => {
            let (name, version) = text::name_version(&plugin);
            let deleting =
                |client: Client| asked(async move { client.plugins().delete(&name, &version).await });
            ask(connection, deleting).await?;
            output::print(json, &json!({ "deleted": plugin }), || println!("deleted plugin {plugin}"))
        }
    }
}

/// A request's outcome as a command's.
async fn asked<T>(request: impl Future<Output = Result<T, RequestError>>) -> Result<T, CliError> {
    Ok(request.await?)
}

fn new(name: &str, kind: Kind, json: bool) -> Result<(), CliError> {
    let made = new_crate(Path::new("."), name, kind).map_err(|error| CliError::usage(error.to_string()))?;
    output::print(json, &json!({ "dir": made.dir, "files": made.files }), || {
        println!("made {} ({} files)", made.dir.display(), made.files.len());
        println!("next: cd {} && cargo test && tidemill plugin build", made.dir.display());
    })
}

fn build(dir: &Path, install: bool, json: bool) -> Result<(), CliError> {
    let mut options = Options::from_env();
    options.install |= install;
    let built = build_crate(dir, &options, &mut |line| eprintln!("{line}"))
        .map_err(|error| CliError::other(error.to_string()))?;
    let components: Vec<Value> = built
        .components
        .iter()
        .map(|component| {
            json!({ "name": component.name, "world": component.world.to_string(), "path": component.path,
                "bytes": component.bytes.len() })
        })
        .collect();
    let document = json!({ "toolchain": built.toolchain, "components": components });
    output::print(json, &document, || {
        for component in &built.components {
            println!(
                "{}: a {} of {} in {}",
                component.name,
                component.world,
                output::bytes(component.bytes.len() as u64),
                component.path.display()
            );
            let path = component.path.display();
            println!("next: tidemill plugin test {path} --input FILE, then tidemill plugin upload {path}");
        }
    })
}

async fn upload(
    connection: &Connection,
    file: &Path,
    name: Option<String>,
    version: &str,
) -> Result<(), CliError> {
    let component =
        std::fs::read(file).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    let name = match name {
        Some(name) => name,
        None => file
            .file_stem()
            .and_then(std::ffi::OsStr::to_str)
            .map(str::to_owned)
            .ok_or_else(|| CliError::usage("the file has no name to call the plugin by; say --name"))?,
    };
    let uploading =
        |client: Client| asked(async move { client.plugins().upload(&name, version, component).await });
    let uploaded = ask(connection, uploading).await?;
    output::print(connection.json, &document(&uploaded), || {
        println!("uploaded {}@{}: {}", uploaded.name, uploaded.version, uploaded.summary);
    })
}

fn kind(version: &PluginVersion) -> &'static str {
    match version.kind() {
        PluginKind::Partitioner => "partitioner",
        PluginKind::Filter => "filter",
        PluginKind::Consumer => "consumer",
        PluginKind::Unspecified => "?",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list(versions: &[PluginVersion]) {
    let rows: Vec<Vec<String>> = versions
        .iter()
        .map(|version| {
            vec![
                version.name.clone(),
                version.version.clone(),
                kind(version).to_owned(),
                output::bytes(version.size),
                text::time(version.uploaded_at),
                version.summary.clone(),
            ]
        })
        .collect();
    output::table(&["name", "version", "kind", "size", "uploaded at", "summary"], &rows, &[3]);
}

fn describe(version: &PluginVersion) {
    output::facts(&[
        ("plugin", format!("{}@{}", version.name, version.version)),
        ("kind", kind(version).to_owned()),
        ("summary", version.summary.clone()),
        ("size", output::bytes(version.size)),
        ("blake3", hex(&version.blake3)),
        ("uploaded at", text::time(version.uploaded_at)),
    ]);
    println!();
    let rows: Vec<Vec<String>> = version
        .config
        .iter()
        .map(|key| {
            let default = key.default.clone().unwrap_or_default();
            vec![
                key.name.clone(),
                if key.required { "required".to_owned() } else { default },
                key.doc.clone(),
            ]
        })
        .collect();
    output::table(&["set", "default", "what it does"], &rows, &[]);
}

fn document(version: &PluginVersion) -> Value {
    let config: Vec<Value> = version
        .config
        .iter()
        .map(|key| json!({ "name": key.name, "doc": key.doc, "required": key.required, "default": key.default }))
        .collect();
    json!({
        "name": version.name,
        "version": version.version,
        "kind": kind(version),
        "blake3": hex(&version.blake3),
        "size": version.size,
        "uploaded_at": version.uploaded_at,
        "summary": version.summary,
        "config": config,
    })
}
