//! Disks that a test can fill: each a file system of its own, gone with the test.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use tidemill_cluster_tests::loop_disk::run;
use tidemill_cluster_tests::machine::unable;

/// Set where a test runs again in a namespace of its own.
const IN_NAMESPACE: &str = "TEST_IN_NAMESPACE";

fn unmount(path: &Path) {
    if let Err(error) = run("umount", &[path]) {
        eprintln!("{} is still mounted: {error}", path.display());
    }
}

/// A small file system in memory.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one with the options of a tmpfs. Where this process may not, the test runs again in a user and mount namespace of its own, in
    /// which it may; and where that is not allowed either, it says that it is skipped. Then there is nothing left to do here: `None`.
    pub(crate) fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let arguments: [&OsStr; 6] = [
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-o".as_ref(),
            options.as_ref(),
            "tmpfs".as_ref(),
            dir.path().as_os_str(),
        ];
        match run("mount", &arguments) {
            Ok(()) => return Some(Self(dir)),
            Err(reason) => in_namespace(&reason),
        }
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path());
    }
}

/// Runs the calling test again where it may mount, or says why it can't.
fn in_namespace(why_not_here: &str) {
    const NAMESPACE: [&str; 3] = ["--user", "--map-root-user", "--mount"];
    // The test's name, but where the harness runs tests on its own thread.
    let test = std::thread::current().name().map(str::to_owned).filter(|name| name.contains("::"));
    let skipped = |reason: &str| {
        unable(&["mount", "unshare"], &format!("no small disk can be mounted here: {reason}"));
    };
    let Some(test) = test.filter(|_| std::env::var_os(IN_NAMESPACE).is_none()) else {
        return skipped(why_not_here);
    };
    if let Err(reason) = run("unshare", &[&NAMESPACE[..], &["true"]].concat()) {
        return skipped(&format!("{why_not_here}; {reason}"));
    }
    let program = std::env::current_exe().expect("this program");
    let mut again = Command::new("unshare");
    again.args(NAMESPACE).arg(program).args(["--exact", &test, "--nocapture"]).env(IN_NAMESPACE, "1");
    let status = again.status().expect("unshare runs");
    assert!(status.success(), "{test} failed in a namespace of its own: {status}");
}
