//! Sizes of huge pages.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, text};

/// The size of a huge page. In text as the names of the hugetlb controller's files have it: `64KB`, `2MB`, `1GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HugePageSize {
    kilobytes: u64,
}

const UNITS: [(&str, u32); 3] = [("GB", 20), ("MB", 10), ("KB", 0)];

impl HugePageSize {
    /// The size with so many KiB; `None` if no page has it: it is a power of two, 2⁴² KiB at the most.
    pub(crate) fn from_kilobytes(kilobytes: u64) -> Option<Self> {
        (kilobytes.is_power_of_two() && kilobytes <= 1 << 42).then_some(Self { kilobytes })
    }

    /// The size that a file is named after; without the cost of an error.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(2)?)?;
        let (_, shift) = UNITS.into_iter().find(|(known, _)| *known == unit)?;
        // `u64::from_str` takes a sign too.
        let number: u64 =
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?;
        Self::from_kilobytes(number.checked_mul(1 << shift)?)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.kilobytes << 10
    }
}

impl fmt::Display for HugePageSize {
    /// With the largest unit that divides it, as the kernel's `mem_fmt`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |shift: &u32| self.kilobytes >> shift > 0;
        let (unit, shift) = UNITS.into_iter().find(|(_, shift)| divides(shift)).unwrap_or(("KB", 0));
        write!(f, "{}{unit}", self.kilobytes >> shift)
    }
}

impl FromStr for HugePageSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| Error::invalid("pageSize", text, "takes a size such as 2MB or 1GB"))
    }
}

impl Serialize for HugePageSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HugePageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer, "a size such as \"2MB\" or \"1GB\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_as_the_controller_names_its_files() {
        for (given, name, bytes) in [
            ("64KB", "64KB", 64 << 10),
            ("2MB", "2MB", 2 << 20),
            ("2048KB", "2MB", 2 << 20),
            ("32MB", "32MB", 32 << 20),
            ("1024MB", "1GB", 1 << 30),
            ("16GB", "16GB", 16 << 30),
        ] {
            let size: HugePageSize = given.parse().unwrap();
            assert_eq!((size.to_string().as_str(), size.bytes()), (name, bytes));
            assert_eq!(serde_json::to_value(size).unwrap(), name);
        }
    }

    #[test]
    fn what_no_page_is_as_large_as_is_refused() {
        for text in ["", "MB", "2", "2M", "2mb", "0MB", "3MB", "+2MB", "2 MB", "../x", "é", "é2MB", "2TB"] {
            assert!(text.parse::<HugePageSize>().is_err(), "{text}");
        }
        assert!("18446744073709551615GB".parse::<HugePageSize>().is_err());
        assert!("4398046511104KB".parse::<HugePageSize>().is_ok());
    }
}
