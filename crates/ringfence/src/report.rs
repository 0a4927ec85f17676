//! The report: what could not be done on this host, never dropped in silence.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::terminal::Escaped;

/// One thing that was asked for and not done, or done in another way than asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReportLine {
    /// The setting, in OCI's words (`memory.swappiness`).
    pub setting: Cow<'static, str>,
    /// The value that was asked for.
    pub value: String,
    /// Why it was not done, or what was done instead.
    pub why: Cow<'static, str>,
    /// Only worth knowing: strict mode minds it not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub note: bool,
}

/// `SETTING = VALUE: WHY`, with control characters [escaped](crate::terminal).
impl fmt::Display for ReportLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", Escaped(&self.setting), Escaped(&self.value), Escaped(&self.why))
    }
}

/// What could not be done on this host. Empty when everything was done as asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Report {
    lines: Vec<ReportLine>,
}

impl Report {
    /// Adds something that was asked for and is not done: an error in strict mode.
    pub fn add(
        &mut self,
        setting: impl Into<Cow<'static, str>>,
        value: impl fmt::Display,
        why: impl Into<Cow<'static, str>>,
    ) {
        let (setting, value, why) = (setting.into(), value.to_string(), why.into());
        self.lines.push(ReportLine { setting, value, why, note: false });
    }

    /// Adds something worth knowing.
    pub fn note(
        &mut self,
        setting: impl Into<Cow<'static, str>>,
        value: impl fmt::Display,
        why: impl Into<Cow<'static, str>>,
    ) {
        let (setting, value, why) = (setting.into(), value.to_string(), why.into());
        self.lines.push(ReportLine { setting, value, why, note: true });
    }

    /// The lines that strict mode minds.
    pub fn unsupported(&self) -> impl Iterator<Item = &ReportLine> {
        self.lines.iter().filter(|line| !line.note)
    }

    /// The lines, in the order in which the settings were looked at.
    pub fn lines(&self) -> &[ReportLine] {
        &self.lines
    }

    /// Whether everything was done as asked.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Forgets what could not be done of settings that were `tried` again, and takes over what could not be done of them
    /// and of others now.
    pub(crate) fn supersede(&mut self, tried: &BTreeSet<Cow<'static, str>>, now: &Self) {
        let named: HashSet<&str> = now.lines.iter().map(|new| &*new.setting).collect();
        let again = |line: &ReportLine| tried.contains(&line.setting) || named.contains(&*line.setting);
        self.lines.retain(|line| line.note || !again(line));
        self.lines.extend(now.unsupported().cloned());
    }

    /// Takes over the lines of `other` that are not here yet.
    pub(crate) fn add_new(&mut self, other: &Self) {
        let mut known: HashSet<&ReportLine> = self.lines.iter().collect();
        let new: Vec<_> = other.lines.iter().filter(|line| known.insert(line)).cloned().collect();
        self.lines.extend(new);
    }

    /// Takes over the lines of `other`.
    pub fn append(&mut self, other: Self) {
        self.lines.extend(other.lines);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_report_is_one_line_without_control_characters() {
        let mut report = Report::default();
        report.add("unified.\u{1b}[2J", "1\nforged = 2", "why\u{9b}");
        assert_eq!(report.to_string(), "unified.\\u{1b}[2J = 1\\nforged = 2: why\\u{9b}\n");
        assert_eq!(report.lines()[0].value, "1\nforged = 2");
    }
}
