//! The mark that says whose a cgroup is.
//!
//! An extended attribute (`trusted.ringfence`; kernfs has had these since Linux 3.7) on the cgroup's directory in one
//! hierarchy: in the v2 tree where there is one, else in the first of v1. Without CAP_SYS_ADMIN it is `user.ringfence`
//! (Linux 5.7), which counts only for those who have not that capability either: anybody may set it on what is theirs.

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::host::Host;
use crate::kernel::dir::{CgroupDir, path_of_descriptor};
use crate::path::DRAINED;

const MARK: &str = "trusted.ringfence";
const USER_MARK: &str = "user.ringfence";

/// Marks a directory. Where the kernel or the lack of privilege forbids it, the directory goes without.
pub(crate) fn mark(dir: &CgroupDir, text: &str) {
    let Ok(open) = dir.descriptor() else { return };
    let dir = path_of_descriptor(open.as_fd());
    let set = |name| rustix::fs::setxattr(&*dir, name, text.as_bytes(), XattrFlags::empty());
    if set(MARK) == Err(Errno::PERM) {
        _ = set(USER_MARK);
    }
}

/// Marks a leaf as taking what is drained: nobody's when it is empty.
pub(crate) fn mark_drained(dir: &CgroupDir) {
    mark(dir, DRAINED);
}

pub(crate) fn mark_of(dir: &CgroupDir) -> Option<String> {
    let open = dir.descriptor().ok()?;
    let (dir, mut buffer) = (path_of_descriptor(open.as_fd()), [0_u8; 512]);
    let mut get = |name| rustix::fs::getxattr(&*dir, name, &mut buffer);
    let length = match get(MARK) {
        Err(Errno::NODATA) if !rustix::process::geteuid().is_root() => get(USER_MARK),
        done => done,
    };
    let length = length.ok()?;
    String::from_utf8(buffer.get(..length)?.to_vec()).ok()
}

/// The hierarchy that carries the marks.
pub(crate) fn marked_hierarchy(host: &Host) -> usize {
    let unified = host.unified().map(|(index, _)| index);
    let delegated =
        host.delegation.as_ref().filter(|_| host.rootless).map(|given| given.hierarchies.as_slice());
    match (unified, delegated) {
        (Some(unified), Some(delegated)) if delegated.contains(&unified) => unified,
        (_, Some([first, ..])) => *first,
        (unified, _) => unified.unwrap_or(0),
    }
}
