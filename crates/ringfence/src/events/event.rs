//! What can happen in a sandbox, and how it is written down.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::trigger::PressureTrigger;
use crate::error::Result;

/// Something that happened in a sandbox. Its JSON is a line of the command's `watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// When it was noticed: microseconds of wall-clock time since 1970-01-01 00:00 UTC.
    pub at_us: u64,
    /// The name under which the sandbox was [added](super::Events::add).
    #[serde(serialize_with = "as_text")]
    pub id: Arc<str>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen. A `count` is how often it did since it was told before: the kernel puts into one what comes fast, and
/// the sum of all counts is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// Processes were killed because memory ran out. See [`Counts::oom_kill`](super::Counts::oom_kill).
    OomKill {
        /// How many.
        count: u64,
    },
    /// Memory went over `memory.high`.
    MemoryHigh {
        /// How often.
        count: u64,
    },
    /// Memory was about to go over its limit.
    MemoryMax {
        /// How often.
        count: u64,
    },
    /// Memory was reclaimed below `memory.low`.
    MemoryLow {
        /// How often.
        count: u64,
    },
    /// A task was not made because there are too many.
    PidsMax {
        /// How often.
        count: u64,
    },
    /// Processes run inside.
    Populated,
    /// None does any more.
    Empty,
    /// Everything inside is stopped.
    Frozen,
    /// It runs again.
    Thawed,
    /// A threshold of pressure was reached.
    Pressure {
        /// Which.
        trigger: PressureTrigger,
    },
    /// The sandbox is removed. Nothing follows.
    Removed,
}

fn as_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

pub(super) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
