//! Disks that a test can fill or break: each a file system of its own, gone with the test.

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;

use tidemill_cluster_tests::loop_disk::{LoopDisk, run};
use tidemill_cluster_tests::skips::skipped;

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

/// The calling test can't run here, and is skipped where this machine does not let it. Where only a program is missing, a machine of
/// CI's must get it.
pub(crate) fn unable(programs: &[&str], reason: &str) {
    let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    let is_missing = |program: &&&str| Command::new(**program).arg("--version").output().is_err();
    let missing: Vec<&&str> = programs.iter().filter(is_missing).collect();
    assert!(
        missing.is_empty() || !in_ci,
        "this test must run in CI, and these programs are missing: {missing:?}"
    );
    skipped(reason);
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

/// Of a [`BrittleDisk`].
const BRITTLE_BYTES: u64 = 256 << 20;

/// A [`LoopDisk`] of 256 MiB, whose file goes with it.
pub(crate) struct BrittleDisk {
    // Unmounted first.
    disk: LoopDisk,
    _image: tempfile::TempDir,
}

impl BrittleDisk {
    /// Mounts one; an error where this machine does not let it.
    pub(crate) fn mount(mounted: &Path) -> Result<Self, String> {
        let image = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = LoopDisk::mount(&image.path().join("image"), mounted, BRITTLE_BYTES)?;
        Ok(Self { disk, _image: image })
    }
}

impl Deref for BrittleDisk {
    type Target = LoopDisk;

    fn deref(&self) -> &LoopDisk {
        &self.disk
    }
}
