//! The mark that says whose a cgroup is.
//!
//! An extended attribute (`trusted.ringfence`; kernfs has had these since Linux 3.7) on the cgroup's directory in one
//! hierarchy: in the v2 tree where there is one, else in the first of v1.

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;

use crate::host::Host;
use crate::kernel::dir::CgroupDir;
use crate::path::DRAINED;

const MARK: &str = "trusted.ringfence";

/// Marks a directory. Where the kernel or the lack of privilege forbids it, the directory goes without.
pub(crate) fn mark(dir: impl AsFd, text: &str) {
    _ = rustix::fs::fsetxattr(dir, MARK, text.as_bytes(), XattrFlags::empty());
}

/// Marks a leaf as taking what is drained: nobody's when it is empty.
pub(crate) fn mark_drained(dir: impl AsFd) {
    mark(dir, DRAINED);
}

pub(crate) fn mark_of(dir: &CgroupDir) -> Option<String> {
    let mut buffer = [0_u8; 512];
    let length = rustix::fs::fgetxattr(dir, MARK, &mut buffer).ok()?;
    String::from_utf8(buffer.get(..length)?.to_vec()).ok()
}

/// The hierarchy that carries the marks.
pub(crate) fn marked_hierarchy(host: &Host) -> usize {
    host.unified().map_or(0, |(index, _)| index)
}
