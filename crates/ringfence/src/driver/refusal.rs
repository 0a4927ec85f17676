//! What a refusal by the kernel means.

use std::borrow::Cow;
use std::path::Path;

use rustix::io::Errno;

use crate::devices::transition;
use crate::error::{Error, ErrorKind};
use crate::kernel::dir::CgroupDir;
use crate::plan::{Reaction, Step};

/// Of a value. `full` is the path of the directory that is `open`.
pub(super) fn of_write(
    step: &Step,
    open: &CgroupDir,
    full: &Path,
    file: &str,
    value: &str,
    errno: Errno,
) -> Error {
    let (kind, message): (_, Cow<'static, str>) = match step.reaction(errno) {
        Some(Reaction::DeviceRule | Reaction::DeviceReset) => {
            return transition::refusal(full, file, value, errno);
        }
        Some(Reaction::Explain(why) | Reaction::Unsupported(why)) => (ErrorKind::Kernel, why.into()),
        Some(Reaction::MemoryInUse) => {
            let read = |file| open.read(file).unwrap_or_else(|_| "unknown".to_owned());
            let (usage, peak) = if file.starts_with("memory.memsw.") {
                (read("memory.memsw.usage_in_bytes"), read("memory.memsw.max_usage_in_bytes"))
            } else {
                (read("memory.usage_in_bytes"), read("memory.max_usage_in_bytes"))
            };
            let why = format!("more is in use than that: {usage} bytes now, {peak} at the peak");
            (ErrorKind::Busy, why.into())
        }
        Some(Reaction::Defer | Reaction::Skip) | None => (ErrorKind::Kernel, by_errno(errno).into()),
    };
    let error = Error::kernel(message, full.join(file), errno).with_kind(kind).with_value(value.trim_end());
    match &step.setting {
        Some(setting) => error.with_setting(setting.clone()),
        None => error,
    }
}

fn by_errno(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "this cgroup has no such file",
        Errno::ACCESS | Errno::PERM => "no permission to write this file",
        Errno::ROFS => "the cgroup file system is mounted read-only",
        _ => "the kernel refused the value",
    }
}

/// Of a new directory.
pub(super) fn of_directory(path: &Path, errno: Errno) -> Error {
    let (kind, message) = match errno {
        Errno::EXIST => (ErrorKind::AlreadyExists, "there is such a cgroup already"),
        Errno::ACCESS | Errno::PERM => {
            (ErrorKind::Kernel, "no permission to make a cgroup here: it is not delegated to this user")
        }
        Errno::ROFS => (ErrorKind::Kernel, "the cgroup file system is mounted read-only"),
        Errno::AGAIN => {
            (ErrorKind::Kernel, "cgroup.max.descendants or cgroup.max.depth of an ancestor is reached")
        }
        _ => (ErrorKind::Kernel, "cannot make the cgroup"),
    };
    Error::kernel(message, path, errno).with_kind(kind)
}

/// Of a controller for the children of a v2 cgroup.
pub(super) fn of_controller(errno: Errno) -> &'static str {
    match errno {
        Errno::BUSY => {
            "processes are in this cgroup, and cgroup v2 enables controllers only where there are none: move them to a \
             leaf first (--evacuate)"
        }
        Errno::NOENT => "the controller is not offered here: it must be enabled above",
        Errno::OPNOTSUPP => {
            "the cgroup is threaded, or has threaded children: a new one below it could hold no process (its type would be \
             \"domain invalid\"): choose a path elsewhere"
        }
        Errno::ACCESS | Errno::PERM => {
            "no permission to enable controllers here: the subtree is not delegated"
        }
        Errno::ROFS => "the cgroup file system is mounted read-only",
        _ => "the kernel refused to enable the controller",
    }
}
