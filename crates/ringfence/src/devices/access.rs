//! What may be done with a device.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// A non-empty subset of read, write and mknod; in text and JSON the letters `rwm`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(u8);

impl Access {
    /// Make a device node with mknod(2).
    pub const MKNOD: Self = Self(1);
    /// Open for reading.
    pub const READ: Self = Self(2);
    /// Open for writing.
    pub const WRITE: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    const LETTERS: [(char, Self); 3] = [('r', Self::READ), ('w', Self::WRITE), ('m', Self::MKNOD)];

    /// What is in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both, if anything.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::from_bits(self.0 & other.0)
    }

    /// What is in this and not in the other, if anything.
    pub fn minus(self, other: Self) -> Option<Self> {
        Self::from_bits(self.0 & !other.0)
    }

    /// Whether all of `other` is in this.
    pub fn contains(self, other: Self) -> bool {
        other.minus(self).is_none()
    }

    /// Whether the two have something in common.
    pub fn intersects(self, other: Self) -> bool {
        self.intersection(other).is_some()
    }

    /// The bits of the kernel's `BPF_DEVCG_ACC_*`.
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn letters(self) -> impl Iterator<Item = char> {
        Self::LETTERS.into_iter().filter(move |(_, access)| self.contains(*access)).map(|(letter, _)| letter)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.letters().try_for_each(|letter| f.write_char(letter))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({self})")
    }
}

impl FromStr for Access {
    type Err = Error;

    /// Letters of `rwm`, at least one, in any order.
    fn from_str(text: &str) -> Result<Self> {
        let mut bits = 0;
        for given in text.chars() {
            let known = Self::LETTERS.into_iter().find(|(letter, _)| *letter == given);
            bits |= known.map(|(_, access)| access.0).ok_or_else(|| refused(text))?;
        }
        Self::from_bits(bits).ok_or_else(|| refused(text))
    }
}

fn refused(text: &str) -> Error {
    Error::invalid("devices.access", text, "an access is one or more of the letters r, w and m")
}

impl Serialize for Access {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Access {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_written_in_one_order_and_read_in_any() {
        for (given, written) in [("rwm", "rwm"), ("mwr", "rwm"), ("m", "m"), ("mr", "rm"), ("ww", "w")] {
            assert_eq!(given.parse::<Access>().unwrap().to_string(), written);
        }
        for refused in ["", "x", "rwx", "R", "r w", "*"] {
            assert!(refused.parse::<Access>().is_err(), "{refused:?}");
        }
    }

    #[test]
    fn nothing_left_is_no_access() {
        assert_eq!(Access::READ.minus(Access::ALL), None);
        assert_eq!(Access::ALL.minus(Access::READ), Some(Access::WRITE.union(Access::MKNOD)));
        assert_eq!(Access::READ.intersection(Access::WRITE), None);
        assert!(Access::ALL.contains(Access::MKNOD) && !Access::MKNOD.contains(Access::ALL));
    }
}
