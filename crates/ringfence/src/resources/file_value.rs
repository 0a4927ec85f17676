//! Values of cgroup v2's interface files, as the kernel parses them.
//!
//! `unified` takes any file of a controller, and its values mean the same under both drivers. systemd takes other words
//! than the kernel (a weight of 0 is idle, -1 is no limit), so that what the kernel refuses is refused before it is asked.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use super::validate::{LONGEST_QUOTA_US, MOST_PIDS};
use super::{CpuSet, HugePageSize, parse_size};
use crate::devices::DeviceNumber;

/// The values that a file takes, of those whose form is known.
enum Form {
    /// A whole number in a range.
    Number(RangeInclusive<i64>),
    /// As [`Form::Number`], or `max`.
    Limit(RangeInclusive<i64>),
    /// Bytes with a unit or without, or `max`.
    Size,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of numbers, such as `0-3`.
    List,
    /// A number and one for each device.
    Weights(RangeInclusive<i64>),
    /// For each device, values by name: a number from 1 on, or `max`.
    Throttles(&'static [&'static str]),
    /// `QUOTA|max [PERIOD]`.
    Bandwidth,
}

const SWITCH: Form = Form::Number(0..=1);
const COUNT: Form = Form::Limit(0..=i32::MAX as i64);

/// The form of a file's values; `None` where it is not known.
fn form_of(file: &str) -> Option<Form> {
    Some(match file {
        "memory.min" | "memory.low" | "memory.high" | "memory.max" | "memory.swap.high"
        | "memory.swap.max" | "memory.zswap.max" => Form::Size,
        "memory.oom.group" | "memory.zswap.writeback" | "cpu.idle" => SWITCH,
        "cpu.weight" => Form::Number(1..=10_000),
        "cpu.weight.nice" => Form::Number(-20..=19),
        "cpu.max" => Form::Bandwidth,
        "cpu.max.burst" => Form::Number(0..=LONGEST_QUOTA_US.cast_signed()),
        "cpuset.cpus" | "cpuset.mems" | "cpuset.cpus.exclusive" => Form::List,
        "cpuset.cpus.partition" => Form::Word(&["member", "root", "isolated"]),
        "pids.max" => Form::Limit(0..=MOST_PIDS.cast_signed()),
        "io.weight" => Form::Weights(1..=10_000),
        "io.bfq.weight" => Form::Weights(1..=1000),
        "io.max" => Form::Throttles(&["rbps", "wbps", "riops", "wiops"]),
        "cgroup.max.descendants" | "cgroup.max.depth" => COUNT,
        _ => {
            let (size, kind) = file.strip_prefix("hugetlb.")?.split_once('.')?;
            HugePageSize::parse(size).filter(|_| matches!(kind, "max" | "rsvd.max"))?;
            Form::Size
        }
    })
}

/// What the file takes, where the kernel would refuse the value.
pub(super) fn expected(file: &str, value: &str) -> Option<Cow<'static, str>> {
    let form = form_of(file)?;
    (!form.takes(value.trim())).then(|| form.expected())
}

impl Form {
    fn takes(&self, value: &str) -> bool {
        let max = |text: &str| text == "max";
        match self {
            Self::Number(range) => is_within(value, range),
            Self::Limit(range) => max(value) || is_within(value, range),
            Self::Size => max(value) || is_decimal(value) && parse_size(value).is_ok(),
            Self::Word(words) => words.contains(&value),
            Self::List => value.parse::<CpuSet>().is_ok_and(|set| !set.is_empty()),
            Self::Weights(range) => value.lines().all(|line| match words(line)[..] {
                [weight] | ["default", weight] => is_within(weight, range),
                [device, weight] => is_device(device) && (weight == "default" || is_within(weight, range)),
                _ => false,
            }),
            Self::Throttles(names) => value.lines().all(|line| {
                let words = words(line);
                let rate = |word: &&str| {
                    let Some((name, rate)) = word.split_once('=') else { return false };
                    let number = || is_decimal(rate) && rate.parse::<u64>().is_ok_and(|rate| rate > 0);
                    names.contains(&name) && (max(rate) || number())
                };
                words.split_first().is_none_or(|(device, rates)| is_device(device) && rates.iter().all(rate))
            }),
            Self::Bandwidth => {
                let quota =
                    |word: &str| max(word) || is_within(word, &(1000..=LONGEST_QUOTA_US.cast_signed()));
                match words(value)[..] {
                    [word] => quota(word),
                    [word, period] => quota(word) && is_within(period, &(1000..=1_000_000)),
                    _ => false,
                }
            }
        }
    }

    fn expected(&self) -> Cow<'static, str> {
        let range = |range: &RangeInclusive<i64>| format!("{} to {}", range.start(), range.end());
        match self {
            Self::Number(numbers) if numbers.end() - numbers.start() == 1 => "takes 0 or 1".into(),
            Self::Number(numbers) => format!("takes {}", range(numbers)).into(),
            Self::Limit(numbers) => format!("takes {}, or max", range(numbers)).into(),
            Self::Size => "takes bytes, with K, M, G or T behind them (powers of 1024), or max".into(),
            Self::Word(words) => format!("takes one of {}", words.join(", ")).into(),
            Self::List => "takes a list such as 0-3,8".into(),
            Self::Weights(numbers) => {
                format!("takes {}, or MAJOR:MINOR and such a number or default", range(numbers)).into()
            }
            Self::Throttles(names) => {
                let names = names.join("=, ");
                format!("takes MAJOR:MINOR and {names}= with a whole number from 1 on, or max").into()
            }
            Self::Bandwidth => format!(
                "takes a quota of 1000 to {LONGEST_QUOTA_US} or max, and a period of 1000 to 1000000, in µs"
            )
            .into(),
        }
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().collect()
}

/// A number without a sign and in decimal: the kernel reads one that begins with 0 as octal or hexadecimal, systemd as
/// decimal.
fn is_decimal(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    digits == "0" || !digits.starts_with('0') && digits.starts_with(|c: char| c.is_ascii_digit())
}

fn is_within(text: &str, range: &RangeInclusive<i64>) -> bool {
    is_decimal(text.strip_prefix('-').unwrap_or(text))
        && text.parse().is_ok_and(|number| range.contains(&number))
}

fn is_device(text: &str) -> bool {
    DeviceNumber::parse(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_the_kernel_takes_are_taken() {
        for (file, value) in [
            ("cpu.weight", "1"),
            ("cpu.weight", "10000\n"),
            ("cpu.weight.nice", "-20"),
            ("cpu.max", "max"),
            ("cpu.max", "1000 1000000"),
            ("memory.high", "0"),
            ("memory.high", "64M"),
            ("memory.low", "max"),
            ("memory.oom.group", "1"),
            ("pids.max", "0"),
            ("pids.max", "max"),
            ("cpuset.cpus", "0-3,8"),
            ("cpuset.cpus.partition", "isolated"),
            ("io.weight", "100"),
            ("io.weight", "default 100\n8:0 default\n8:16 1"),
            ("io.max", "8:0 rbps=max wiops=5\n\n8:16 rbps=18446744073709551615"),
            ("hugetlb.2MB.rsvd.max", "4194304"),
            ("cgroup.max.depth", "0"),
            ("cgroup.max.descendants", "max"),
            ("memory.peak", "anything"),
            ("hugetlb.x.max", "-1"),
            ("rdma.max", "mlx5_0 hca_handle=max"),
        ] {
            assert_eq!(expected(file, value), None, "{file} {value}");
        }
    }

    #[test]
    fn values_that_the_kernel_refuses_are_refused() {
        for (file, values) in [
            ("cpu.weight", &["0", "10001", "-1", "max", "idle", "010", "1 2"][..]),
            ("cpu.weight.nice", &["-21", "20"]),
            ("cpu.idle", &["2", "-1"]),
            ("cpu.max", &["999", "-1", "max max", "5000 999", "5000 1000001", "1 2 3", "max 0x5000"]),
            ("cpu.max.burst", &["-1", "max"]),
            ("memory.high", &["-1", "+5", "1.5G", "0x1000", "010", "64MB", "infinity", "x"]),
            ("memory.swap.max", &["-1"]),
            ("memory.oom.group", &["2", "invalid", "kill", "-1"]),
            ("pids.max", &["-1", "64K", "4194305", "010"]),
            ("cpuset.cpus", &["x", "3-1"]),
            ("cpuset.cpus.partition", &["x"]),
            ("io.weight", &["0", "default 0", "10001", "sda 5", "8:0 0", "8:0", "8:0 5 6"]),
            ("io.bfq.weight", &["1001"]),
            ("io.max", &["8:0 rbps=0", "8:0 foo=1", "sda rbps=1", "8:0 rbps=5M", "8:0 rbps", "rbps=1"]),
            ("hugetlb.2MB.max", &["-1", "x"]),
            ("cgroup.max.depth", &["-1", "2147483648", "x"]),
        ] {
            for value in values {
                let expected = expected(file, value).unwrap_or_else(|| panic!("{file} {value}"));
                assert!(expected.starts_with("takes "), "{expected}");
            }
        }
    }
}
