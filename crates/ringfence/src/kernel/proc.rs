//! What `/proc` says of a process.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::kernel::dir::read_file;
use crate::resources::CpuSet;

/// The flag of a kernel thread in `/proc/PID/stat` (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// One process, beyond doubt: a PID alone is used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process ID.
    pub pid: u32,
    /// Start time in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessIdentity {
    /// The identity of a running process; `None` when there is no such process, or it is a zombie. One whose first thread
    /// has ended runs for as long as another of its threads does.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid).filter(|stat| stat.is_running(pid))?;
        Some(Self { pid, start_time: stat.start_time, boot_id: boot_id()?.to_owned() })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}

/// The inode of `/proc/PID/ns/user` of the initial user namespace.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether this process is in the namespace with this inode; so it is where the kernel has no such namespaces.
pub(crate) fn is_in_namespace(link: &str, inode: u64) -> bool {
    rustix::fs::stat(link).map_or(true, |stat| stat.st_ino == inode)
}

/// Whether this process is in the initial user namespace.
pub(crate) fn is_in_initial_user_namespace() -> bool {
    is_in_namespace("/proc/self/ns/user", INITIAL_USER_NAMESPACE)
}

/// It is read once.
pub(crate) fn boot_id() -> Option<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if BOOT_ID.get().is_none() {
        let text = read_text("/proc/sys/kernel/random/boot_id")?;
        _ = BOOT_ID.set(text.trim_end().to_owned());
    }
    BOOT_ID.get().map(String::as_str)
}

fn read_text(path: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&read_file(path).ok()?).into_owned())
}

/// The fields of `/proc/PID/stat` that we use.
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) flags: u64,
    pub(crate) start_time: u64,
}

impl Stat {
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(&read_file(&format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name of the program stands in parentheses and may hold anything, parentheses too.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // The state is field 3 of the line and the first one here.
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }

    /// A process whose first thread has ended is a zombie only when its other threads have too.
    pub(crate) fn is_running(&self, pid: u32) -> bool {
        !matches!(self.state, 'Z' | 'X') || threads(pid).iter().any(|tid| *tid != pid)
    }

    pub(crate) fn is_kernel_thread(&self) -> bool {
        self.flags & KERNEL_THREAD != 0
    }
}

/// Whether there is such a process, and it is no zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.is_running(pid))
}

/// What depends on a process, if it is one on which others depend: from one look at `/proc/PID/status`.
pub(crate) fn system_role(pid: u32) -> Option<&'static str> {
    if pid == 1 {
        return Some("process 1");
    }
    let status = read_text(&format!("/proc/{pid}/status"))?;
    // What has no memory is a kernel thread, or has ended.
    if !status.contains("\nVmSize:") && Stat::read(pid).is_some_and(|stat| stat.is_kernel_thread()) {
        return Some("a kernel thread");
    }
    // Its numbers in this PID namespace and those below (Linux 4.1).
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let is_first = numbers.split_ascii_whitespace().skip(1).last() == Some("1");
    is_first.then_some("the first process of a PID namespace, as of a container")
}

/// The name of a thread or process (`comm`).
pub(crate) fn name(pid: u32) -> Option<String> {
    Some(read_text(&format!("/proc/{pid}/comm"))?.trim_end().to_owned())
}

/// The threads of a process.
pub(crate) fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether there is no such process or thread, and not only that it cannot be looked at.
pub(crate) fn has_ended(tid: u32) -> bool {
    matches!(std::fs::exists(format!("/proc/{tid}")), Ok(false))
}

/// A list of CPUs or memory nodes in the status of the calling thread.
pub(crate) fn own_list(key: &str) -> Option<CpuSet> {
    let status = read_text("/proc/thread-self/status")?;
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim().parse().ok()
}

/// The process of a thread.
pub(crate) fn process_of(tid: u32) -> Option<u32> {
    let status = read_text(&format!("/proc/{tid}/status"))?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Whether a thread counts as stopped for the freezer of cgroup v2: it sleeps there (the function may be inlined in the one
/// that delivers signals, where nothing else sleeps), was stopped before, or has ended.
pub(crate) fn is_stopped_by_freezer(tid: u32) -> bool {
    match Stat::read(tid).map(|stat| stat.state) {
        None | Some('T' | 't' | 'Z' | 'X') => true,
        Some('S') => {
            let wchan = read_text(&format!("/proc/{tid}/wchan")).unwrap_or_default();
            wchan == "get_signal" || wchan.contains("freez")
        }
        Some(_) => false,
    }
}

/// The processes or threads of a list. v2 lists 0 for who has just ended, and for who is of another PID namespace; to write 0
/// moves the writer.
pub(crate) fn numbers(list: &str) -> impl Iterator<Item = u32> + '_ {
    list.lines().filter_map(|number| number.parse().ok()).filter(|number| *number != 0)
}

/// The cgroup of a process in each hierarchy: (controllers as `/proc/PID/cgroup` has them, path).
pub(crate) fn cgroups(pid: u32) -> Option<Vec<(String, String)>> {
    Some(parse_cgroups(&read_text(&format!("/proc/{pid}/cgroup"))?))
}

/// That of this process.
pub(crate) fn own_cgroups() -> Option<Vec<(String, String)>> {
    Some(parse_cgroups(&read_text("/proc/self/cgroup")?))
}

/// Lines of `ID:CONTROLLERS:PATH`.
pub(crate) fn parse_cgroups(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some((controllers.to_owned(), path.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Whether this process has CAP_SYS_RESOURCE, as far as it can be seen.
pub(crate) fn may_use_resources() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = read_text("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_none_or(|caps| caps & SYS_RESOURCE != 0)
}

/// A PID as the kernel's own type; 0 and what does not fit is no process.
pub(crate) fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

/// A process that is about to be signalled. The signal reaches this process or nobody, whoever has its PID by then.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) pid: u32,
    by: HeldBy,
}

#[derive(Debug)]
enum HeldBy {
    Pidfd(OwnedFd),
    /// Before Linux 5.3, or where a seccomp filter refuses pidfd_open(2): compared once more before the signal is sent.
    StartTime(u64),
}

impl Held {
    /// # Errors
    /// ESRCH where there is no such process; EMFILE and ENFILE where no descriptor is left for it.
    pub(crate) fn open(id: u32) -> Result<Self, Errno> {
        let opened = rustix::process::pidfd_open(pid(id).ok_or(Errno::SRCH)?, PidfdFlags::empty());
        let by = match opened {
            Ok(pidfd) => HeldBy::Pidfd(pidfd),
            Err(Errno::NOSYS | Errno::PERM) => {
                HeldBy::StartTime(Stat::read(id).ok_or(Errno::SRCH)?.start_time)
            }
            Err(errno) => return Err(errno),
        };
        Ok(Self { pid: id, by })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        match &self.by {
            HeldBy::Pidfd(pidfd) => match rustix::process::pidfd_send_signal(pidfd, signal) {
                // A seccomp filter may refuse this call alone.
                Err(Errno::NOSYS) if !has_exited(pidfd)? => {
                    rustix::process::kill_process(pid(self.pid).ok_or(Errno::SRCH)?, signal)
                }
                sent => sent,
            },
            HeldBy::StartTime(time) if Stat::read(self.pid).is_some_and(|now| now.start_time == *time) => {
                rustix::process::kill_process(pid(self.pid).ok_or(Errno::SRCH)?, signal)
            }
            HeldBy::StartTime(_) => Err(Errno::SRCH),
        }
    }
}

/// Whether the process of a pidfd has exited.
fn has_exited(pidfd: &OwnedFd) -> Result<bool, Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&now)).map(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_does_not_confuse_the_fields() {
        let line = b"42 (a) R (b c) S 1 42 42 0 -1 2097216 1 0 0 0 0 0 0 0 20 0 1 0 987654 0 0\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start_time), ('S', 1, 987_654));
        assert!(stat.is_kernel_thread());
    }

    #[test]
    fn this_process_is_alive_and_one_with_another_start_time_is_not() {
        let me = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessIdentity { start_time: me.start_time + 1, ..me }.is_alive());
    }

    #[test]
    fn the_number_that_would_be_the_caller_is_nobody_s() {
        assert_eq!(numbers("0\n7\n0\n8").collect::<Vec<_>>(), [7, 8]);
        assert_eq!(numbers("").count(), 0);
    }

    #[test]
    fn a_truncated_line_is_no_process() {
        assert!(Stat::parse(b"42 (a) S 1").is_none());
        assert!(Stat::parse(b"").is_none());
    }
}
