//! Starting a process inside its cgroup: clone3(2) with `CLONE_INTO_CGROUP` on v2, else the child joins by itself
//! between fork and exec, or waits there until it was moved. The program never runs outside.
//!
//! All signals are blocked in the spawning thread during the fork, and in the child until it has no handlers any more: the
//! child is a copy of the embedder, and a handler that ran in it would take it for the embedder.

use std::ffi::CString;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use crate::kernel::signals::{self, AllBlocked, SignalSet};

/// A child that was made and has not yet come to exec after this time never will: its cgroup was frozen.
const EXEC_DEADLINE: Duration = Duration::from_secs(10);

/// clone3(2) since Linux 5.7; libc's constant is too narrow to hold it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// clone3(2) since Linux 5.5: no signal handlers in the child.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// What the child does, all of it laid out before the fork: between fork and exec nothing may allocate.
pub(crate) struct Image<'a> {
    pub(crate) program: CString,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    pub(crate) directory: Option<CString>,
    /// Replacements for descriptors 0, 1 and 2.
    pub(crate) stdio: [Option<BorrowedFd<'a>>; 3],
    /// Become leader of a session of its own.
    pub(crate) new_session: bool,
    /// Die with the thread that spawned it.
    pub(crate) parent_death_signal: Option<i32>,
    /// The signals that are blocked when the program starts; `None`: those that the spawning thread blocks.
    pub(crate) blocked_signals: Option<SignalSet>,
}

/// Where the child is to live.
pub(crate) struct Inside<'a> {
    /// The v2 cgroup to be born in.
    pub(crate) unified: Option<BorrowedFd<'a>>,
    /// Files to which the child writes `0` before exec: `cgroup.procs` of each hierarchy that clone3 does not serve.
    pub(crate) join: &'a [OwnedFd],
}

/// What the child does before it comes to exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Not,
    /// For somebody to put it into its cgroup.
    ForLeave,
    /// For its end: it never executes anything.
    ForEver,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing was forked: the status of children is discarded.
    Sigchld,
    Fork,
    /// The child was made, and no pidfd for it could be opened.
    Pidfd,
    Join,
    Stdio,
    Directory,
    Exec,
    /// The child never came to exec.
    Stuck,
    /// The child was killed before it ran. Since Linux 6.14, and stable kernels of that time, that is the fate of what is
    /// born into a cgroup whose `cgroup.kill` was ever written: the kernel compares the count of that with the parent's.
    Born,
}

impl Stage {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Join,
            2 => Self::Stdio,
            3 => Self::Directory,
            _ => Self::Exec,
        }
    }
}

/// Starts the image inside; returns when it has been executed.
pub(crate) fn spawn(image: &Image<'_>, inside: &Inside<'_>) -> Result<(Pid, OwnedFd), (Stage, Errno)> {
    start(image, inside, Waits::Not)?.executed()
}

/// Makes the child and has it wait where it is, for somebody else to put it into its cgroup.
pub(crate) fn hold(image: &Image<'_>) -> Result<Started, (Stage, Errno)> {
    start(image, &Inside { unified: None, join: &[] }, Waits::ForLeave)
}

/// Makes a child that does nothing but live until it is dropped, or this process ends. It executes nothing, so that it
/// costs no more than a fork, keeps none of our descriptors open, and hears no signal but SIGKILL and SIGSTOP.
pub(crate) fn placeholder() -> Result<Started, (Stage, Errno)> {
    let image = Image {
        program: CString::default(),
        argv: Vec::new(),
        envp: Vec::new(),
        directory: None,
        stdio: [None, None, None],
        new_session: false,
        parent_death_signal: None,
        blocked_signals: None,
    };
    start(&image, &Inside { unified: None, join: &[] }, Waits::ForEver)
}

/// The descriptor, or a copy of it that is none of the standard ones.
fn above_standard(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { rustix::io::fcntl_dupfd_cloexec(fd, 3) }
}

fn start(image: &Image<'_>, inside: &Inside<'_>, waits: Waits) -> Result<Started, (Stage, Errno)> {
    if signals::children_are_discarded() {
        return Err((Stage::Sigchld, Errno::CHILD));
    }
    let fork_failed = |errno| (Stage::Fork, errno);
    // In a caller that has closed its standard descriptors it would be one of these, which the child is about to replace.
    let pipe = || {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok((above_standard(reader)?, above_standard(writer)?))
    };
    let (reader, writer) = pipe().map_err(fork_failed)?;
    let gate = if waits != Waits::Not { Some(pipe().map_err(fork_failed)?) } else { None };
    let argv = pointers(&image.argv);
    let envp = pointers(&image.envp);
    let join: Vec<RawFd> = inside.join.iter().map(AsRawFd::as_raw_fd).collect();
    // Of what the child is about to replace, it takes a copy.
    let copy = |fd: &Option<BorrowedFd<'_>>| {
        let fd = fd.filter(|fd| fd.as_raw_fd() <= 2);
        fd.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3)).transpose()
    };
    let copies = image.stdio.iter().map(copy).collect::<Result<Vec<_>, _>>().map_err(fork_failed)?;
    let mut stdio = image.stdio.map(|fd| fd.map(|fd| fd.as_raw_fd()));
    for (fd, copy) in stdio.iter_mut().zip(&copies) {
        *fd = copy.as_ref().map(AsRawFd::as_raw_fd).or(*fd);
    }
    let report = writer.as_raw_fd();
    let both = gate.as_ref().map(|(inner, outer)| (inner.as_raw_fd(), outer.as_raw_fd()));
    let sign = inside.unified.map(|_| Sign::new()).transpose().map_err(fork_failed)?;
    let all_blocked = AllBlocked::new().map_err(fork_failed)?;
    let child = Child {
        image,
        argv: &argv,
        envp: &envp,
        join: &join,
        stdio,
        report,
        report_reader: reader.as_raw_fd(),
        parent: rustix::process::getpid(),
        blocked: image.blocked_signals.unwrap_or(all_blocked.before()),
        gate: both,
        is_placeholder: waits == Waits::ForEver,
        sign: sign.as_ref(),
    };

    let forked = fork(inside.unified, &child);
    drop(all_blocked);
    drop(writer);
    let (pid, pidfd) = forked?;
    Ok(Started { pid, pidfd: Some(pidfd), reader, gate: gate.map(|(_, outer)| outer), sign })
}

/// A child that is on its way to exec, or waits for leave to go on. Dropped, it is killed and collected.
#[derive(Debug)]
pub(crate) struct Started {
    pid: Pid,
    /// Until it is given away.
    pidfd: Option<OwnedFd>,
    reader: OwnedFd,
    gate: Option<OwnedFd>,
    sign: Option<Sign>,
}

/// Memory that is shared with a child, in which it says that it ran.
#[derive(Debug)]
struct Sign(NonNull<AtomicBool>);

// SAFETY: it owns its page, and all that is done to it is atomic.
unsafe impl Send for Sign {}
// SAFETY: as above.
unsafe impl Sync for Sign {}

impl Sign {
    fn new() -> Result<Self, Errno> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of zeroes, at a place that the kernel chooses: an `AtomicBool` that is false.
        let page = unsafe { libc::mmap(null_mut(), size_of::<AtomicBool>(), protection, flags, -1, 0) };
        let page = if page == libc::MAP_FAILED { None } else { NonNull::new(page.cast()) };
        page.map(Self).ok_or_else(last_errno)
    }

    fn get(&self) -> &AtomicBool {
        // SAFETY: mapped until it is dropped.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Sign {
    fn drop(&mut self) {
        // SAFETY: this mapping is its own, and nobody borrows from it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<AtomicBool>()) };
    }
}

impl Started {
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Lets it go on, and returns when its program has been executed.
    pub(crate) fn executed(mut self) -> Result<(Pid, OwnedFd), (Stage, Errno)> {
        if let Some(gate) = self.gate.take() {
            // If it is gone, that shows below.
            _ = rustix::io::write(gate, &[0]);
        }
        outcome(&self.reader)?;
        if self.sign.as_ref().is_some_and(|sign| !sign.get().load(Ordering::Acquire)) {
            return Err((Stage::Born, Errno::CANCELED));
        }
        self.pidfd.take().map(|pidfd| (self.pid, pidfd)).ok_or((Stage::Fork, Errno::SRCH))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(pidfd) = &self.pidfd else { return };
        // It has exited by itself, or waits, or is stuck in a frozen cgroup, where it cannot be waited for.
        _ = send_signal(self.pid, pidfd.as_fd(), Signal::KILL);
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Ok(None) = wait(self.pid, pidfd.as_fd(), WaitIdOptions::NOHANG) {
            if Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Waits for the end of a child and collects it: by its pidfd, or by its PID before Linux 5.4. With `NOHANG`, `None` while it
/// runs.
///
/// # Errors
/// ECHILD where its status is lost: another part of this process has collected it, or SIGCHLD is ignored.
pub(crate) fn wait(
    pid: Pid,
    pidfd: BorrowedFd<'_>,
    options: WaitIdOptions,
) -> Result<Option<ExitStatus>, Errno> {
    let options = options | WaitIdOptions::EXITED;
    let mut by_pidfd = true;
    loop {
        let child = if by_pidfd { WaitId::PidFd(pidfd) } else { WaitId::Pid(pid) };
        match rustix::process::waitid(child, options) {
            Err(Errno::INVAL) if by_pidfd => by_pidfd = false,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(status) => return Ok(status.map(|status| exit_status(&status))),
        }
    }
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    const CORE_DUMPED: i32 = 0x80;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) if status.dumped() => signal | CORE_DUMPED,
        (_, Some(signal)) => signal,
        (code, None) => (code.unwrap_or_default() & 0xff) << 8,
    };
    ExitStatus::from_raw(raw)
}

/// Sends a signal to a child: by its PID where pidfd_send_signal(2), of Linux 5.1, is missing or denied (seccomp). That is
/// the child's until somebody has waited for it, and no signal is sent after that.
pub(crate) fn send_signal(pid: Pid, pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            match rustix::process::waitid(WaitId::Pid(pid), options) {
                Ok(_) => rustix::process::kill_process(pid, signal),
                Err(Errno::CHILD) => Err(Errno::SRCH),
                Err(errno) => Err(errno),
            }
        }
        sent => sent,
    }
}

/// A null-terminated array for execve(2).
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([null()]).collect()
}

/// Reads what the child says: nothing (exec closed the pipe), or where and why it failed.
fn outcome(reader: &OwnedFd) -> Result<(), (Stage, Errno)> {
    let deadline = Instant::now() + EXEC_DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err((Stage::Stuck, Errno::TIMEDOUT));
        }
        let timeout =
            rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(reader, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err((Stage::Fork, errno)),
        }
        let mut said = [0_u8; 5];
        return match rustix::io::read(reader, &mut said) {
            Ok(0) => Ok(()),
            Ok(_) => {
                let [stage, a, b, c, d] = said;
                Err((Stage::from_byte(stage), Errno::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]))))
            }
            Err(Errno::INTR) => continue,
            Err(errno) => Err((Stage::Fork, errno)),
        };
    }
}

/// As fork(2), into the cgroup if one is given.
fn fork(unified: Option<BorrowedFd<'_>>, child: &Child<'_>) -> Result<(Pid, OwnedFd), (Stage, Errno)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(unified) = unified {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = unified.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM: the child has its own copy of memory and stack, as after fork(2). It only runs `child`, which
    // uses async-signal-safe functions and never returns, so that a lock held by another thread of the parent is never
    // waited for.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match pid {
        0 => child.run(),
        -1 => match last_errno() {
            // Seccomp filters of container engines answer ENOSYS, older ones EPERM; a kernel before 5.3 ENOSYS, and one
            // before 5.5 does not know CLONE_CLEAR_SIGHAND.
            Errno::NOSYS | Errno::PERM | Errno::INVAL if unified.is_none() => clone_of_old(child),
            errno => Err((Stage::Fork, errno)),
        },
        pid => {
            // SAFETY: the kernel stored a descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((Pid::from_raw(pid as i32).ok_or((Stage::Fork, Errno::SRCH))?, pidfd))
        }
    }
}

/// clone(2), which gives a pidfd since Linux 5.2; before that there is pidfd_open(2) only where it was backported.
fn clone_of_old(child: &Child<'_>) -> Result<(Pid, OwnedFd), (Stage, Errno)> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    let (stack, parent_tid, none) = (null_mut::<u8>(), &raw mut pidfd, null_mut::<u8>());
    // SAFETY: as in `fork`. Without a stack of its own the child goes on with its copy of this one.
    let pid = unsafe {
        if cfg!(target_arch = "s390x") {
            libc::syscall(libc::SYS_clone, stack, flags, parent_tid, none, none)
        } else {
            libc::syscall(libc::SYS_clone, flags, stack, parent_tid, none, none)
        }
    };
    match pid {
        0 => {
            // SAFETY: this is the child's copy, in which all signals are blocked and no handler is to run.
            unsafe { signals::remove_handlers() };
            child.run()
        }
        -1 => Err((Stage::Fork, last_errno())),
        pid => {
            let pid = Pid::from_raw(pid as i32).ok_or((Stage::Fork, Errno::SRCH))?;
            let opened = if pidfd >= 0 {
                // SAFETY: the kernel stored a descriptor that nobody else owns.
                Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
            } else {
                // Not collected yet, so that the PID is still this child's.
                rustix::process::pidfd_open(pid, PidfdFlags::empty())
            };
            opened.map(|pidfd| (pid, pidfd)).map_err(|errno| {
                // An error says that nothing was started.
                _ = rustix::process::kill_process(pid, Signal::KILL);
                _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                (Stage::Pidfd, errno)
            })
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Writes `0`, "myself", to a `cgroup.procs` or `tasks` file. Async-signal-safe.
pub(crate) fn join_self(file: BorrowedFd<'_>) -> Result<(), Errno> {
    loop {
        match rustix::io::write(file.as_fd(), b"0") {
            Err(Errno::INTR) => {}
            done => return done.map(drop),
        }
    }
}

/// The child's side, between fork and exec.
struct Child<'a> {
    image: &'a Image<'a>,
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    join: &'a [RawFd],
    stdio: [Option<RawFd>; 3],
    report: RawFd,
    /// Its copy of the parent's end of `report`.
    report_reader: RawFd,
    parent: Pid,
    /// The signals that are blocked when the program starts.
    blocked: SignalSet,
    /// The end that it reads, for leave to go on, and its copy of the one that is written.
    gate: Option<(RawFd, RawFd)>,
    is_placeholder: bool,
    sign: Option<&'a Sign>,
}

impl Child<'_> {
    fn run(&self) -> ! {
        if let Some(sign) = self.sign {
            sign.get().store(true, Ordering::Release);
        }
        let (stage, errno) = self.prepare().unwrap_or_else(|failure| failure);
        let [a, b, c, d] = errno.raw_os_error().to_ne_bytes();
        let said = [stage, a, b, c, d];
        // SAFETY: plain system calls on an open descriptor and a local buffer; `_exit` does not return.
        unsafe {
            libc::write(self.report, said.as_ptr().cast(), size_of_val(&said));
            libc::_exit(127)
        }
    }

    /// Everything up to and including exec, which only returns to say why it failed.
    fn prepare(&self) -> Result<(u8, Errno), (u8, Errno)> {
        if let Some((inner, outer)) = self.gate {
            if self.is_placeholder {
                // SAFETY: nothing of what this process has open is used any more but `inner`.
                unsafe { become_placeholder(inner) };
            }
            let mut leave = 0_u8;
            // SAFETY: async-signal-safe calls on descriptors of this process and a local buffer.
            let read = unsafe {
                libc::close(outer);
                loop {
                    let read = libc::read(inner, (&raw mut leave).cast(), 1);
                    if read >= 0 || last_errno() != Errno::INTR {
                        break read;
                    }
                }
            };
            if read != 1 || self.is_placeholder {
                // Nobody is there any more to put us where we belong.
                return Err((1, Errno::CANCELED));
            }
        }
        for fd in self.join {
            // SAFETY: the parent holds the descriptor open for as long as this child shares its image.
            join_self(unsafe { BorrowedFd::borrow_raw(*fd) }).map_err(|errno| (1, errno))?;
        }
        // SAFETY: async-signal-safe calls with pointers to memory that was laid out before the fork.
        unsafe {
            for (target, source) in (0..).zip(self.stdio) {
                if let Some(source) = source
                    && replace(source, target) < 0
                {
                    return Err((2, last_errno()));
                }
            }
            if let Some(directory) = &self.image.directory
                && libc::chdir(directory.as_ptr()) < 0
            {
                return Err((3, last_errno()));
            }
            if self.image.new_session {
                libc::setsid();
            }
            if let Some(signal) = self.image.parent_death_signal {
                libc::prctl(libc::PR_SET_PDEATHSIG, signal);
                if self.is_orphan() {
                    // The signal was sent before it was asked for.
                    return Err((1, Errno::CANCELED));
                }
            }
            // Rust ignores SIGPIPE, and a program that was not written for that must not.
            signals::reset(libc::SIGPIPE);
        }
        // With the handlers gone: what came meanwhile has its default effect, as it would after exec.
        self.blocked.block().map_err(|errno| (4, errno))?;
        // SAFETY: as above.
        unsafe {
            libc::execve(self.image.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        }
        Ok((4, last_errno()))
    }

    /// Whether the parent has ended. Async-signal-safe.
    fn is_orphan(&self) -> bool {
        match rustix::process::getppid() {
            Some(parent) => parent != self.parent,
            // It is in another PID namespace, as after unshare(CLONE_NEWPID). Then nobody is left to read what we say.
            None => {
                // SAFETY: a descriptor of this process that is not used any more.
                let report = unsafe {
                    libc::close(self.report_reader);
                    BorrowedFd::borrow_raw(self.report)
                };
                let mut fds = [PollFd::from_borrowed_fd(report, PollFlags::empty())];
                let polled = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()));
                polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
            }
        }
    }
}

/// Closes everything but one descriptor, and takes a name by which it is known. All signals stay blocked.
///
/// # Safety
/// Async-signal-safe. Other descriptors must not be used afterwards.
unsafe fn become_placeholder(kept: RawFd) {
    let kept = kept.unsigned_abs();
    // SAFETY: plain system calls, with pointers to constants and locals.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"ringfence-hold".as_ptr());
        let below = kept == 0 || libc::syscall(libc::SYS_close_range, 0, kept - 1, 0) == 0;
        if below && libc::syscall(libc::SYS_close_range, kept + 1, u32::MAX, 0) == 0 {
            return;
        }
        // Before Linux 5.9.
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let most = u32::try_from(limit.rlim_cur).unwrap_or(u32::MAX).min(1 << 16);
        (0..most).filter(|fd| *fd != kept).for_each(|fd| _ = libc::close(fd.cast_signed()));
    }
}

/// dup2(2) that clears close-on-exec also where source and target are the same.
///
/// # Safety
/// Async-signal-safe; touches no memory.
unsafe fn replace(source: RawFd, target: RawFd) -> RawFd {
    // SAFETY: plain system calls.
    unsafe {
        if source == target { libc::fcntl(source, libc::F_SETFD, 0) } else { libc::dup2(source, target) }
    }
}
