//! What `tidemill cluster init` writes, once, for the brokers that form a cluster.
//!
//! ```text
//! DIR/cluster.toml   the cluster's id, number of data shards, durability, and the brokers that form it (TOML)
//! DIR/ca.pem         the cluster's authority: what clients and brokers trust
//! DIR/ca.key         its key: every broker has a copy, so that any of them can take in another
//! ```

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_net::{ClusterCa, TlsError};
use tidemill_protocol::{BrokerId, ClusterId};

use crate::config::{DurabilitySetting, SHARDS_OF_SEVERAL_DEFAULT};
use crate::whole_file::write_whole;

/// Newest format of `cluster.toml` that this release reads and writes.
const FORMAT: u32 = 1;
const PLAN_FILE: &str = "cluster.toml";
/// Brokers that may form a cluster together; more are added to it.
pub const FORMING_BROKERS_MAX: usize = 100;

/// The contents of `cluster.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPlan {
    format: u32,
    /// Random, given when the plan was made.
    pub cluster: ClusterId,
    /// Number of data shards, for good.
    pub shards: u16,
    /// When a record counts as written, for good.
    pub durability: DurabilitySetting,
    /// The brokers that form the cluster.
    pub brokers: Vec<BrokerId>,
}

/// Why a cluster's directory can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterDirectoryError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there already: a second plan would be another cluster.
    #[error("{0} holds a cluster already; name another directory, or start the brokers with this one")]
    Exists(PathBuf),
    /// Something else is kept there.
    #[error("{directory} is no place for a plan, it holds {found}; name a directory that is new or empty")]
    Occupied {
        /// Which directory.
        directory: PathBuf,
        /// What was found in it.
        found: String,
    },
    /// What is asked for makes no cluster.
    #[error("{0}")]
    Invalid(String),
    /// There is none.
    #[error(
        "cluster: no plan in {0}; make one with `tidemill cluster init --dir {0} --broker 1 2 3`, and name the directory"
    )]
    NoPlan(PathBuf),
    /// `cluster.toml` does not read.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The authority.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ClusterPlan {
    /// A plan for a new cluster.
    ///
    /// # Errors
    /// The brokers or the number of shards make no cluster.
    pub fn new(
        brokers: impl IntoIterator<Item = u32>,
        shards: Option<u16>,
        durability: Option<DurabilitySetting>,
    ) -> Result<Self, ClusterDirectoryError> {
        let mut brokers: Vec<BrokerId> = brokers.into_iter().map(BrokerId::new).collect();
        brokers.sort_unstable();
        let invalid = |reason: String| Err(ClusterDirectoryError::Invalid(reason));
        if brokers.is_empty() || brokers.len() > FORMING_BROKERS_MAX {
            return invalid(format!(
                "a cluster is formed by 1 to {FORMING_BROKERS_MAX} brokers; name each with --broker"
            ));
        }
        if brokers.iter().any(|broker| broker.get() == 0) {
            return invalid("brokers are numbered from 1".to_owned());
        }
        if let Some(pair) = brokers.windows(2).find(|pair| pair[0] == pair[1]) {
            return invalid(format!("broker {} is named twice", pair[0]));
        }
        let shards = shards.unwrap_or(SHARDS_OF_SEVERAL_DEFAULT);
        if shards == 0 {
            return invalid("a cluster has at least one data shard".to_owned());
        }
        Ok(Self {
            format: FORMAT,
            cluster: ClusterId::new(uuid::Uuid::new_v4()),
            shards,
            durability: durability.unwrap_or(DurabilitySetting::Fsync),
            brokers,
        })
    }

    /// Writes the plan and a new authority into a directory, which is made.
    ///
    /// # Errors
    /// See [`ClusterDirectoryError`].
    pub fn write(&self, directory: &Path) -> Result<(), ClusterDirectoryError> {
        let path = directory.join(PLAN_FILE);
        if path.exists() {
            return Err(ClusterDirectoryError::Exists(directory.to_owned()));
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| ClusterDirectoryError::Io { path, source }
        };
        // The authority's key beside a broker's data would be copied with it, or lost.
        if let Some(found) = something_else(directory).map_err(io(directory))? {
            return Err(ClusterDirectoryError::Occupied { directory: directory.to_owned(), found });
        }
        // It makes the directory, which only the owner may read.
        ClusterCa::open_or_create(directory)?;
        let text = toml::to_string(self).map_err(|error| ClusterDirectoryError::Content {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        // The plan last: where it stands, the authority does too.
        write_whole(directory, PLAN_FILE, &text).map_err(io(&path))
    }

    /// Reads the plan of a directory.
    ///
    /// # Errors
    /// See [`ClusterDirectoryError`].
    pub fn read(directory: &Path) -> Result<Self, ClusterDirectoryError> {
        let path = directory.join(PLAN_FILE);
        let text = std::fs::read_to_string(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ClusterDirectoryError::NoPlan(directory.to_owned()),
            _ => ClusterDirectoryError::Io { path: path.clone(), source },
        })?;
        let content = |reason: String| ClusterDirectoryError::Content { path: path.clone(), reason };
        let plan: Self = toml::from_str(&text)
            .map_err(|error| content(format!("this is no cluster's plan: {}", error.message())))?;
        if plan.format != FORMAT {
            return Err(content(format!(
                "the plan has format {}, this release reads format {FORMAT}: use the release that made it, or a newer one",
                plan.format
            )));
        }
        Ok(plan)
    }
}

/// What a plan that broke off has left: an authority alone, and what any of the files was to become.
const LEFT_BEHIND: [&str; 6] = ["ca.pem", "ca.key", "ca.pem.new", "ca.key.new", "ca.new", "cluster.toml.new"];

/// What a directory holds that is no part of a plan. One that is not there holds nothing.
fn something_else(directory: &Path) -> io::Result<Option<String>> {
    if directory.join("meta").exists() {
        return Ok(Some("a broker's data".to_owned()));
    }
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !LEFT_BEHIND.contains(&name.as_str()) {
            return Ok(Some(format!("'{name}'")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_plan_is_written_once_and_reads_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cluster");
        let plan = ClusterPlan::new([3, 1, 2], None, Some(DurabilitySetting::Replicated)).expect("a plan");
        plan.write(&path).expect("written");
        let read = ClusterPlan::read(&path).expect("reads");
        assert_eq!(read, plan);
        assert_eq!(read.brokers, [1, 2, 3].map(BrokerId::new));
        assert!(path.join("ca.pem").exists() && path.join("ca.key").exists());
        let again = plan.write(&path).expect_err("it is there");
        assert!(again.to_string().contains("holds a cluster already"), "{again}");
    }

    #[test]
    fn a_plan_that_broke_off_is_made_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cluster");
        let plan = ClusterPlan::new([1, 2, 3], None, None).expect("a plan");
        plan.write(&path).expect("written");
        let mode = std::fs::metadata(&path).expect("a directory").permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "the key is in it");
        let authority = || std::fs::read(path.join("ca.key")).expect("the key");
        let key = authority();
        // The longer ago, the less is there.
        for lost in ["cluster.toml", "ca.pem"] {
            std::fs::remove_file(path.join(PLAN_FILE)).expect("it is there");
            if lost != PLAN_FILE {
                std::fs::remove_file(path.join(lost)).expect("it is there");
            }
            for left in ["ca.pem.new", "ca.key.new", "cluster.toml.new"] {
                std::fs::write(path.join(left), "half of something").expect("written");
            }
            plan.write(&path).unwrap_or_else(|error| panic!("without {lost}: {error}"));
            assert_eq!(ClusterPlan::read(&path).expect("reads"), plan);
            assert_eq!(authority(), key);
            ClusterCa::open(&path).expect("a whole authority");
            assert!(!path.join("cluster.toml.new").exists(), "it has become the plan");
        }
    }

    #[test]
    fn a_plan_has_a_directory_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = ClusterPlan::new([1], None, None).expect("a plan");
        std::fs::write(dir.path().join("notes"), "").expect("written");
        let refused = plan.write(dir.path()).expect_err("something is there").to_string();
        assert!(refused.contains("it holds 'notes'"), "{refused}");
        std::fs::write(dir.path().join("meta"), "").expect("written");
        let refused = plan.write(dir.path()).expect_err("a broker's").to_string();
        assert!(refused.contains("a broker's data"), "{refused}");
        assert!(!dir.path().join("ca.key").exists(), "nothing is written");
    }

    #[test]
    fn what_makes_no_cluster_is_refused() {
        for (brokers, shards, said) in [
            (vec![], None, "name each with --broker"),
            (vec![1, 2, 1], None, "named twice"),
            (vec![0, 1], None, "numbered from 1"),
            (vec![1], Some(0), "at least one data shard"),
        ] {
            let refused = ClusterPlan::new(brokers, shards, None).expect_err("refused").to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn plans_of_others_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = ClusterPlan::read(dir.path()).expect_err("nothing there").to_string();
        let directory = dir.path().display().to_string();
        assert!(missing.starts_with(&format!("cluster: no plan in {directory}; ")), "{missing}");
        assert!(missing.contains(&format!("tidemill cluster init --dir {directory} ")), "{missing}");
        let path = dir.path().join(PLAN_FILE);
        let text = toml::to_string(&ClusterPlan::new([1], None, None).expect("a plan")).expect("encodes");
        std::fs::write(&path, text.replace("format = 1", "format = 9")).expect("written");
        let newer = ClusterPlan::read(dir.path()).expect_err("newer");
        assert!(newer.to_string().contains("format 9"), "{newer}");
        std::fs::write(&path, "hello").expect("written");
        assert!(
            ClusterPlan::read(dir.path()).expect_err("nonsense").to_string().contains("no cluster's plan")
        );
    }
}
