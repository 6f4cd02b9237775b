use std::path::PathBuf;

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
