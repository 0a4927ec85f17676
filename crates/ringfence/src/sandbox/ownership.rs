//! Whose a state directory is: what is written there is believed, and decides which processes are killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Refuses a directory in which anybody but this user and root can make, replace or remove files. One that is not there yet
/// is made for us alone.
pub(super) fn is_ours(directory: &Path) -> Result<()> {
    let Ok(found) = fs::metadata(directory) else { return Ok(()) };
    let us = rustix::process::geteuid().as_raw();
    let refused = |why: String| Err(Error::new(ErrorKind::State, why).with_path(directory));
    if found.uid() != us && found.uid() != 0 {
        return refused(format!(
            "the state directory belongs to the user {}, who could forge states: choose another one (--state-dir)",
            found.uid()
        ));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return refused(format!(
            "others may write to the state directory (mode {:04o}) and could forge states: chmod go-w, or choose another \
             one (--state-dir)",
            found.mode() & 0o7777
        ));
    }
    Ok(())
}
