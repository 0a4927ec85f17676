//! What limits look like, in effect and at each level.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::devices::DeviceNumber;
use crate::resources::{CpuSet, Limit};

/// A value of one kind or another. In JSON a number, a text, or an object of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Value {
    /// Memory, swap or huge pages, in bytes.
    Bytes(Limit),
    /// Number of tasks.
    Tasks(Limit),
    /// CPU time.
    Bandwidth(Bandwidth),
    /// CPUs or memory nodes.
    Set(CpuSet),
    /// Limits of block devices. What is not limited is absent.
    Throttles(PerDevice<u64>),
}

impl fmt::Display for Value {
    /// As files of cgroup v2 have it; throttles of several devices with `, ` between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(limit) | Self::Tasks(limit) => limit.fmt(f),
            Self::Bandwidth(bandwidth) => bandwidth.fmt(f),
            Self::Set(set) => set.fmt(f),
            Self::Throttles(devices) => {
                for (number, (device, throttles)) in devices.iter().enumerate() {
                    write!(f, "{}{device}", if number == 0 { "" } else { ", " })?;
                    throttles.iter().try_for_each(|(kind, value)| write!(f, " {kind}={value}"))?;
                }
                Ok(())
            }
        }
    }
}

/// CPU time: how much of it in each period. In text and JSON as in `cpu.max`: `50000 100000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Microseconds of CPU time per period: `cpu.max`, `cpu.cfs_quota_us`.
    pub quota_us: Limit,
    /// Length of the period in microseconds: `cpu.max`, `cpu.cfs_period_us`.
    pub period_us: u64,
}

impl Bandwidth {
    /// What a cgroup has of which nothing was asked.
    pub(super) const UNLIMITED: Self = Self { quota_us: Limit::Max, period_us: 100_000 };

    /// How many CPUs that is; `None` without a limit.
    pub fn cpus(&self) -> Option<f64> {
        match self.quota_us {
            Limit::Value(quota) => Some(quota as f64 / self.period_us as f64),
            Limit::Max => None,
        }
    }

    /// Whether it is more or less CPU time than another; exact.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let product = |quota, period| u128::from(quota) * u128::from(period);
        match (self.quota_us, other.quota_us) {
            (Limit::Value(quota), Limit::Value(others)) => {
                product(quota, other.period_us).cmp(&product(others, self.period_us))
            }
            (quota, others) => quota.cmp(&others),
        }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota_us, self.period_us)
    }
}

impl Serialize for Bandwidth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Something for each throttle of each block device.
pub type PerDevice<T> = BTreeMap<DeviceNumber, Throttles<T>>;

/// Something for each throttle of one block device, under v2's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Throttles<T> {
    /// Bytes read per second: `io.max`; v1: `blkio.throttle.read_bps_device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rbps: Option<T>,
    /// Bytes written per second: `io.max`; v1: `blkio.throttle.write_bps_device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wbps: Option<T>,
    /// Read requests per second: `io.max`; v1: `blkio.throttle.read_iops_device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub riops: Option<T>,
    /// Write requests per second: `io.max`; v1: `blkio.throttle.write_iops_device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wiops: Option<T>,
}

impl<T> Default for Throttles<T> {
    fn default() -> Self {
        Self { rbps: None, wbps: None, riops: None, wiops: None }
    }
}

impl<T> Throttles<T> {
    /// Those that are there, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        Throttle::ALL.into_iter().filter_map(|kind| Some((kind.as_str(), self.get(kind)?)))
    }

    pub(super) fn get(&self, kind: Throttle) -> Option<&T> {
        match kind {
            Throttle::ReadBytes => self.rbps.as_ref(),
            Throttle::WriteBytes => self.wbps.as_ref(),
            Throttle::Reads => self.riops.as_ref(),
            Throttle::Writes => self.wiops.as_ref(),
        }
    }

    pub(super) fn set(&mut self, kind: Throttle, value: T) {
        *match kind {
            Throttle::ReadBytes => &mut self.rbps,
            Throttle::WriteBytes => &mut self.wbps,
            Throttle::Reads => &mut self.riops,
            Throttle::Writes => &mut self.wiops,
        } = Some(value);
    }
}

/// The kinds of throttles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Throttle {
    ReadBytes,
    WriteBytes,
    Reads,
    Writes,
}

impl Throttle {
    pub(super) const ALL: [Self; 4] = [Self::ReadBytes, Self::WriteBytes, Self::Reads, Self::Writes];

    /// The name in `io.max`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ReadBytes => "rbps",
            Self::WriteBytes => "wbps",
            Self::Reads => "riops",
            Self::Writes => "wiops",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_compared_as_fractions() {
        let bandwidth = |quota, period_us| Bandwidth { quota_us: Limit::Value(quota), period_us };
        for (one, other, expected) in [
            (bandwidth(50_000, 100_000), bandwidth(5_000, 10_000), Ordering::Equal),
            (bandwidth(50_000, 100_000), bandwidth(60_000, 1_000_000), Ordering::Greater),
            (bandwidth(33_333, 100_000), bandwidth(333_334, 1_000_000), Ordering::Less),
            (bandwidth(u64::MAX, 1), bandwidth(u64::MAX - 1, 1), Ordering::Greater),
            (bandwidth(u64::MAX, 1_000_000), Bandwidth::UNLIMITED, Ordering::Less),
            (Bandwidth::UNLIMITED, Bandwidth { quota_us: Limit::Max, period_us: 1 }, Ordering::Equal),
        ] {
            assert_eq!(one.compare(&other), expected, "{one} / {other}");
            assert_eq!(other.compare(&one), expected.reverse(), "{other} / {one}");
        }
        assert_eq!(bandwidth(150_000, 100_000).cpus(), Some(1.5));
        assert_eq!(Bandwidth::UNLIMITED.cpus(), None);
    }

    #[test]
    fn a_value_is_a_number_a_text_or_an_object_of_devices() {
        let mut throttles = Throttles::default();
        throttles.set(Throttle::WriteBytes, 1 << 20);
        throttles.set(Throttle::Reads, 100);
        let throttles = Value::Throttles(BTreeMap::from([(DeviceNumber { major: 8, minor: 0 }, throttles)]));
        for (value, json, text) in [
            (Value::Bytes(Limit::Value(4096)), "4096", "4096"),
            (Value::Tasks(Limit::Max), r#""max""#, "max"),
            (Value::Bandwidth(Bandwidth::UNLIMITED), r#""max 100000""#, "max 100000"),
            (Value::Set("0-3,8".parse().unwrap()), r#""0-3,8""#, "0-3,8"),
            (Value::Set(CpuSet::new()), r#""""#, ""),
            (throttles, r#"{"8:0":{"wbps":1048576,"riops":100}}"#, "8:0 wbps=1048576 riops=100"),
            (Value::Throttles(BTreeMap::new()), "{}", ""),
        ] {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(value.to_string(), text);
        }
    }
}
