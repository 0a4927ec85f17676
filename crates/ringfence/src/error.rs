//! The one error type.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use crate::terminal::{Escaped, Escaper};

/// What this library's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarse enough to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value, path, rule or document that no host could accept.
    InvalidInput,
    /// This host (or, under strict mode, this cgroup version) cannot do what was asked.
    Unsupported,
    /// There is no such sandbox, cgroup or claim.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Processes, children or usage are in the way.
    Busy,
    /// Another process holds the lock of the sandbox.
    Locked,
    /// Not done before the deadline.
    TimedOut,
    /// The kernel refused, or did something else than asked.
    Kernel,
    /// systemd refused, could not be reached, or did something else than asked.
    Systemd,
    /// The program to start was not found (ENOENT), or cannot be executed.
    Program,
    /// The VMM refused, could not be reached, or answered something else than asked.
    Vmm,
    /// The stored state cannot be read.
    State,
}

impl ErrorKind {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::Unsupported => "unsupported",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Busy => "busy",
            Self::Locked => "locked",
            Self::TimedOut => "timed_out",
            Self::Kernel => "kernel",
            Self::Systemd => "systemd",
            Self::Program => "program",
            Self::Vmm => "vmm",
            Self::State => "state",
        }
    }
}

/// What was being done, with which setting and value, at which file, and what the kernel said.
///
/// `Display` is one sentence: `SETTING = VALUE: MESSAGE [PATH]: ERRNO`, with the parts that are known, and with control
/// characters [escaped](crate::terminal).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    setting: Option<Cow<'static, str>>,
    value: Option<String>,
    path: Option<PathBuf>,
    errno: Option<Errno>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`. The message says what is wrong or what is allowed; it repeats neither setting, value, path nor errno.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            setting: None,
            value: None,
            path: None,
            errno: None,
            source: None,
        }))
    }

    /// Bad input: `setting` was given `value`, and `allowed` says what it takes.
    pub fn invalid(
        setting: impl Into<Cow<'static, str>>,
        value: impl fmt::Display,
        allowed: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::InvalidInput, allowed).with_setting(setting).with_value(value)
    }

    /// The kernel refused `what` (such as "cannot make the directory") at `path`.
    pub fn kernel(what: impl Into<Cow<'static, str>>, path: impl AsRef<Path>, errno: Errno) -> Self {
        Self::new(ErrorKind::Kernel, what).with_path(path).with_errno(errno)
    }

    /// Names the setting, as in OCI (`memory.limit`) or as the option of the command.
    pub fn with_setting(mut self, setting: impl Into<Cow<'static, str>>) -> Self {
        self.0.setting = Some(setting.into());
        self
    }

    /// Adds the value as it was given.
    pub fn with_value(mut self, value: impl fmt::Display) -> Self {
        self.0.value = Some(value.to_string());
        self
    }

    /// Adds the file or directory.
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path = Some(path.as_ref().to_owned());
        self
    }

    /// Adds the kernel's error number.
    pub fn with_errno(mut self, errno: Errno) -> Self {
        self.0.errno = Some(errno);
        self
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Replaces the kind, where a caller knows more than the place that failed.
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Replaces the message, where a caller can explain what the bare refusal means.
    pub fn with_message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    /// The kind, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is wrong, or what is allowed, without setting, value, path and errno.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The setting, if the error is about one.
    pub fn setting(&self) -> Option<&str> {
        self.0.setting.as_deref()
    }

    /// The value as it was given.
    pub fn value(&self) -> Option<&str> {
        self.0.value.as_deref()
    }

    /// The file or directory where the kernel refused.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The raw error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.0.errno.map(Errno::raw_os_error)
    }

    pub(crate) fn is_one_of(&self, errnos: &[Errno]) -> bool {
        self.0.errno.is_some_and(|errno| errnos.contains(&errno))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;

        let inner = &self.0;
        let mut f = Escaper(f);
        match (&inner.setting, &inner.value) {
            (Some(setting), Some(value)) => write!(f, "{setting} = {value:?}: ")?,
            (Some(setting), None) => write!(f, "{setting}: ")?,
            (None, Some(value)) => write!(f, "{value:?}: ")?,
            (None, None) => {}
        }
        f.write_str(&inner.message)?;
        if let Some(path) = &inner.path {
            write!(f, " [{}]", path.display())?;
        }
        if let Some(errno) = inner.errno {
            write!(f, ": {errno}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        if let Some(source) = &self.0.source {
            write!(f, " (caused by: {})", Escaped(&source.to_string()))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// The result of asking something of a cgroup that may be removed at this moment: `None` if it is gone
/// ([`ErrorKind::NotFound`]).
///
/// # Errors
/// Every other error.
pub fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_sentence_with_all_that_is_known() {
        let error = Error::kernel("the kernel refused the value", "/sys/fs/cgroup/a/pids.max", Errno::INVAL)
            .with_setting("pids.limit")
            .with_value("x");
        let sentence = error.to_string();
        assert!(
            sentence.starts_with(
                r#"pids.limit = "x": the kernel refused the value [/sys/fs/cgroup/a/pids.max]: Invalid argument"#
            ),
            "{sentence}"
        );
        assert_eq!(error.errno(), Some(22));
    }

    #[test]
    fn control_characters_are_escaped_in_the_sentence_and_exact_in_the_fields() {
        let hostile = "\u{1b}[2J\n\u{202e}";
        let error = Error::kernel(hostile, hostile, Errno::INVAL)
            .with_setting(hostile)
            .with_value(hostile)
            .with_source(std::io::Error::other(hostile));
        let escaped = r"\u{1b}[2J\n\u{202e}";
        let (sentence, debug) = (error.to_string(), format!("{error:?}"));
        assert_eq!((sentence.matches(escaped).count(), debug.matches(escaped).count()), (4, 5), "{debug}");
        assert!(!debug.contains(['\u{1b}', '\n', '\u{202e}']), "{debug:?}");
        assert_eq!(
            (error.message(), error.setting(), error.value()),
            (hostile, Some(hostile), Some(hostile))
        );
    }
}
