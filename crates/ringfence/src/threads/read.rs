//! What `/proc` says of a VMM's threads, of the processes that it made, and of the kernel threads that work for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rustix::io::Errno;

use super::{Helper, KernelThread, KernelThreadKind};
use crate::kernel::proc::{self, Stat};
use crate::{Error, ErrorKind, Result};

/// The threads of a process and their names as they are, which may be any bytes. What ends meanwhile is left out.
///
/// # Errors
/// There is no such process, or it has ended.
pub(super) fn threads(pid: u32) -> Result<Vec<(u32, Vec<u8>)>> {
    let threads: Vec<_> =
        proc::threads(pid).into_iter().filter_map(|tid| Some((tid, name(pid, tid)?))).collect();
    if threads.is_empty() || !proc::is_running(pid) { Err(gone(pid)) } else { Ok(threads) }
}

pub(super) fn gone(pid: u32) -> Error {
    Error::new(ErrorKind::Kernel, "there is no such process, or no more")
        .with_value(pid)
        .with_errno(Errno::SRCH)
}

fn name(pid: u32, tid: u32) -> Option<Vec<u8>> {
    let mut name = fs::read(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Some(name)
}

/// When a thread started, in ticks after boot.
pub(super) fn started(pid: u32, tid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    Some(Stat::parse(&stat)?.start_time)
}

/// The threads of a process by the ID that they have in their own PID namespace, which is the one that they know
/// (`NSpid` of `/proc/PID/status`, since Linux 4.1).
pub(super) fn own_ids(pid: u32) -> BTreeMap<u32, u32> {
    let id = |tid: u32| {
        let status = fs::read(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        Some((ids(&status).last().copied().unwrap_or(tid), tid))
    };
    proc::threads(pid).into_iter().filter_map(id).collect()
}

/// The IDs of a process or thread in each PID namespace, ours first, from its `status`.
fn ids(status: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// All processes there are.
fn processes() -> impl Iterator<Item = (u32, Stat)> {
    let entries = fs::read_dir("/proc").ok().into_iter().flatten();
    entries.filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        Some((pid, Stat::read(pid)?))
    })
}

/// The processes that `pid` made, and those that these made, and so on. One whose parent has ended is no longer known as
/// anyone's.
pub(super) fn helpers(pid: u32) -> Vec<Helper> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (child, stat) in processes().filter(|(child, stat)| stat.is_running(*child)) {
        children.entry(stat.parent).or_default().push(child);
    }
    descendants(pid, &children)
        .into_iter()
        .filter_map(|pid| Some(Helper { pid, name: proc::name(pid)? }))
        .collect()
}

fn descendants(pid: u32, children: &BTreeMap<u32, Vec<u32>>) -> BTreeSet<u32> {
    let (mut found, mut next) = (BTreeSet::new(), vec![pid]);
    while let Some(parent) = next.pop() {
        // One whose number went to another while we were reading may be its own ancestor.
        let new = children.get(&parent).into_iter().flatten();
        next.extend(new.copied().filter(|child| *child != pid && found.insert(*child)));
    }
    found
}

/// The kernel threads that are named after a process or one of its threads.
pub(super) fn kernel_threads(pid: u32) -> Vec<KernelThread> {
    let mut owners: BTreeSet<u32> = proc::threads(pid).into_iter().collect();
    owners.insert(pid);
    let is_alone = fs::read(format!("/proc/{pid}/status")).is_ok_and(|status| ids(&status).len() <= 1);
    let known = |(thread, stat): (u32, Stat)| {
        // A process may call itself anything.
        let name = proc::name(thread).filter(|_| stat.is_kernel_thread())?;
        let (kind, owner) = KernelThreadKind::of(&name)?;
        // The timer is named by the number in the VMM's own PID namespace, of which others may have the same.
        let belongs = match kind {
            KernelThreadKind::Timer => owner == pid && is_alone,
            _ => owners.contains(&owner),
        };
        belongs.then_some(KernelThread { pid: thread, name, kind })
    };
    processes().filter_map(known).collect()
}

impl KernelThreadKind {
    /// What a kernel thread of this name is, and the ID of whom it is for.
    pub(super) fn of(name: &str) -> Option<(Self, u32)> {
        let (kind, owner) =
            [("kvm-pit/", Self::Timer), ("vhost-", Self::Vhost), ("kvm-nx-lpage-recovery-", Self::HugePages)]
                .into_iter()
                .find_map(|(prefix, kind)| Some((kind, name.strip_prefix(prefix)?)))?;
        owner.bytes().all(|byte| byte.is_ascii_digit()).then(|| Some((kind, owner.parse().ok()?)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_threads_are_known_by_name_and_owner() {
        use KernelThreadKind::{HugePages, Timer, Vhost};
        for (name, known) in [
            ("kvm-pit/4194304", Some((Timer, 4_194_304))),
            ("vhost-17", Some((Vhost, 17))),
            ("kvm-nx-lpage-recovery-17", Some((HugePages, 17))),
            ("kvm-nx-lpage-re", None),
            ("kvm-pit/", None),
            ("kvm-pit/+1", None),
            ("vhost-", None),
            ("vhost-17 ", None),
            ("vhost-99999999999", None),
            ("kworker/17", None),
        ] {
            assert_eq!(KernelThreadKind::of(name), known, "{name}");
        }
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_a_circle_ends() {
        let children = BTreeMap::from([(1, vec![2, 9]), (2, vec![3, 4]), (4, vec![5]), (5, vec![2, 1])]);
        assert_eq!(descendants(2, &children), BTreeSet::from([1, 3, 4, 5, 9]));
        assert_eq!(descendants(9, &children), BTreeSet::new());
    }

    #[test]
    fn a_threads_own_id_is_the_last_one() {
        assert_eq!(ids(b"Name:\t\xff\nNSpid:\t77\t5\nNSpgid:\t1\n"), [77, 5]);
        assert!(ids(b"Name:\tNSpid:\n").is_empty());
    }
}
