//! Exceptions while many rules are applied to them: each rule costs no more than what it changes.

use std::collections::{BTreeMap, BTreeSet};

use super::policy::{Exception, MOST_WIDER, Verdict, report_wider};
use super::{Access, DeviceKind, DeviceRule, Numbers, RuleKind};
use crate::{Report, Result};

/// Type and numbers, in the order of [`Exception`].
type Place = (DeviceKind, Option<u32>, Option<u32>);
/// Bits of the access, type, and the two numbers.
type Key = (u8, DeviceKind, Option<u32>, Option<u32>);

const LAST: Option<u32> = Some(u32::MAX);

/// The exceptions from a default, found by their access and by either number.
pub(super) struct Index {
    default: Verdict,
    exceptions: BTreeMap<Place, Access>,
    /// Major number before minor number.
    by_major: BTreeSet<Key>,
    /// Minor number before major number.
    by_minor: BTreeSet<Key>,
}

impl Index {
    pub(super) fn new(default: Verdict, exceptions: impl Iterator<Item = Exception>) -> Self {
        let (by_major, by_minor) = (BTreeSet::new(), BTreeSet::new());
        let mut index = Self { default, exceptions: BTreeMap::new(), by_major, by_minor };
        exceptions
            .for_each(|one| index.set((one.kind, one.numbers.major, one.numbers.minor), Some(one.access)));
        index
    }

    /// The default, and the exceptions in their order.
    pub(super) fn into_parts(self) -> (Verdict, Vec<Exception>) {
        let exceptions = self.exceptions.into_iter().map(|((kind, major, minor), access)| Exception {
            kind,
            numbers: Numbers { major, minor },
            access,
        });
        (self.default, exceptions.collect())
    }

    /// As [`DevicePolicy::apply`](super::DevicePolicy::apply).
    pub(super) fn apply(&mut self, rule: &DeviceRule, report: &mut Report) -> Result<()> {
        rule.validate()?;
        let verdict = if rule.allow { Verdict::Allow } else { Verdict::Deny };
        match rule.kind {
            RuleKind::All => *self = Self::new(verdict, std::iter::empty()),
            RuleKind::Only(kind) if verdict != self.default => {
                let place = (kind, rule.numbers.major, rule.numbers.minor);
                let there = self.exceptions.get(&place).copied();
                self.set(place, Some(there.map_or(rule.access, |there| there.union(rule.access))));
            }
            RuleKind::Only(kind) => self.take(kind, rule, report)?,
        }
        Ok(())
    }

    fn set(&mut self, place: Place, access: Option<Access>) {
        let (kind, major, minor) = place;
        let before = match access {
            Some(access) => self.exceptions.insert(place, access),
            None => self.exceptions.remove(&place),
        };
        if let Some(before) = before {
            self.by_major.remove(&(before.bits(), kind, major, minor));
            self.by_minor.remove(&(before.bits(), kind, minor, major));
        }
        if let Some(access) = access {
            self.by_major.insert((access.bits(), kind, major, minor));
            self.by_minor.insert((access.bits(), kind, minor, major));
        }
    }

    fn take(&mut self, kind: DeviceKind, rule: &DeviceRule, report: &mut Report) -> Result<()> {
        // Of each access, those that come first.
        let first = |bits| self.wider(bits, kind, rule.numbers).take(MOST_WIDER.saturating_add(1));
        let wider = bits_of(rule.access).flat_map(first);
        let mut wider: Vec<Exception> = wider
            .filter_map(|place| {
                let (kind, major, minor) = place;
                let access = self.exceptions.get(&place).copied()?;
                Some(Exception { kind, numbers: Numbers { major, minor }, access })
            })
            .collect();
        wider.sort_unstable();
        report_wider(&wider, rule, report)?;
        let within: Vec<_> =
            bits_of(rule.access).flat_map(|bits| self.within(bits, kind, rule.numbers)).collect();
        for place in within {
            let rest = self.exceptions.get(&place).and_then(|access| access.minus(rule.access));
            self.set(place, rest);
        }
        Ok(())
    }

    /// The exceptions of an access that lie within `numbers`.
    fn within(&self, bits: u8, kind: DeviceKind, numbers: Numbers) -> impl Iterator<Item = Place> + '_ {
        let Numbers { major, minor } = numbers;
        let by_minor = major.is_none() && minor.is_some();
        let (first, last) = match (major, minor) {
            (None, None) => ((None, None), (LAST, LAST)),
            (None, Some(_)) => ((minor, None), (minor, LAST)),
            (Some(_), None) => ((major, None), (major, LAST)),
            (Some(_), Some(_)) => ((major, minor), (major, minor)),
        };
        self.between(by_minor, (bits, kind, first.0, first.1), (bits, kind, last.0, last.1))
    }

    /// The exceptions of an access that overlap `numbers` and do not lie within them, in their order.
    fn wider(&self, bits: u8, kind: DeviceKind, numbers: Numbers) -> impl Iterator<Item = Place> + '_ {
        let Numbers { major, minor } = numbers;
        let by_minor = major.is_none();
        // Of a wildcard, those that have the other number as a wildcard.
        let (all, alone) = match (major, minor) {
            (None, None) => (None, [None; 3]),
            (None, Some(_)) | (Some(_), None) => (Some(()), [None; 3]),
            (Some(_), Some(_)) => (None, [Some((None, None)), Some((None, minor)), Some((major, None))]),
        };
        let range = all.map(|()| self.between(by_minor, (bits, kind, None, None), (bits, kind, None, LAST)));
        let alone = alone
            .into_iter()
            .flatten()
            .filter(move |(major, minor)| self.by_major.contains(&(bits, kind, *major, *minor)));
        range.into_iter().flatten().chain(alone.map(move |(major, minor)| (kind, major, minor)))
    }

    fn between(&self, by_minor: bool, first: Key, last: Key) -> impl Iterator<Item = Place> + '_ {
        let keys = if by_minor { &self.by_minor } else { &self.by_major };
        keys.range(first..=last).map(
            move |(_, kind, one, other)| {
                if by_minor { (*kind, *other, *one) } else { (*kind, *one, *other) }
            },
        )
    }
}

/// The bits of every access that has something in common with this one.
fn bits_of(access: Access) -> impl Iterator<Item = u8> {
    (1..=Access::ALL.bits()).filter(move |bits| bits & access.bits() != 0)
}
