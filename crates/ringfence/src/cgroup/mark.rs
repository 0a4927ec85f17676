//! The mark on a cgroup directory: which creation made it.
//!
//! An extended attribute, `trusted.ringfence` (cgroupfs: Linux 3.7), on each directory in each hierarchy. A process without
//! CAP_SYS_ADMIN in the initial user namespace sets `user.ringfence` instead (Linux 5.7). That one is read only by processes
//! without the capability, because the owner of a delegated directory can set it.
//!
//! Before a directory is removed, or processes in it are killed or moved, its mark is compared with the recorded one. A
//! directory with another mark, or with none, belongs to somebody else. One without a mark whose mode has the sticky bit was
//! made by a creation that has not marked it yet: the kernel makes and marks in two steps.

use std::fmt;
use std::os::fd::AsFd;
use std::str::FromStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use rustix::thread::CapabilitySet;

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::dir::{CgroupDir, path_of_descriptor};
use crate::kernel::proc;
use crate::path::DRAINED;

const TRUSTED: &str = "trusted.ringfence";
const USER: &str = "user.ringfence";

/// The mark of a directory above a sandbox that was made on the way. Any store may remove it when it is empty.
pub(crate) const ANCESTOR: &str = "ancestor";

/// What stands before the slash in the mark of a cgroup that is no sandbox.
const CGROUP: &str = "cgroup";

/// A random number of 128 bits, printed as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(u128);

impl Identity {
    /// A new one, from the kernel's random number generator.
    ///
    /// # Errors
    /// getrandom(2) is denied.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0_u8; 16];
        let filled = rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty());
        match filled.map_err(|errno| Error::new(ErrorKind::Kernel, "getrandom failed").with_errno(errno))? {
            16 => Ok(Self(u128::from_ne_bytes(bytes))),
            _ => Err(Error::new(ErrorKind::Kernel, "getrandom returned less than 16 bytes")),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_plain);
        number.map(Self).ok_or_else(|| Error::invalid("identity", text, "expected 32 hexadecimal digits"))
    }
}

/// The description of a unit of systemd, which carries its mark.
pub(crate) fn describe(what: &str, mark: &str) -> String {
    format!("{what} ({mark})")
}

/// Whether a description of a unit carries this mark.
pub(crate) fn is_described(description: &str, mark: &str) -> bool {
    let rest = description.strip_suffix(')').and_then(|rest| rest.strip_suffix(mark));
    rest.is_some_and(|rest| rest.ends_with(" ("))
}

/// The mark of a new sandbox: `STORE/CREATION`, or `-/CREATION` outside of any store.
///
/// # Errors
/// Those of [`Identity::random`].
pub(crate) fn new_mark(store: Option<Identity>) -> Result<String> {
    let store = store.map_or_else(|| "-".to_owned(), |store| store.to_string());
    Ok(format!("{store}/{}", Identity::random()?))
}

/// The mark of a cgroup that is no sandbox: sandboxes can be made in it.
///
/// # Errors
/// Those of [`Identity::random`].
pub(crate) fn new_cgroup_mark() -> Result<String> {
    Ok(format!("{CGROUP}/{}", Identity::random()?))
}

/// The store in the mark of a sandbox.
pub(crate) fn store_of(mark: &str) -> Option<Identity> {
    let (store, creation) = mark.split_once('/')?;
    creation.parse::<Identity>().ok()?;
    store.parse().ok()
}

/// Whether a mark is one of a sandbox, of whatever store.
pub(crate) fn is_of_sandbox(mark: &str) -> bool {
    mark.split_once('/')
        .is_some_and(|(store, creation)| store != CGROUP && creation.parse::<Identity>().is_ok())
}

/// Whether a mark was written by a version that marked one hierarchy alone, with the path of its state directory.
pub(crate) fn is_legacy(mark: &str) -> bool {
    mark.starts_with("store:")
}

/// Marks a directory that carries no mark. `false` where this kernel or a lack of privilege does not allow attributes.
///
/// # Errors
/// `EEXIST`: it carries a mark already. `ENOENT`: it was removed.
pub(crate) fn mark(dir: &CgroupDir, text: &str) -> Result<bool, Errno> {
    let open = dir.descriptor()?;
    let path = path_of_descriptor(open.as_fd());
    let set = |name| rustix::fs::setxattr(&*path, name, text.as_bytes(), XattrFlags::CREATE);
    let done = match set(TRUSTED) {
        Err(Errno::PERM) => set(USER),
        done => done,
    };
    match done {
        Ok(()) => Ok(true),
        Err(errno @ (Errno::EXIST | Errno::NOENT | Errno::NODEV)) => Err(errno),
        Err(_) => Ok(false),
    }
}

/// Marks a leaf that takes drained processes: any store may remove it when it is empty.
pub(crate) fn mark_drained(dir: &CgroupDir) {
    _ = mark(dir, DRAINED);
}

/// The mark of a directory.
pub(crate) fn mark_of(dir: &CgroupDir) -> Option<String> {
    let open = dir.descriptor().ok()?;
    let (path, mut buffer) = (path_of_descriptor(open.as_fd()), [0_u8; 512]);
    let mut get = |name| rustix::fs::getxattr(&*path, name, &mut buffer);
    let length = match get(TRUSTED) {
        Err(Errno::NODATA) if !is_trusted() => get(USER),
        done => done,
    };
    let length = length.ok()?;
    String::from_utf8(buffer.get(..length)?.to_vec()).ok()
}

/// Whether a directory was made by a creation that died before it marked it, or that is about to.
pub(crate) fn is_unfinished(dir: &CgroupDir) -> bool {
    mark_of(dir).is_none() && dir.is_made_by_us()
}

/// Whether a directory was made on the way to a sandbox.
pub(crate) fn is_ancestor(dir: &CgroupDir) -> bool {
    match mark_of(dir) {
        Some(mark) => mark == ANCESTOR,
        None => dir.is_made_by_us(),
    }
}

/// Whether this process may set trusted attributes: CAP_SYS_ADMIN in the initial user namespace.
fn is_trusted() -> bool {
    let is_admin = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    is_admin && proc::is_in_initial_user_namespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_names_store_and_creation() {
        let store = Identity::random().unwrap();
        let mark = new_mark(Some(store)).unwrap();
        assert_eq!((store_of(&mark), is_of_sandbox(&mark), is_legacy(&mark)), (Some(store), true, false));
        assert_ne!(mark, new_mark(Some(store)).unwrap());
        let outside = new_mark(None).unwrap();
        assert_eq!((store_of(&outside), is_of_sandbox(&outside)), (None, true));
        let cgroup = new_cgroup_mark().unwrap();
        for other in [&*cgroup, ANCESTOR, DRAINED, "store:/run/ringfence", "a/b", ""] {
            assert!(store_of(other).is_none() && !is_of_sandbox(other), "{other}");
        }
        let described = describe("Ringfence sandbox a:b:c", &mark);
        assert!(is_described(&described, &mark) && !is_described(&described, &outside));
        assert_eq!(store.to_string().parse::<Identity>().unwrap(), store);
        for bad in ["", "12", "+0000000000000000000000000000000", &"0".repeat(33)] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
