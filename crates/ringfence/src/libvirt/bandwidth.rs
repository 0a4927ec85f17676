//! Quotas and periods of CPU time.

use std::fmt;

use roxmltree::Node;

use super::section::{Section, text, whole};
use crate::Result;
use crate::resources::Limit;

/// In µs, as libvirt has it: what the kernel can reckon with.
pub(super) const LONGEST_QUOTA_US: u64 = (1 << 44) - 1;

/// The kernel's, where a domain gives a quota alone.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// CPU time per period, in µs.
#[derive(Clone, Copy)]
pub(super) struct Bandwidth {
    pub(super) quota: Option<Limit>,
    pub(super) period: Option<u64>,
}

impl Bandwidth {
    /// Any negative quota is none; 0 says nothing.
    pub(super) fn read(section: Section<'_>, period: &'static str, quota: &'static str) -> Result<Self> {
        let period = section.number(period, 1_000..=1_000_000)?;
        let is_negative = |node: &Node<'_, '_>| {
            text(*node).strip_prefix('-').is_some_and(|number| whole(number).is_some_and(|number| number > 0))
        };
        let quota = if section.one(quota)?.is_some_and(|node| is_negative(&node)) {
            Some(Limit::Max)
        } else {
            section.number(quota, 1_000..=LONGEST_QUOTA_US)?.map(Limit::Value)
        };
        Ok(Self { quota, period })
    }

    pub(super) fn says_something(self) -> bool {
        self.quota.is_some() || self.period.is_some()
    }

    /// Whether it allows less CPU time than `other`.
    pub(super) fn is_below(self, other: Self) -> bool {
        let quota = |bandwidth: Self| match bandwidth.quota {
            Some(Limit::Value(quota)) => Some(u128::from(quota)),
            Some(Limit::Max) | None => None,
        };
        let period = |bandwidth: Self| u128::from(bandwidth.period.unwrap_or(DEFAULT_PERIOD_US));
        match (quota(self), quota(other)) {
            (Some(own), Some(others)) => own * period(other) < others * period(self),
            (own, None) => own.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// As `--overhead-cpus` takes it, rounded up to six decimals.
    pub(super) fn cpus(self) -> String {
        let Some(Limit::Value(quota)) = self.quota else { return "max".to_owned() };
        let millionths =
            (u128::from(quota) * 1_000_000).div_ceil(self.period.unwrap_or(DEFAULT_PERIOD_US).max(1).into());
        let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

impl fmt::Display for Bandwidth {
    /// As in `cpu.max`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota.unwrap_or(Limit::Max), self.period.unwrap_or(DEFAULT_PERIOD_US))
    }
}
