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
    for line in parse::lines(contents) {
        match parse::cut(line, b' ') {
            Some(("some", rest)) => pressure.some = Some(stalled(rest)),
            Some(("full", rest)) => pressure.full = Some(stalled(rest)),
            _ => {}
        }
    }
    pressure
}

fn stalled(rest: &str) -> Stalled {
    let mut stalled = Stalled::default();
    for (name, text) in parse::assignments(rest) {
        match name {
            "avg10" => stalled.avg10 = percent(text),
            "avg60" => stalled.avg60 = percent(text),
            "avg300" => stalled.avg300 = percent(text),
            "total" => stalled.total_us = parse::number(text),
            _ => {}
        }
    }
    stalled
}

/// Two decimals; also what Rust would read as a number, but never an infinity, which JSON cannot say.
fn percent(text: &str) -> Option<f64> {
    text.parse().ok().filter(|percent: &f64| percent.is_finite())
}
