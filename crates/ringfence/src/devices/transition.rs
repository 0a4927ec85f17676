//! The v1 device controller: from what `devices.list` shows to a policy, as writes to `devices.allow` and
//! `devices.deny`.
//!
//! What the kernel makes of a write (kernel documentation: cgroup-v1/devices): one rule per write, the rest of the
//! buffer is dropped in silence. An `allow` only adds letters to an entry, so narrowing is a `deny` of the letters to
//! lose; a `deny` changes only the entry with exactly its type and numbers. A rule for every device resets the list.
//! While the default is to allow, the list shows nothing but `a *:* rwm`, and the exceptions must be known from
//! elsewhere. A child cannot have what its parent denies.

use std::path::Path;

use rustix::io::Errno;

use super::{DeviceKind, DevicePolicy, Exception, Numbers, Verdict};
use crate::{Error, ErrorKind, Result};

/// What `devices.list` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LiveList {
    /// Only what is listed is allowed.
    Listed(DevicePolicy),
    /// All is allowed but for exceptions that the kernel does not show.
    AllowByDefault,
}

/// The devices of a cgroup as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveDevices {
    /// From `devices.list`.
    pub(crate) list: LiveList,
    /// What was written last, from the state of the sandbox, if there is one: the exceptions under default allow.
    pub(crate) known: Option<DevicePolicy>,
}

/// One write to a file of the device controller; one write(2) each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceWrite {
    /// `devices.allow` or `devices.deny`.
    pub(crate) file: &'static str,
    /// One rule, such as `c 1:3 rwm`.
    pub(crate) value: String,
}

const ALLOW: &str = "devices.allow";
const DENY: &str = "devices.deny";

/// The smallest set of writes that leads to `to`.
///
/// What is allowed before and after is never refused in between: what is gained is written first. A change of the
/// default, or from exceptions that are unknown, goes over a list without exceptions, in which everything is refused or
/// everything is allowed for a moment: an error ([`ErrorKind::Busy`]) while the cgroup is `populated` with processes
/// that run, and not frozen; asked only then.
pub(crate) fn transition(
    live: &LiveDevices,
    to: &DevicePolicy,
    populated: impl FnOnce() -> bool,
) -> Result<Vec<DeviceWrite>> {
    let from = match &live.list {
        LiveList::Listed(listed) => Some(listed),
        // A state that says "deny" of a list that allows is not about this list.
        LiveList::AllowByDefault => {
            live.known.as_ref().filter(|known| known.default_verdict() == Verdict::Allow)
        }
    };
    let default = to.default_verdict();
    let (except, restore) = match default {
        Verdict::Deny => (ALLOW, DENY),
        Verdict::Allow => (DENY, ALLOW),
    };
    let write =
        |file: &'static str| move |exception: Exception| DeviceWrite { file, value: exception.text() };
    if let Some(from) = from.filter(|from| from.default_verdict() == default) {
        return Ok(to.minus(from).map(write(except)).chain(from.minus(to).map(write(restore))).collect());
    }
    let in_one_write = live.list == LiveList::AllowByDefault && *to == DevicePolicy::allow_all();
    if !in_one_write && populated() {
        let why = match (&live.list, default) {
            (LiveList::AllowByDefault, Verdict::Allow) => {
                "the exceptions that are there now are not known, and to reset them would open every device for a \
                 moment: freeze the sandbox first"
            }
            (_, Verdict::Allow) => {
                "from default deny to default allow every device would be open for a moment: freeze the sandbox first"
            }
            (_, Verdict::Deny) => {
                "from default allow to default deny every device would be refused for a moment: freeze the sandbox \
                 first"
            }
        };
        return Err(Error::new(ErrorKind::Busy, why)
            .with_setting("devices")
            .with_value(default.rule().sentence()));
    }
    let reset = DeviceWrite { file: restore, value: default.rule().to_string() };
    Ok(std::iter::once(reset).chain(to.exceptions().map(write(except))).collect())
}

impl LiveList {
    /// Whether the list is what `policy` must look like. Under default allow nothing more can be seen.
    pub(crate) fn shows(&self, policy: &DevicePolicy) -> bool {
        *self == Self::from(policy)
    }
}

impl From<&DevicePolicy> for LiveList {
    fn from(policy: &DevicePolicy) -> Self {
        match policy.default_verdict() {
            Verdict::Deny => Self::Listed(policy.clone()),
            Verdict::Allow => Self::AllowByDefault,
        }
    }
}

impl DeviceWrite {
    /// Whether it resets the list. EINVAL then means that there are child cgroups; a removed one counts for a moment
    /// more, so that it is worth trying again.
    pub(crate) fn is_reset(&self) -> bool {
        self.value.starts_with('a')
    }
}

/// What a refusal of a write by the kernel means. `dir` is the cgroup's directory.
pub(crate) fn refusal(dir: &Path, file: &str, value: &str, errno: Errno) -> Error {
    let why = match errno {
        Errno::PERM => {
            let parent = dir.parent().unwrap_or(dir);
            format!("a cgroup cannot allow what its parent {} denies", parent.display())
        }
        Errno::INVAL if value.starts_with('a') => {
            "the default of a device cgroup cannot be changed while it has children: remove them first".into()
        }
        _ => "the kernel refused the device rule".to_owned(),
    };
    Error::kernel(why, dir.join(file), errno).with_setting("devices").with_value(value)
}

/// Reads `devices.list`.
pub(crate) fn parse_devices_list(bytes: &[u8]) -> Result<LiveList> {
    let mut listed = DevicePolicy::deny_all();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if line == b"a *:* rwm" {
            return Ok(LiveList::AllowByDefault);
        }
        let exception = parse_line(line).ok_or_else(|| {
            Error::new(ErrorKind::Kernel, "devices.list has a line that is no device rule")
                .with_value(String::from_utf8_lossy(line))
        })?;
        listed.insert(exception);
    }
    Ok(LiveList::Listed(listed))
}

fn parse_line(line: &[u8]) -> Option<Exception> {
    let (kind, rest) = match line {
        [b'b', b' ', rest @ ..] => (DeviceKind::Block, rest),
        [b'c', b' ', rest @ ..] => (DeviceKind::Char, rest),
        _ => return None,
    };
    let (major, rest) = parse_number(rest, b':')?;
    let (minor, rest) = parse_number(rest, b' ')?;
    let access = std::str::from_utf8(rest).ok()?.parse().ok()?;
    Some(Exception { kind, numbers: Numbers { major, minor }, access })
}

/// A number or `*`, up to the byte that ends it; and what comes behind that.
fn parse_number(text: &[u8], end: u8) -> Option<(Option<u32>, &[u8])> {
    let at = text.iter().position(|byte| *byte == end)?;
    let (digits, rest) = (text.get(..at)?, text.get(at + 1..)?);
    if digits == b"*" {
        return Some((None, rest));
    }
    let number = digits.iter().try_fold(0_u32, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })?;
    let is_one = !digits.is_empty();
    is_one.then_some((Some(number).filter(|number| *number != Numbers::KERNELS_ANY), rest))
}

#[cfg(test)]
mod on_a_kernel;
#[cfg(test)]
mod tests;
