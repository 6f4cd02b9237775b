//! Disks that a test can fill or break: each a file system of its own, gone with the test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidemill_cluster_tests::Outcome;
use tidemill_cluster_tests::skips::skipped;

/// Set where a test runs again in a namespace of its own.
const IN_NAMESPACE: &str = "TEST_IN_NAMESPACE";

/// Runs a program; what it says where it fails.
fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

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

/// What of a [`BrittleDisk`]'s directory is the disk.
const IMAGE: &str = "image";

fn attach(image: &Path, mounted: &Path) -> Result<(), String> {
    run("mount", &[OsStr::new("-o"), OsStr::new("loop"), image.as_os_str(), mounted.as_os_str()])
}

/// An ext4 file system on a file, which can be made to fail every access as a broken disk does.
pub(crate) struct BrittleDisk {
    image: tempfile::TempDir,
    mounted: PathBuf,
}

impl BrittleDisk {
    /// Mounts one of 256 MiB; an error where this machine does not let it.
    pub(crate) fn mount(mounted: &Path) -> Result<Self, String> {
        let image = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image_path = image.path().join(IMAGE);
        let file = std::fs::File::create(&image_path).map_err(|error| error.to_string())?;
        file.set_len(256 << 20).map_err(|error| error.to_string())?;
        let arguments = ["-q", "-F", "-b", "4096"].map(OsStr::new);
        run("mkfs.ext4", &[&arguments[..], &[image_path.as_os_str()]].concat())?;
        std::fs::create_dir_all(mounted).map_err(|error| error.to_string())?;
        attach(&image_path, mounted)?;
        let disk = Self { image, mounted: mounted.to_owned() };
        std::fs::remove_dir(mounted.join("lost+found")).map_err(|error| error.to_string())?;
        Ok(disk)
    }

    /// From now on every access fails with EIO, until it is mended.
    #[allow(unsafe_code, reason = "an ioctl is only as safe as its arguments")]
    pub(crate) fn fail(&self) -> Outcome<()> {
        use rustix::ioctl::{Setter, ioctl, opcode};
        /// `FS_IOC_SHUTDOWN`: without a flush of anything.
        const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let root = std::fs::File::open(&self.mounted)?;
        // SAFETY: the operation reads one 32-bit number, and `Setter` hands it one.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }?;
        Ok(())
    }

    /// A disk that works again, with what was durably on it.
    pub(crate) fn mend(&self) -> Outcome<()> {
        run("umount", &[&self.mounted])?;
        Ok(attach(&self.image.path().join(IMAGE), &self.mounted)?)
    }
}

impl Drop for BrittleDisk {
    fn drop(&mut self) {
        unmount(&self.mounted);
    }
}
