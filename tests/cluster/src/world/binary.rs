use std::path::PathBuf;

use tokio::process::Command;

use super::WorldError;

/// The broker's binary: `TIDEMILL_BIN`, else beside this program, as cargo puts it.
///
/// # Errors
/// It was not built.
pub fn tidemill_binary() -> Result<PathBuf, WorldError> {
    if let Some(named) = std::env::var_os("TIDEMILL_BIN") {
        let named = PathBuf::from(named);
        return if named.is_file() { Ok(named) } else { Err(WorldError::NoBinary(named)) };
    }
    let here = std::env::current_exe().unwrap_or_default();
    // A binary lies in target/PROFILE, a test in target/PROFILE/deps.
    let mut places = here.ancestors().skip(1).take(2).map(|dir| dir.join("tidemill"));
    places.find(|place| place.is_file()).ok_or_else(|| {
        let dir = here.ancestors().find(|dir| dir.ends_with("debug") || dir.ends_with("release"));
        WorldError::NoBinary(dir.unwrap_or(&here).join("tidemill"))
    })
}

/// Leaves out of a command's environment what is for the binary: the tests' own variables are no settings, and what a developer has set
/// must not decide how a test ends.
pub(super) fn without_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TIDEMILL_"))
    {
        command.env_remove(name);
    }
}
