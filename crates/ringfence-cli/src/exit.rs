//! The exit codes, all in one place.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use ringfence::{Error, ErrorKind};

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failed,
    /// 2: wrong usage or bad input.
    Usage,
    /// 3: no such sandbox.
    NoSuchSandbox,
    /// 4: the device is denied.
    Denied,
    /// 4: what is there is not what is wanted.
    Differs,
    /// 5: exists, busy or locked.
    Busy,
    /// 125: `run` and `exec` failed before or after the command.
    NotRun,
    /// 126: `run` and `exec` found the command, and could not execute it.
    CannotExecute,
    /// 127: `run` and `exec` did not find the command.
    NoSuchCommand,
    /// `run` and `exec`: the command's own.
    Command(u8),
}

impl Exit {
    /// Of an error of any subcommand but `run` and `exec`.
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidInput => Self::Usage,
            ErrorKind::NotFound => Self::NoSuchSandbox,
            ErrorKind::AlreadyExists | ErrorKind::Busy | ErrorKind::Locked => Self::Busy,
            _ => Self::Failed,
        }
    }

    /// Of an error of `run` and `exec`, whose small numbers belong to the command. Bad input keeps its 2: nothing was
    /// started, and whoever wrote the call has to look at it.
    pub fn of_not_run(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidInput => Self::Usage,
            ErrorKind::Program if error.errno() == Some(nix::errno::Errno::ENOENT as i32) => {
                Self::NoSuchCommand
            }
            ErrorKind::Program => Self::CannotExecute,
            _ => Self::NotRun,
        }
    }
}

/// Of a command that has ended: its status, or 128 and the signal that killed it.
impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Self::Command(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NoSuchSandbox => 3,
            Exit::Denied | Exit::Differs => 4,
            Exit::Busy => 5,
            Exit::NotRun => 125,
            Exit::CannotExecute => 126,
            Exit::NoSuchCommand => 127,
            Exit::Command(status) => status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_was_killed_ends_with_128_and_the_signal() {
        assert_eq!(Exit::from(ExitStatus::from_raw(3 << 8)), Exit::Command(3));
        assert_eq!(Exit::from(ExitStatus::from_raw(15)), Exit::Command(143));
    }

    #[test]
    fn the_small_numbers_of_run_and_exec_belong_to_the_command() {
        let error = |kind| Error::new(kind, "");
        for (kind, other, run) in [
            (ErrorKind::InvalidInput, Exit::Usage, Exit::Usage),
            (ErrorKind::NotFound, Exit::NoSuchSandbox, Exit::NotRun),
            (ErrorKind::AlreadyExists, Exit::Busy, Exit::NotRun),
            (ErrorKind::Busy, Exit::Busy, Exit::NotRun),
            (ErrorKind::Locked, Exit::Busy, Exit::NotRun),
            (ErrorKind::Unsupported, Exit::Failed, Exit::NotRun),
            (ErrorKind::Kernel, Exit::Failed, Exit::NotRun),
            (ErrorKind::Program, Exit::Failed, Exit::CannotExecute),
        ] {
            assert_eq!((Exit::of(&error(kind)), Exit::of_not_run(&error(kind))), (other, run), "{kind:?}");
        }
    }
}
