//! Finding what a virtual machine consists of: vCPU and I/O threads, helpers, kernel threads.
//!
//! vCPU threads are told by QEMU itself ([`Qmp`]), or known by the names that a VMM gives them ([`ThreadNames`]). Whatever
//! is claimed, only threads of the VMM's own process are ever found: a VMM that lies can only misplace itself.

mod names;
pub(crate) mod qmp;
mod read;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use names::{NamePattern, ThreadNames, Vmm};
pub use qmp::Qmp;

use crate::kernel::poll::Deadline;
use crate::{Error, ErrorKind, Result};

/// What a virtual machine consists of, beside the threads of its VMM that are none of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmmThreads {
    /// Process ID of the VMM.
    pub pid: u32,
    /// The vCPU threads, by number. Where one thread runs several vCPUs (QEMU with `-accel tcg,thread=single`), it is here
    /// for each of them.
    pub vcpus: Vec<VcpuThread>,
    /// The I/O threads, by ID, where the VMM tells them.
    pub io_threads: Vec<IoThread>,
    /// Processes that the VMM made; empty unless asked for ([`VmmThreads::with_helpers`]).
    pub helpers: Vec<Helper>,
    /// Kernel threads; empty unless asked for ([`VmmThreads::with_kernel_threads`]).
    pub kernel_threads: Vec<KernelThread>,
}

/// The thread that runs a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VcpuThread {
    /// The vCPU's number, from 0. There may be gaps where vCPUs were unplugged.
    pub index: u32,
    /// Thread ID.
    pub tid: u32,
}

/// A thread for the I/O of block devices and the like.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IoThread {
    /// The name that its maker gave it (QEMU: `-object iothread,id=ID`); by thread name only the first 12 bytes of it.
    pub id: String,
    /// Thread ID.
    pub tid: u32,
}

/// A process that works for the VMM, such as virtiofsd or swtpm.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Helper {
    /// Process ID.
    pub pid: u32,
    /// The kernel's name of it (`comm`).
    pub name: String,
}

/// A kernel thread that works for the VMM, and is none of its threads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct KernelThread {
    /// Its ID.
    pub pid: u32,
    /// The kernel's name of it.
    pub name: String,
    /// What it does.
    pub kind: KernelThreadKind,
}

/// What a kernel thread does for a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KernelThreadKind {
    /// `kvm-pit/PID`: the emulated i8254 timer (x86). It starts in the root cgroup. Not found for a VMM in a PID namespace of
    /// its own: its name has the number there.
    Timer,
    /// `vhost-TID`: moves the data of a virtio device. Before Linux 6.4 only; later ones are threads of the VMM.
    Vhost,
    /// `kvm-nx-lpage-recovery-PID`: puts huge pages together again. Before Linux 6.14 only; later it is a thread of the VMM.
    /// Known by name since Linux 5.17, which keeps the names of kernel threads whole.
    HugePages,
}

/// How many vCPUs are expected, and how long to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    vcpus: Option<u32>,
    within: Duration,
}

impl Expect {
    /// At least `vcpus` of them. A VMM that was given more meanwhile (hotplug) has as many as are found.
    pub const fn vcpus(vcpus: u32) -> Self {
        Self { vcpus: Some(vcpus), within: Duration::from_secs(5) }
    }

    /// At least one.
    pub const fn any() -> Self {
        Self { vcpus: None, within: Duration::from_secs(5) }
    }

    /// How long to wait; 5 s unless given.
    pub const fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    const fn least(self) -> u32 {
        match self.vcpus {
            Some(vcpus) => vcpus,
            None => 1,
        }
    }
}

/// A way to find the vCPU threads of a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finder {
    /// QEMU's monitor at this socket tells them.
    Qmp(PathBuf),
    /// They are known by their names.
    Names(ThreadNames),
}

impl From<Vmm> for Finder {
    fn from(vmm: Vmm) -> Self {
        Self::Names(vmm.into())
    }
}

impl From<ThreadNames> for Finder {
    fn from(names: ThreadNames) -> Self {
        Self::Names(names)
    }
}

impl Finder {
    /// Asks QEMU's monitor at this socket.
    pub fn qmp(socket: impl Into<PathBuf>) -> Self {
        Self::Qmp(socket.into())
    }

    /// Finds the vCPU and I/O threads of a VMM, and looks again until there are as many vCPUs as expected.
    ///
    /// # Errors
    /// Too few of them in time: the error says how many there were, and how the threads that there were are called. The
    /// process has ended. QEMU's monitor cannot be reached, refuses, or names a thread that is none of the process.
    pub fn find(&self, pid: u32, expect: Expect) -> Result<VmmThreads> {
        let deadline = Deadline::after(expect.within);
        match self {
            Self::Names(names) => search(pid, expect, deadline, || by_name(pid, names, expect)),
            Self::Qmp(socket) => {
                let mut qmp = Qmp::connect_by(socket, deadline, || read::threads(pid).map(drop))?;
                search(pid, expect, deadline, || {
                    by_qmp(pid, &mut qmp, deadline).map_err(|error| unless_gone(pid, error))
                })
            }
        }
    }
}

impl VmmThreads {
    /// Adds the processes that the VMM made, and those that these made. One whose parent has ended is not found: it is no
    /// longer known whose it is.
    #[must_use]
    pub fn with_helpers(mut self) -> Self {
        self.helpers = read::helpers(self.pid);
        self
    }

    /// Adds the kernel threads that are named after the VMM or one of its threads.
    #[must_use]
    pub fn with_kernel_threads(mut self) -> Self {
        self.kernel_threads = read::kernel_threads(self.pid);
        self
    }
}

/// What one look has found.
struct Look {
    vcpus: Vec<VcpuThread>,
    io_threads: Vec<IoThread>,
    /// What was said to be a thread of the VMM and is none: it has just ended, or it is another's.
    strangers: BTreeSet<u32>,
}

fn search(
    pid: u32,
    expect: Expect,
    deadline: Deadline,
    mut look: impl FnMut() -> Result<Look>,
) -> Result<VmmThreads> {
    const LONGEST: Duration = Duration::from_millis(100);
    let mut pause = Duration::from_millis(1);
    let mut last = None;
    loop {
        let Look { vcpus, io_threads, strangers } = match (look(), &last) {
            (Ok(look), _) => look,
            // The time was over while QEMU was asked again.
            (Err(error), Some((found, strangers))) if error.kind() == ErrorKind::TimedOut => {
                return Err(too_few(pid, expect, *found, strangers));
            }
            (Err(error), _) => return Err(error),
        };
        let is_enough = u32::try_from(vcpus.len()).is_ok_and(|found| found >= expect.least());
        if is_enough && strangers.is_empty() {
            return Ok(VmmThreads {
                pid,
                vcpus,
                io_threads,
                helpers: Vec::new(),
                kernel_threads: Vec::new(),
            });
        }
        if deadline.is_over() {
            return Err(too_few(pid, expect, vcpus.len(), &strangers));
        }
        last = Some((vcpus.len(), strangers));
        deadline.sleep(pause);
        pause = pause.saturating_mul(2).min(LONGEST);
    }
}

fn by_name(pid: u32, names: &ThreadNames, expect: Expect) -> Result<Look> {
    let threads = read::threads(pid)?;
    let named = threads.iter().map(|(tid, name)| (*tid, name.as_slice()));
    let (vcpus, io_threads) = names.sort(named, |tid| read::started(pid, tid), expect.least());
    Ok(Look { vcpus, io_threads, strangers: BTreeSet::new() })
}

fn by_qmp(pid: u32, qmp: &mut Qmp, deadline: Deadline) -> Result<Look> {
    let (mut vcpus, mut io_threads) = (qmp.vcpus_by(deadline)?, qmp.io_threads_by(deadline)?);
    let (own_ids, mut strangers) = (read::own_ids(pid), BTreeSet::new());
    let mut is_own = |tid: &mut u32| match own_ids.get(tid) {
        Some(ours) => {
            *tid = *ours;
            true
        }
        None => {
            strangers.insert(*tid);
            false
        }
    };
    vcpus.retain_mut(|vcpu| is_own(&mut vcpu.tid));
    io_threads.retain_mut(|thread| is_own(&mut thread.tid));
    Ok(Look { vcpus, io_threads, strangers })
}

/// A monitor that closes does so because QEMU ends.
fn unless_gone(pid: u32, error: Error) -> Error {
    if read::threads(pid).is_err() { read::gone(pid).with_source(error) } else { error }
}

fn too_few(pid: u32, expect: Expect, found: usize, strangers: &BTreeSet<u32>) -> Error {
    let why = if let Some(stranger) = strangers.first() {
        format!(
            "QEMU's monitor names the thread {stranger}, which is none of process {pid}: is it another QEMU's?"
        )
    } else {
        let threads = if found == 1 { "thread was" } else { "threads were" };
        let seen = read::threads(pid).map(|threads| in_words(&threads)).unwrap_or_default();
        format!("{found} vCPU {threads} found in time; the threads of process {pid} are called {seen}")
    };
    let expected = expect.vcpus.map_or_else(|| "at least 1".to_owned(), |vcpus| vcpus.to_string());
    Error::new(ErrorKind::TimedOut, why).with_setting("vcpus").with_value(expected)
}

/// The names of threads, each once, and not more of them than one can read.
fn in_words(threads: &[(u32, Vec<u8>)]) -> String {
    const MOST: usize = 20;
    let names: BTreeSet<String> =
        threads.iter().map(|(_, name)| format!("{:?}", String::from_utf8_lossy(name))).collect();
    let mut words: Vec<String> = names.iter().take(MOST).cloned().collect();
    if let Some(more) = names.len().checked_sub(MOST).filter(|more| *more > 0) {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests;
