//! The v1 kernel's device controller as a naive model, for tests and fuzzing: a list that is searched, as `devices.list` shows it.
//!
//! Written from the behaviour of the files alone, and compared with the real ones in `transition`'s tests.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "no part of the library")]

use super::transition::{DeviceWrite, LiveList, parse_devices_list};

/// One line of the list: type, major, minor (`None` is `*`), letters.
type Line = (char, Option<u32>, Option<u32>, String);

#[derive(Debug, Clone, Default)]
pub(crate) struct KernelList {
    pub(crate) allow_by_default: bool,
    pub(crate) lines: Vec<Line>,
}

fn letters_in(all: &str, of: &str) -> bool {
    of.chars().all(|letter| all.contains(letter))
}

impl KernelList {
    pub(crate) fn after(rules: &[super::DeviceRule]) -> Self {
        let mut list = Self::default();
        for rule in rules {
            list.write(rule.allow, &rule.to_string());
        }
        list
    }

    pub(crate) fn apply(&mut self, write: &DeviceWrite) {
        self.write(write.file == "devices.allow", &write.value);
    }

    fn write(&mut self, allow: bool, value: &str) {
        let words: Vec<&str> = value.split_whitespace().collect();
        if words[0] == "a" {
            (self.allow_by_default, self.lines) = (allow, Vec::new());
            return;
        }
        let (major, minor) = words[1].split_once(':').unwrap();
        let (kind, letters) = (words[0].chars().next().unwrap(), words[2]);
        let same = (kind, major.parse().ok(), minor.parse().ok());
        let found = self.lines.iter_mut().find(|(k, major, minor, _)| (*k, *major, *minor) == same);
        if allow != self.allow_by_default {
            match found {
                Some(line) => {
                    line.3 = "rwm".chars().filter(|l| line.3.contains(*l) || letters.contains(*l)).collect();
                }
                None => self.lines.push((same.0, same.1, same.2, letters.to_owned())),
            }
        } else if let Some(line) = found {
            line.3.retain(|letter| !letters.contains(letter));
            self.lines.retain(|line| !line.3.is_empty());
        }
    }

    /// `access` may be empty: access(2) with F_OK asks so.
    pub(crate) fn allows(&self, kind: char, major: u32, minor: u32, access: &str) -> bool {
        let mut of_device = self.lines.iter().filter(|(k, a, b, _)| {
            *k == kind && a.is_none_or(|a| a == major) && b.is_none_or(|b| b == minor)
        });
        if self.allow_by_default {
            !of_device.any(|line| line.3.chars().any(|letter| access.contains(letter)))
        } else {
            of_device.any(|line| letters_in(&line.3, access))
        }
    }

    /// What `devices.list` shows.
    pub(crate) fn show(&self) -> LiveList {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let text: String = match self.allow_by_default {
            true => "a *:* rwm\n".to_owned(),
            false => self
                .lines
                .iter()
                .map(|(kind, major, minor, letters)| {
                    format!("{kind} {}:{} {letters}\n", number(*major), number(*minor))
                })
                .collect(),
        };
        parse_devices_list(text.as_bytes()).unwrap()
    }
}
