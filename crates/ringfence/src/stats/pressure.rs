//! Pressure stall information: `cpu.pressure`, `memory.pressure`, `io.pressure`, `irq.pressure`.
//!
//! Every v2 cgroup has it, whatever controllers it has, unless the kernel was booted with `psi=0`.

use serde::{Deserialize, Serialize};

use super::file::File;
use super::{absent, parse};

/// Time lost waiting, by resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PressureStats {
    /// For a CPU. It has a `full` since Linux 5.13.
    #[serde(skip_serializing_if = "absent")]
    pub cpu: Pressure,
    /// For memory.
    #[serde(skip_serializing_if = "absent")]
    pub memory: Pressure,
    /// For block devices.
    #[serde(skip_serializing_if = "absent")]
    pub io: Pressure,
    /// For interrupts to be served, since Linux 6.1; `full` only.
    #[serde(skip_serializing_if = "absent")]
    pub irq: Pressure,
}

/// Time lost waiting for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pressure {
    /// At least one task waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some: Option<Stalled>,
    /// All tasks that had something to do waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Stalled>,
}

/// The share of time that was lost, and all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stalled {
    /// Per cent of the last 10 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg10: Option<f64>,
    /// Per cent of the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg60: Option<f64>,
    /// Per cent of the last five minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avg300: Option<f64>,
    /// Microseconds since the cgroup was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u64>,
}

pub(super) const FILES: &[File] = &[
    File::core("cpu.pressure", |stats, contents| stats.pressure.cpu = pressure(contents)),
    File::core("memory.pressure", |stats, contents| stats.pressure.memory = pressure(contents)),
    File::core("io.pressure", |stats, contents| stats.pressure.io = pressure(contents)),
    File::core("irq.pressure", |stats, contents| stats.pressure.irq = pressure(contents)),
];

/// Lines of `some|full avg10=P avg60=P avg300=P total=N`.
fn pressure(contents: &[u8]) -> Pressure {
    let mut pressure = Pressure::default();
    for line in contents.split(|byte| *byte == b'\n') {
        if let Some(rest) = line.strip_prefix(b"some ") {
            pressure.some = Some(stalled(rest));
        } else if let Some(rest) = line.strip_prefix(b"full ") {
            pressure.full = Some(stalled(rest));
        }
    }
    pressure
}

fn stalled(rest: &[u8]) -> Stalled {
    let mut stalled = Stalled::default();
    for word in rest.split(|byte| *byte == b' ') {
        if let Some(text) = word.strip_prefix(b"avg10=") {
            stalled.avg10 = percent(text);
        } else if let Some(text) = word.strip_prefix(b"avg60=") {
            stalled.avg60 = percent(text);
        } else if let Some(text) = word.strip_prefix(b"avg300=") {
            stalled.avg300 = percent(text);
        } else if let Some(text) = word.strip_prefix(b"total=") {
            stalled.total_us = parse::number(text);
        }
    }
    stalled
}

/// A number with two decimals.
fn percent(text: &[u8]) -> Option<f64> {
    let (whole, behind) = parse::leading_number(text)?;
    let hundredths = behind.strip_prefix(b".").filter(|hundredths| hundredths.len() == 2)?;
    let all = whole.checked_mul(100)?.checked_add(parse::number(hundredths)?)?;
    Some(f64::from(u32::try_from(all).ok()?) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_time_has_two_decimals() {
        let table = [
            ("0.00", Some(0.0)),
            ("57.09", Some(57.09)),
            ("100.00", Some(100.0)),
            ("1.5", None),
            ("1.234", None),
            ("7", None),
            (".07", None),
            ("-1.00", None),
            ("inf", None),
            ("99999999999.00", None),
        ];
        for (text, expected) in table {
            assert_eq!(percent(text.as_bytes()), expected, "{text}");
        }
    }
}
