//! What pressure is told of: how long tasks stall within a time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::kernel::proc;

const FORM: &str =
    "takes RESOURCE:KIND:STALL/WINDOW, such as memory:some:100ms/1s, with times in us, ms or s";
const RESOURCES: &str = "the resource is memory, cpu, io or irq";
const KINDS: &str = "the kind is some (a task stalls) or full (all of them do)";
const WITHOUT_V2: &str = "cgroup v1 has no pressure of a cgroup: it takes a cgroup v2 tree";
const WITHOUT_PSI: &str = "this kernel measures no pressure: boot it with psi=1";
const UNPRIVILEGED: &str = "without CAP_SYS_RESOURCE the kernel takes windows of 2s, 4s, 6s, 8s and 10s alone, and older ones \
                            (such as 6.1) none";
const WINDOW: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PressureResource {
    /// Memory to be reclaimed, or to come back from swap (`memory.pressure`).
    Memory,
    /// A CPU (`cpu.pressure`).
    Cpu,
    /// Block devices (`io.pressure`).
    Io,
    /// Interrupts to be handled (`irq.pressure`, Linux 6.1); only as [`PressureKind::Full`].
    Irq,
}

/// How many tasks stall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PressureKind {
    /// At least one.
    Some,
    /// All that are not idle, at the same time.
    Full,
}

/// A threshold of pressure: `memory:some:100ms/1s` is told when tasks have stalled on memory for 100 ms within 1 s, and at
/// most once per window. v2 only; in hybrid mode of the v2 tree (kernel documentation `accounting/psi`, Linux 5.2).
///
/// Without CAP_SYS_RESOURCE the kernel takes windows of 2 s, 4 s, 6 s, 8 s and 10 s alone, and older ones (such as 6.1) none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PressureTrigger {
    resource: PressureResource,
    kind: PressureKind,
    stall_us: u64,
    window_us: u64,
}

impl PressureTrigger {
    /// A threshold: `stall` in total within `window`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a window that is not 500 ms to 10 s, for no stall, one longer than the window, or of
    /// a part of a microsecond, and for `some` of interrupts.
    pub fn new(
        resource: PressureResource,
        kind: PressureKind,
        stall: Duration,
        window: Duration,
    ) -> Result<Self> {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let trigger = Self { resource, kind, stall_us: us(stall), window_us: us(window) };
        let wrong = |allowed| Err(Error::invalid("pressure", trigger, allowed));
        if ![stall, window].iter().all(|time| time.subsec_nanos().is_multiple_of(1000)) {
            return wrong("takes whole microseconds");
        }
        if !(WINDOW.0..=WINDOW.1).contains(&window) {
            return wrong("the window is 500ms to 10s");
        }
        if stall.is_zero() || stall > window {
            return wrong("the stall is more than 0 and no longer than the window");
        }
        if resource == PressureResource::Irq && kind == PressureKind::Some {
            return wrong("of interrupts the kernel knows full alone");
        }
        Ok(trigger)
    }

    /// What tasks wait for.
    pub fn resource(&self) -> PressureResource {
        self.resource
    }

    /// How many stall.
    pub fn kind(&self) -> PressureKind {
        self.kind
    }

    /// For how long in total.
    pub fn stall(&self) -> Duration {
        Duration::from_micros(self.stall_us)
    }

    /// Within which time.
    pub fn window(&self) -> Duration {
        Duration::from_micros(self.window_us)
    }

    /// The kernel's file.
    pub(super) fn file(&self) -> &'static str {
        match self.resource {
            PressureResource::Memory => "memory.pressure",
            PressureResource::Cpu => "cpu.pressure",
            PressureResource::Io => "io.pressure",
            PressureResource::Irq => "irq.pressure",
        }
    }

    /// What is written to it.
    pub(super) fn line(&self) -> String {
        format!("{} {} {}", self.kind, self.stall_us, self.window_us)
    }

    /// Whether it can be had on this machine, as far as can be said without trying.
    pub(super) fn check(&self, host: &Host) -> Result<()> {
        let why = if host.unified().is_none() {
            WITHOUT_V2
        } else if !host.capabilities.psi {
            WITHOUT_PSI
        } else if !self.window_us.is_multiple_of(2_000_000) && !proc::may_use_resources() {
            UNPRIVILEGED
        } else {
            return Ok(());
        };
        Err(self.unsupported(why))
    }

    /// What the kernel means by refusing it.
    pub(super) fn refused(&self, errno: Errno) -> Error {
        let why = match errno {
            Errno::NOENT => "this kernel does not measure this pressure of a cgroup",
            Errno::OPNOTSUPP => WITHOUT_PSI,
            Errno::INVAL | Errno::PERM | Errno::ACCESS if !proc::may_use_resources() => UNPRIVILEGED,
            _ => "the kernel refused to tell of it",
        };
        self.unsupported(why).with_errno(errno)
    }

    fn unsupported(&self, why: &'static str) -> Error {
        Error::new(ErrorKind::Unsupported, why).with_setting("pressure").with_value(self)
    }
}

impl fmt::Display for PressureResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Io => "io",
            Self::Irq => "irq",
        })
    }
}

impl fmt::Display for PressureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Some => "some",
            Self::Full => "full",
        })
    }
}

/// As it is parsed: `memory:some:100ms/1s`.
impl fmt::Display for PressureTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |us: u64| match us {
            _ if us != 0 && us.is_multiple_of(1_000_000) => format!("{}s", us / 1_000_000),
            _ if us != 0 && us.is_multiple_of(1000) => format!("{}ms", us / 1000),
            _ => format!("{us}us"),
        };
        let Self { resource, kind, stall_us, window_us } = self;
        write!(f, "{resource}:{kind}:{}/{}", time(*stall_us), time(*window_us))
    }
}

impl FromStr for PressureTrigger {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |allowed: &'static str| Error::invalid("pressure", text, allowed);
        let (resource, rest) = text.split_once(':').ok_or_else(|| wrong(FORM))?;
        let (kind, times) = rest.split_once(':').ok_or_else(|| wrong(FORM))?;
        let (stall, window) = times.split_once('/').ok_or_else(|| wrong(FORM))?;
        let resource = match resource {
            "memory" => PressureResource::Memory,
            "cpu" => PressureResource::Cpu,
            "io" => PressureResource::Io,
            "irq" => PressureResource::Irq,
            _ => return Err(wrong(RESOURCES)),
        };
        let kind = match kind {
            "some" => PressureKind::Some,
            "full" => PressureKind::Full,
            _ => return Err(wrong(KINDS)),
        };
        let time = |text| time(text).ok_or_else(|| wrong(FORM));
        Self::new(resource, kind, time(stall)?, time(window)?).map_err(|error| error.with_value(text))
    }
}

impl Serialize for PressureTrigger {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A whole number and its unit.
fn time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let scale = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.parse::<u64>().ok()?.checked_mul(scale)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_is_printed_as_it_is_parsed_and_written_in_microseconds() {
        for (text, file, line) in [
            ("memory:some:100ms/1s", "memory.pressure", "some 100000 1000000"),
            ("cpu:full:1us/500ms", "cpu.pressure", "full 1 500000"),
            ("io:some:10s/10s", "io.pressure", "some 10000000 10000000"),
            ("irq:full:1500us/2s", "irq.pressure", "full 1500 2000000"),
        ] {
            let trigger: PressureTrigger = text.parse().unwrap();
            assert_eq!((&*trigger.to_string(), trigger.file(), &*trigger.line()), (text, file, line));
        }
        let padded: PressureTrigger = "memory:some:0100ms/1000ms".parse().unwrap();
        assert_eq!(padded, "memory:some:100ms/1s".parse().unwrap());
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused_with_what_it_takes() {
        for (text, why) in [
            ("", FORM),
            ("memory", FORM),
            ("memory:some", FORM),
            ("memory:some:100ms", FORM),
            ("memory:some:100/1s", FORM),
            ("memory:some:ms/1s", FORM),
            ("memory:some:-1ms/1s", FORM),
            ("memory:some:+1ms/1s", FORM),
            ("memory:some:1.5ms/1s", FORM),
            ("memory:some:100ms/1m", FORM),
            ("memory:some:100ms/1s ", FORM),
            ("memory:some:100ms/99999999999999999999s", FORM),
            ("memory:some:100ms/9999999999999999s", FORM),
            ("swap:some:100ms/1s", RESOURCES),
            ("Memory:some:100ms/1s", RESOURCES),
            ("memory:any:100ms/1s", KINDS),
            ("memory:some:100ms/499ms", "the window is 500ms to 10s"),
            ("memory:some:100ms/10001ms", "the window is 500ms to 10s"),
            ("memory:some:0us/1s", "the stall is more than 0 and no longer than the window"),
            ("memory:some:2s/1s", "the stall is more than 0 and no longer than the window"),
            ("irq:some:100ms/1s", "of interrupts the kernel knows full alone"),
        ] {
            let error = text.parse::<PressureTrigger>().unwrap_err();
            let told = (error.setting(), error.value(), error.message());
            assert_eq!(told, (Some("pressure"), Some(text), why));
        }
    }
}
