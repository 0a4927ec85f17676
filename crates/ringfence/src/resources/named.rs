//! Fields that are given by the names of their v2 files.

use std::borrow::Cow;

use super::file_value::expected;
use super::{CpuSet, Limit, Resources, parse_limit};
use crate::interface::lifts_cpuset;
use crate::{Error, Result};

/// Files that the kernel or the planner holds against others (a burst against the quota, swap against memory): what
/// `unified` says of them counts as said by the field.
pub(crate) const FIELDS: [&str; 5] = ["cpu.idle", "cpu.max", "cpu.max.burst", "cpu.weight", "memory.max"];

impl Resources {
    /// Takes what `unified` says of [`FIELDS`] over into the fields, where it wins, and what lifts a cpuset.
    ///
    /// # Errors
    /// The first value that the file cannot hold; it stays where it is, and the others become fields.
    pub(crate) fn take_named_fields(&mut self) -> Result<()> {
        for (file, set) in [("cpuset.cpus", &mut self.cpu.cpus), ("cpuset.mems", &mut self.cpu.mems)] {
            if self.unified.get(file).is_some_and(|value| lifts_cpuset(file, value)) {
                self.unified.remove(file);
                *set = Some(CpuSet::new());
            }
        }
        let mut outcome = Ok(());
        for file in FIELDS {
            let Some(text) = self.unified.get(file).map(|text| text.trim().to_owned()) else { continue };
            match self.take_named_field(file, &text) {
                Ok(()) => drop(self.unified.remove(file)),
                refused => outcome = outcome.and(refused),
            }
        }
        outcome
    }

    /// The same with what [`take_named_fields`](Self::take_named_fields) takes over, and what comes of that.
    pub(crate) fn with_named_fields(&self) -> (Cow<'_, Self>, Result<()>) {
        if self.unified.is_empty() {
            return (Cow::Borrowed(self), Ok(()));
        }
        let mut taken = self.clone();
        let outcome = taken.take_named_fields();
        (Cow::Owned(taken), outcome)
    }

    fn take_named_field(&mut self, file: &'static str, text: &str) -> Result<()> {
        let refused = |allowed| Error::invalid(format!("unified.{file}"), text, allowed);
        if let Some(expected) = expected(file, text) {
            return Err(Error::invalid(format!("unified.{file}"), text, expected));
        }
        let number = || text.parse::<u64>().map_err(|_| refused("takes a whole number"));
        match file {
            "cpu.max" => {
                let mut words = text.split_whitespace();
                let quota = match words.next() {
                    Some("max") => Some(Limit::Max),
                    word => word.and_then(|word| word.parse().ok()).map(Limit::Value),
                };
                let period = words.next().map(str::parse).transpose().ok();
                let (Some(_), Some(period), None) = (quota, period, words.next()) else {
                    return Err(refused("takes a quota or max, and a period, in µs"));
                };
                self.cpu.quota = quota;
                self.cpu.period = period.or(self.cpu.period);
            }
            "cpu.max.burst" => self.cpu.burst = Some(number()?),
            "cpu.weight" => (self.cpu.weight, self.cpu.shares) = (Some(number()?), None),
            "cpu.idle" => match number()? {
                idle @ 0..=1 => self.cpu.idle = Some(i64::from(idle == 1)),
                _ => return Err(refused("takes 0 to 1")),
            },
            _ => self.memory.limit = Some(parse_limit("unified.memory.max", text)?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_file_counts_as_said_by_the_field() {
        let mut given = Resources::new()
            .cpu_quota(1000)
            .cpu_shares(2)
            .unified("cpu.max", "50000")
            .unified("cpu.max.burst", "7\n")
            .unified("cpu.weight", "50")
            .unified("cpu.idle", "1")
            .unified("memory.max", "8M")
            .unified("memory.high", "4M");
        given.take_named_fields().unwrap();
        let expected = Resources::new()
            .cpu_quota(50_000)
            .cpu_burst(7)
            .cpu_weight(50)
            .cpu_idle(true)
            .memory_limit(8 << 20)
            .unified("memory.high", "4M");
        assert_eq!(given, expected);
        for (file, text) in [
            ("cpu.max", "x"),
            ("cpu.max", "1 2 3"),
            ("cpu.max.burst", "-1"),
            ("cpu.idle", "2"),
            ("cpu.weight", ""),
            ("memory.max", "0x1000"),
        ] {
            let mut given = Resources::new().unified(file, text);
            let error = given.take_named_fields().unwrap_err();
            assert_eq!(error.setting(), Some(format!("unified.{file}").as_str()));
            assert_eq!(given, Resources::new().unified(file, text), "it stays");
        }
        let mut given = Resources::new().unified("cpu.max", "x").unified("memory.max", "8M");
        given.take_named_fields().unwrap_err();
        assert_eq!(
            given,
            Resources::new().unified("cpu.max", "x").memory_limit(8 << 20),
            "the others do not"
        );
    }
}
