//! A device by its numbers alone.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, text};

/// A device by its numbers, as files of cgroups name it; in text and JSON `8:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl DeviceNumber {
    /// `MAJOR:MINOR`, two whole numbers of 32 bits; without the cost of an error.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // `u32::from_str` takes a sign too.
        let number = |digits: &str| {
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
        };
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl FromStr for DeviceNumber {
    type Err = Error;

    /// Reads `MAJOR:MINOR`, two whole numbers of 32 bits.
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| Error::invalid("device", text, "takes MAJOR:MINOR, such as 8:0"))
    }
}

impl Serialize for DeviceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer, "the numbers of a device such as \"8:0\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_two_with_a_colon_between_them() {
        let device: DeviceNumber = "8:16".parse().unwrap();
        assert_eq!(device, DeviceNumber { major: 8, minor: 16 });
        assert_eq!(serde_json::to_string(&device).unwrap(), r#""8:16""#);
        assert_eq!(serde_json::from_str::<DeviceNumber>(r#""8:16""#).unwrap(), device);
        for text in ["", "8", "8:", ":16", "8:+1", "-8:1", "8:1:1", "4294967296:0", "8: 1", "sda"] {
            let error = text.parse::<DeviceNumber>().unwrap_err();
            assert_eq!(error.value(), Some(text));
        }
    }
}
