//! Writing a new plugin crate, with the SDK that it needs beside it.
//!
//! ```text
//!   NAME/Cargo.toml  src/lib.rs  README.md  .gitignore
//!   NAME/sample.txt                      records for `tidemill plugin test`
//!   NAME/wit/plugin.wit                  the contract, to read and for the SDK to build from
//!   NAME/vendor/tidemill-plugin/         the SDK, as this build of Tidemill knows it
//! ```

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::embedded::{SDK_FILES, SDK_MANIFEST};

/// The longest name of a plugin.
const NAME_BYTES_MAX: usize = 64;

/// What a new plugin starts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keeps the events of one device.
    Filter,
    /// Places records by the domain of an address.
    Partitioner,
    /// Counts in keyed state, and emits.
    Consumer,
    /// Makes any number of records of each one.
    Transform,
}

/// A crate that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCrate {
    /// Where.
    pub dir: PathBuf,
    /// Every file, relative to it.
    pub files: Vec<PathBuf>,
}

/// Why no crate was written.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// Not a name for a plugin.
    #[error(
        "{name:?} is not a name for a plugin: small letters, digits and dashes, a letter first, at most {NAME_BYTES_MAX}"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Something is there already.
    #[error("{} is there already: choose another name or another directory", .dir.display())]
    Exists {
        /// Where.
        dir: PathBuf,
    },
    /// A file can't be written.
    #[error("{}: {error}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "filter" => Ok(Self::Filter),
            "partitioner" => Ok(Self::Partitioner),
            "consumer" => Ok(Self::Consumer),
            "transform" => Ok(Self::Transform),
            _ => Err(format!(
                "{text:?} is not a kind of plugin: choose filter, partitioner, consumer or transform"
            )),
        }
    }
}

impl Kind {
    fn library(self) -> &'static str {
        match self {
            Self::Filter => include_str!("../templates/filter.rs"),
            Self::Partitioner => include_str!("../templates/partitioner.rs"),
            Self::Consumer => include_str!("../templates/consumer.rs"),
            Self::Transform => include_str!("../templates/transform.rs"),
        }
    }

    /// Records to try it on.
    fn sample(self) -> &'static str {
        match self {
            Self::Filter => concat!(
                "{\"device\":\"phone\",\"song\":1}\n",
                "{\"device\":\"tablet\",\"song\":2}\n",
                "{\"device\":\"phone\",\"song\":3}\n",
                "this is not JSON\n"
            ),
            Self::Partitioner => "eu/4711=first\neu/4712=second\nus/4711=third\n",
            Self::Consumer => "ann:7\nbob:3\nann:5\nann:9\nbob:many\n",
            Self::Transform => "to be or not\nonly this\n",
        }
    }

    /// How `tidemill plugin test` reads them, and what the plugin needs.
    fn tested_with(self) -> &'static str {
        match self {
            Self::Filter => "--set device=phone",
            Self::Partitioner => "--key-separator = --partitions 4",
            Self::Consumer => "--key-separator : --target records",
            Self::Transform => "--target words",
        }
    }

    /// How the deployment of such a plugin is asked for.
    fn deployed_as(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Partitioner => "partitioner",
            Self::Consumer | Self::Transform => "consumer",
        }
    }
}

/// Writes a crate called `name` into a new directory of that name in `parent`. Its test passes, and it builds as a component.
pub fn new_crate(parent: &Path, name: &str, kind: Kind) -> Result<NewCrate, NewError> {
    let first_is_letter = name.starts_with(|c: char| c.is_ascii_lowercase());
    let plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !first_is_letter || !plain || name.ends_with('-') || name.len() > NAME_BYTES_MAX {
        return Err(NewError::Name { name: name.to_owned() });
    }
    let dir = parent.join(name);
    if dir.exists() {
        return Err(NewError::Exists { dir });
    }
    let filled = |template: &str| {
        let crate_name = name.replace('-', "_");
        template
            .replace("{name}", name)
            .replace("{crate}", &crate_name)
            .replace("{kind}", kind.deployed_as())
            .replace("{test}", kind.tested_with())
    };
    let own = [
        ("Cargo.toml", filled(include_str!("../templates/manifest.toml"))),
        ("src/lib.rs", kind.library().to_owned()),
        ("README.md", filled(include_str!("../templates/readme.md"))),
        ("sample.txt", kind.sample().to_owned()),
        (".gitignore", "/target\n".to_owned()),
        ("vendor/tidemill-plugin/Cargo.toml", SDK_MANIFEST.to_owned()),
    ];
    let sdk = SDK_FILES.iter().map(|(file, text)| (*file, (*text).to_owned()));
    let mut files = Vec::new();
    for (file, text) in own.into_iter().chain(sdk) {
        write(&dir.join(file), &text)?;
        files.push(PathBuf::from(file));
    }
    Ok(NewCrate { dir, files })
}

fn write(path: &Path, text: &str) -> Result<(), NewError> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, text))
        .map_err(|error| NewError::Write { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_crate_stands_on_its_own() {
        let parent = tempfile::tempdir().unwrap();
        let made = new_crate(parent.path(), "only-phones", Kind::Filter).unwrap();
        let read = |file: &str| fs::read_to_string(made.dir.join(file)).unwrap();
        assert!(read("Cargo.toml").contains("name = \"only-phones\""));
        assert!(read("vendor/tidemill-plugin/Cargo.toml").contains("wit-bindgen = {"));
        assert!(read("wit/plugin.wit").contains("package tidemill:plugin@"));
        assert!(read("README.md").contains("only_phones") || read("README.md").contains("only-phones"));
        for file in &made.files {
            let text = read(file.to_str().unwrap());
            assert!(!text.contains("workspace = true"), "{} inherits", file.display());
        }
        assert!(matches!(
            new_crate(parent.path(), "only-phones", Kind::Filter),
            Err(NewError::Exists { .. })
        ));
    }

    #[test]
    fn names_are_checked() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["", "Ab", "1a", "a b", "a/b", "..", "a_b", "-a", "a-", &"a".repeat(65)] {
            assert!(
                matches!(new_crate(parent.path(), name, Kind::Filter), Err(NewError::Name { .. })),
                "{name}"
            );
        }
        assert!("sink".parse::<Kind>().unwrap_err().contains("choose filter"));
    }
}
