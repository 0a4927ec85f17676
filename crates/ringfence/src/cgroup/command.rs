//! The command that is started inside a cgroup, and its child process.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitIdOptions};

use crate::cgroup::{NOT_WITHIN_DELEGATED, OUT_OF_REACH};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::signals::SignalSet;
use crate::kernel::spawn::{self, Image, Stage, Started};

/// A program to start, like `std::process::Command`; [`Cgroup::spawn`](crate::Cgroup::spawn) and
/// [`Sandbox::spawn`](crate::Sandbox::spawn) start it inside.
///
/// Signals: the program starts with the mask of the thread that spawns it ([`Command::blocked_signals`] sets another), with
/// those signals ignored that this process ignores, except SIGPIPE, which has its default action, as with std's `Command`.
/// No signal handler of this process runs in the child before that.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: Option<Vec<(OsString, OsString)>>,
    directory: Option<PathBuf>,
    stdio: [Option<OwnedFd>; 3],
    new_session: bool,
    parent_death_signal: Option<i32>,
    blocked_signals: Option<Vec<i32>>,
}

impl Command {
    /// A program: a path, or a name that is looked up in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: None,
            directory: None,
            stdio: [None, None, None],
            new_session: false,
            parent_death_signal: None,
            blocked_signals: None,
        }
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The whole environment; without it the child has this process's.
    pub fn env(mut self, env: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        self.env = Some(env.into_iter().collect());
        self
    }

    /// The working directory.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What the child has as standard input; without it this process's.
    pub fn stdin(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdio[0] = Some(fd.into());
        self
    }

    /// What the child has as standard output; without it this process's.
    pub fn stdout(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdio[1] = Some(fd.into());
        self
    }

    /// What the child has as standard error; without it this process's.
    pub fn stderr(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdio[2] = Some(fd.into());
        self
    }

    /// Makes the child the leader of a session of its own, out of reach of the terminal's signals.
    pub fn new_session(mut self) -> Self {
        self.new_session = true;
        self
    }

    /// The signal that the child gets when the thread that spawned it ends (`PR_SET_PDEATHSIG`). If this process ended
    /// before that was set up, the program is not started.
    pub fn parent_death_signal(mut self, signal: i32) -> Self {
        self.parent_death_signal = Some(signal);
        self
    }

    /// The signals, by number, that are blocked when the program starts, and no others. Without it: those that the thread
    /// blocks that spawns it. For a caller that blocks signals to wait for them (signalfd(2), sigwait(3)).
    pub fn blocked_signals(mut self, signals: impl IntoIterator<Item = i32>) -> Self {
        self.blocked_signals = Some(signals.into_iter().collect());
        self
    }

    /// Everything laid out for the moment between fork and exec.
    pub(crate) fn image(&self) -> Result<Image<'_>> {
        let program = self.resolve()?;
        let mut argv = vec![c_string(&self.program)?];
        for arg in &self.args {
            argv.push(c_string(arg)?);
        }
        let variable = |(name, value): (&OsStr, &OsStr)| {
            let mut entry = name.to_owned();
            entry.push("=");
            entry.push(value);
            c_string(&entry)
        };
        let envp = match &self.env {
            Some(env) => env.iter().map(|(name, value)| variable((name, value))).collect::<Result<_>>()?,
            None => {
                std::env::vars_os().map(|(name, value)| variable((&name, &value))).collect::<Result<_>>()?
            }
        };
        let blocked_signals = self.blocked_signals.as_ref().map(|signals| {
            SignalSet::of(signals.iter().copied()).ok_or_else(|| {
                Error::invalid("blocked_signals", format!("{signals:?}"), "numbers of signals, 1 to 64")
            })
        });
        Ok(Image {
            program: c_string(program.as_os_str())?,
            argv,
            envp,
            directory: self
                .directory
                .as_ref()
                .map(|directory| c_string(directory.as_os_str()))
                .transpose()?,
            stdio: self.stdio.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd)),
            new_session: self.new_session,
            parent_death_signal: self.parent_death_signal,
            blocked_signals: blocked_signals.transpose()?,
        })
    }

    /// The file to execute: as execvp(3), the first in `PATH` that is executable.
    fn resolve(&self) -> Result<PathBuf> {
        if self.program.as_bytes().contains(&b'/') {
            return Ok(PathBuf::from(&self.program));
        }
        let path = match &self.env {
            Some(env) => env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()),
            None => std::env::var_os("PATH"),
        };
        let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut refused = None;
        for directory in std::env::split_paths(&path) {
            let candidate = directory.join(&self.program);
            match rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK) {
                Ok(()) if candidate.is_file() => return Ok(candidate),
                Err(Errno::ACCESS) => refused = Some(candidate),
                _ => {}
            }
        }
        Err(match refused {
            Some(path) => Error::kernel("the program cannot be executed", path, Errno::ACCESS),
            None => Error::kernel("the program is not in PATH", &self.program, Errno::NOENT),
        }
        .with_kind(ErrorKind::Program))
    }

    /// A process that executes nothing and holds a sandbox.
    pub(crate) fn placeholder() -> Result<Started> {
        spawn::placeholder().map_err(|(stage, errno)| {
            let why = match (stage, errno) {
                (Stage::Sigchld, _) => return sigchld_is_ignored(),
                (Stage::Pidfd, _) => NO_PIDFD,
                (_, Errno::PERM | Errno::NOSYS) => FORK_DENIED,
                _ => "cannot fork a process that holds the sandbox",
            };
            Error::new(ErrorKind::Kernel, why).with_errno(errno)
        })
    }

    /// Makes the child, which waits for somebody to put it where it belongs.
    pub(crate) fn hold(&self) -> Result<Started> {
        spawn::hold(&self.image()?).map_err(|(stage, errno)| self.failed(stage, errno))
    }

    /// Lets a child that waited go on.
    pub(crate) fn go(&self, waiting: Started) -> Result<Child> {
        let (pid, pidfd) = waiting.executed().map_err(|(stage, errno)| self.failed(stage, errno))?;
        Ok(Child::new(pid, pidfd))
    }

    pub(crate) fn failed(&self, stage: Stage, errno: Errno) -> Error {
        let program = Path::new(&self.program);
        match stage {
            Stage::Exec => {
                Error::kernel("the program cannot be executed", program, errno).with_kind(ErrorKind::Program)
            }
            Stage::Directory => Error::kernel(
                "cannot change to the directory",
                self.directory.as_deref().unwrap_or(program),
                errno,
            ),
            Stage::Stdio => Error::kernel("cannot set up standard input and output", program, errno),
            Stage::Join if errno == Errno::ACCESS => Error::kernel(NOT_WITHIN_DELEGATED, program, errno),
            Stage::Join => Error::kernel("the child cannot join its cgroup", program, errno),
            Stage::Born => Error::kernel("the child was killed before it ran", program, errno),
            Stage::Stuck => {
                let why = "the child never came to exec: its cgroup was frozen; it was killed";
                Error::kernel(why, program, errno).with_kind(ErrorKind::TimedOut)
            }
            Stage::Sigchld => sigchld_is_ignored(),
            Stage::Pidfd => Error::kernel(NO_PIDFD, program, errno),
            Stage::Fork => {
                let why = match errno {
                    Errno::PERM | Errno::NOSYS => FORK_DENIED,
                    Errno::AGAIN => {
                        "cannot fork: a limit on tasks is reached (pids.limit of the cgroup, or RLIMIT_NPROC)"
                    }
                    Errno::BUSY => "cannot fork into the cgroup: it has controllers enabled for its children",
                    Errno::ACCESS => NOT_WITHIN_DELEGATED,
                    Errno::NOENT => OUT_OF_REACH,
                    Errno::OPNOTSUPP => "cannot fork into the cgroup: it is an invalid domain",
                    _ => "cannot fork into the cgroup",
                };
                Error::kernel(why, program, errno)
            }
        }
    }
}

fn sigchld_is_ignored() -> Error {
    let why = "the kernel discards the status of children (SIG_IGN or SA_NOCLDWAIT): give SIGCHLD its default action or a \
               handler before a process is started";
    Error::new(ErrorKind::Unsupported, why).with_setting("SIGCHLD").with_value("ignored")
}

const FORK_DENIED: &str = "cannot fork: clone3(2) and clone(2) are denied, as a seccomp filter does";
const NO_PIDFD: &str = "cannot fork: no descriptor of the child, for clone3(2) and pidfd_open(2) are denied, as a seccomp \
     filter does, or this kernel is older than Linux 5.2";

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| Error::invalid("command", text.to_string_lossy(), "a string without NUL bytes"))
}

/// A process that was started inside. Dropping it neither kills it nor waits for it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// The process ID.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal by number; a process that has ended is not an error.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let given = Signal::from_named_raw(signal)
            .ok_or_else(|| Error::invalid("signal", signal, "the number of a signal"))?;
        match spawn::send_signal(self.pid, self.pidfd.as_fd(), given) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::new(ErrorKind::Kernel, "cannot send the signal")
                .with_value(signal)
                .with_errno(errno)),
        }
    }

    /// Waits until the process ends.
    ///
    /// # Errors
    /// With ECHILD, the process has ended, and its status is lost: another part of this process has collected it, or SIGCHLD
    /// is ignored since it was started.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.collect(WaitIdOptions::empty())? {
                return Ok(status);
            }
        }
    }

    /// The status of the process, if it has ended.
    ///
    /// # Errors
    /// Those of [`Child::wait`].
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.collect(WaitIdOptions::NOHANG)
    }

    fn collect(&self, options: WaitIdOptions) -> Result<Option<ExitStatus>> {
        spawn::wait(self.pid, self.pidfd.as_fd(), options).map_err(|errno| {
            let why = match errno {
                Errno::CHILD => "the process has ended, and its status is lost: another part of this process has collected it, or ignores SIGCHLD",
                _ => "cannot wait for the process",
            };
            Error::new(ErrorKind::Kernel, why).with_value(self.pid()).with_errno(errno)
        })
    }
}

/// The pidfd: readable when the process has ended.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// `/dev/null`, for [`Command::stdin`] and the others.
pub fn null() -> Result<OwnedFd> {
    let opened = File::options().read(true).write(true).open("/dev/null");
    opened
        .map(OwnedFd::from)
        .map_err(|error| Error::new(ErrorKind::Kernel, "cannot open /dev/null").with_source(error))
}
