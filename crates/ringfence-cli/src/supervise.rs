//! A command in the foreground: it gets the signals that we get, and we end as it ends.

use std::os::fd::AsFd;
use std::process::ExitStatus;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::prctl::get_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getsid};
use ringfence::{Child, Command, Error, ErrorKind, Result};

/// What is passed on. SIGTTIN and SIGTTOU stop the whole process group, with us in it; the others are never sent from
/// outside for a purpose.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// `si_code` of a signal from the kernel, and so from the terminal.
const SI_KERNEL: i32 = 0x80;

/// Signals that wait to be passed on. From here on they do nothing else to this process.
#[derive(Debug)]
pub struct Supervisor {
    signals: SignalFd,
    /// The signal mask that this process was started with.
    blocked_before: SigSet,
    /// Orphans become children of this process: it is process 1 of a container, or a child subreaper.
    adopts_orphans: bool,
}

impl Supervisor {
    /// Before the command is started, so that none is lost.
    pub fn new() -> Result<Self> {
        let adopts_orphans = getpid() == Pid::from_raw(1) || get_child_subreaper().unwrap_or(false);
        let of_orphans = adopts_orphans.then_some(Signal::SIGCHLD);
        let set: SigSet = PASSED_ON.into_iter().chain(of_orphans).collect();
        let watch = || {
            let blocked_before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
            let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
            Ok(Self { signals, blocked_before, adopts_orphans })
        };
        watch().map_err(|errno| failed("cannot watch for signals", errno))
    }

    /// Has the command start with the signals blocked with which this process was started.
    pub fn unblock(&self, command: Command) -> Command {
        command.blocked_signals(self.blocked_before.iter().map(|signal| signal as i32))
    }

    /// Waits until the command, which was just started, ends. Collects orphans meanwhile if this process adopts them: a
    /// process that has ended counts as a task of its cgroup until it is collected.
    pub fn wait(&self, child: &Child) -> Result<ExitStatus> {
        // What came before the command was there reached us alone.
        self.pass_all_on(child, |_| true)?;
        loop {
            let mut fds = [self.signals.as_fd(), child.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match nix::poll::poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(failed("cannot wait for the command", errno)),
            }
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.adopts_orphans {
                collect_orphans(child);
            }
            self.pass_all_on(child, was_for_us_alone)?;
        }
    }

    fn pass_all_on(&self, child: &Child, wanted: impl Fn(&siginfo) -> bool) -> Result<()> {
        while let Some(info) =
            self.signals.read_signal().map_err(|errno| failed("cannot read a signal", errno))?
        {
            let number = info.ssi_signo.cast_signed();
            if number == Signal::SIGCHLD as i32 {
                continue;
            }
            if wanted(&info) {
                child.signal(number)?;
            }
            if number == Signal::SIGTSTP as i32 {
                // The command stops; the shell that started us waits for us to stop too.
                raise(Signal::SIGSTOP).map_err(|errno| failed("cannot stop", errno))?;
            }
        }
        Ok(())
    }
}

/// Collects every child that has ended, but the command.
fn collect_orphans(child: &Child) {
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    // Looked at first, so that the status of the command is not lost.
    while let Ok(status) = waitid(Id::All, ended | WaitPidFlag::WNOWAIT)
        && let Some(pid) = status.pid().filter(|pid| pid.as_raw().unsigned_abs() != child.pid())
    {
        _ = waitid(Id::Pid(pid), ended);
    }
}

/// The terminal's signals go to its whole foreground process group, which the command shares with us. Only that it hung
/// up is told to the session's leader alone.
fn was_for_us_alone(info: &siginfo) -> bool {
    let hung_up = info.ssi_signo.cast_signed() == Signal::SIGHUP as i32;
    info.ssi_code != SI_KERNEL || hung_up && getsid(None).is_ok_and(|leader| leader == getpid())
}

/// Keeps a hangup of the terminal from ending this process: it may be about to kill the shell that leads its session.
///
/// Before any other thread is started, which then does the same.
pub fn outlive_session() -> Result<()> {
    let hangup: SigSet = [Signal::SIGHUP].into_iter().collect();
    hangup.thread_block().map_err(|errno| failed("cannot block SIGHUP", errno))
}

fn failed(what: &'static str, errno: nix::errno::Errno) -> Error {
    Error::new(ErrorKind::Kernel, what).with_source(errno)
}
