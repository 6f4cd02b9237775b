//! A disk that can fill up, fail, and lose its power: an ext4 file system on a file. Whoever may not mount such has none.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Outcome;

/// Attempts to unmount: who has just been killed may have children that go in a moment.
const UNMOUNT_ATTEMPTS: u32 = 100;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);
/// Takes up the room.
const FILLER: &str = "filler";

/// Runs a program.
///
/// # Errors
/// What it says where it fails.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn attach(image: &Path, mounted: &Path) -> Result<(), String> {
    run("mount", &[OsStr::new("-o"), OsStr::new("loop"), image.as_os_str(), mounted.as_os_str()])
}

fn detach(mounted: &Path) -> Result<(), String> {
    let mut attempt = 0;
    loop {
        match run("umount", &[mounted]) {
            Err(_) if attempt < UNMOUNT_ATTEMPTS => std::thread::sleep(UNMOUNT_PAUSE),
            outcome => return outcome,
        }
        attempt += 1;
    }
}

/// A file system on a file. Unmounted when it is dropped; the file stays.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    mounted: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many bytes in the file `image`, which takes only what is written to it, and mounts it.
    ///
    /// # Errors
    /// This machine does not let it, and why.
    pub fn mount(image: &Path, mounted: &Path, bytes: u64) -> Result<Self, String> {
        let file = File::create(image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        let arguments = ["-q", "-F", "-b", "4096", "-m", "0"].map(OsStr::new);
        run("mkfs.ext4", &[&arguments[..], &[image.as_os_str()]].concat())?;
        std::fs::create_dir_all(mounted).map_err(|error| error.to_string())?;
        attach(image, mounted)?;
        let disk = Self { image: image.to_owned(), mounted: mounted.to_owned() };
        std::fs::remove_dir(mounted.join("lost+found")).map_err(|error| error.to_string())?;
        Ok(disk)
    }

    /// From now on every access fails with EIO, and nothing that was not flushed reaches the file, until it is mended. What was written with
    /// direct I/O is in the file already, flushed or not.
    ///
    /// # Errors
    /// The file system refuses it.
    #[allow(unsafe_code, reason = "an ioctl is only as safe as its arguments")]
    pub fn fail(&self) -> Outcome<()> {
        use rustix::ioctl::{Setter, ioctl, opcode};
        /// `FS_IOC_SHUTDOWN`: without a flush of anything.
        const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.mounted)?;
        // SAFETY: the operation reads one 32-bit number, and `Setter` hands it one.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }?;
        Ok(())
    }

    /// A disk that works again, with what was durably on it. Nobody may use it.
    ///
    /// # Errors
    /// It can't be unmounted or mounted.
    pub fn mend(&self) -> Outcome<()> {
        detach(&self.mounted)?;
        Ok(attach(&self.image, &self.mounted)?)
    }

    /// Leaves so many bytes free.
    ///
    /// # Errors
    /// What the file system says.
    pub fn fill(&self, leave_bytes: u64) -> Outcome<()> {
        let space = rustix::fs::statvfs(&self.mounted).map_err(io::Error::from)?;
        let take = (space.f_bavail * space.f_frsize).saturating_sub(leave_bytes);
        if take > 0 {
            let filler = File::create(self.mounted.join(FILLER))?;
            match rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, take) {
                // Somebody was faster; what there was is taken.
                Ok(()) | Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Unmounts it for good, and lets go of its file. Nobody may use it.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn discard(self) -> io::Result<()> {
        let image = self.image.clone();
        drop(self);
        std::fs::remove_file(image)
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clear(&self) -> Outcome<()> {
        match std::fs::remove_file(self.mounted.join(FILLER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.mounted) {
            eprintln!("{} is still mounted: {error}", self.mounted.display());
        }
    }
}

/// Of a [`BrittleDisk`].
const BRITTLE_BYTES: u64 = 256 << 20;

/// A [`LoopDisk`] of 256 MiB, whose file goes with it.
pub struct BrittleDisk {
    // Unmounted first.
    disk: LoopDisk,
    _image: tempfile::TempDir,
}

impl BrittleDisk {
    /// Mounts one.
    ///
    /// # Errors
    /// This machine does not let it, and why.
    pub fn mount(mounted: &Path) -> Result<Self, String> {
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
