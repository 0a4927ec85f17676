//! One device rule, as the caller gives it.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Access;
use crate::{DeviceNode, Error, Result};

/// Character or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A block device.
    #[serde(rename = "b")]
    Block,
    /// A character device.
    #[serde(rename = "c")]
    Char,
}

/// What a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleKind {
    /// Every device: resets all rules before.
    All,
    /// Devices of one type.
    Only(DeviceKind),
}

/// Major and minor number; `None` is every number (`*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Numbers {
    /// Major number, below 4294967295.
    pub major: Option<u32>,
    /// Minor number, below 4294967295.
    pub minor: Option<u32>,
}

/// One device rule: OCI `LinuxDeviceCgroup`, which is also its JSON form.
///
/// As text (`Display`, [`DeviceRule::parse`]) it has the kernel's v1 form, without allow or deny: `c 1:3 rwm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "super::oci::LinuxDeviceCgroup", into = "super::oci::LinuxDeviceCgroup")]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Every device, or those of one type.
    pub kind: RuleKind,
    /// Which numbers. Of a rule for every device: all of them.
    pub numbers: Numbers,
    /// What is allowed or denied. Of a rule for every device: all of it.
    pub access: Access,
    /// The device node that the numbers were read from, for messages. Not part of OCI's JSON.
    pub path: Option<PathBuf>,
}

impl DeviceKind {
    pub(super) fn letter(self) -> char {
        match self {
            Self::Block => 'b',
            Self::Char => 'c',
        }
    }
}

impl Numbers {
    /// Every number.
    pub const ALL: Self = Self { major: None, minor: None };

    /// What the v1 kernel reads as `*`, and so no number of a device.
    pub(super) const KERNELS_ANY: u32 = u32::MAX;

    /// Whether every device of `other` is one of these.
    pub fn contains(self, other: Self) -> bool {
        let contains = |a: Option<u32>, b| a.is_none() || a == b;
        contains(self.major, other.major) && contains(self.minor, other.minor)
    }

    /// Whether a device can be of both.
    pub fn overlaps(self, other: Self) -> bool {
        let overlaps = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        overlaps(self.major, other.major) && overlaps(self.minor, other.minor)
    }

    /// Writes `MAJOR:MINOR`, each a number or `*`.
    pub(super) fn add_to(self, text: &mut String) {
        let mut digits = itoa::Buffer::new();
        for (before, number) in [("", self.major), (":", self.minor)] {
            text.push_str(before);
            match number {
                Some(number) => text.push_str(digits.format(number)),
                None => text.push('*'),
            }
        }
    }

    /// `MAJOR:MINOR`, each a number or `*`.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| match text {
            "*" => Some(None),
            // u32's own parser takes a sign.
            _ if text.starts_with('+') => None,
            _ => text.parse().ok().filter(|number| *number != Self::KERNELS_ANY).map(Some),
        };
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl DeviceRule {
    /// A rule that allows devices of one type; `None` is every number.
    pub fn allow(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        let numbers = Numbers { major, minor };
        Self { allow: true, kind: RuleKind::Only(kind), numbers, access, path: None }
    }

    /// A rule that denies devices of one type; `None` is every number.
    pub fn deny(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { allow: false, ..Self::allow(kind, major, minor, access) }
    }

    /// Forget all rules before, allow every device.
    pub fn allow_all() -> Self {
        Self { allow: true, kind: RuleKind::All, numbers: Numbers::ALL, access: Access::ALL, path: None }
    }

    /// Forget all rules before, deny every device.
    pub fn deny_all() -> Self {
        Self { allow: false, ..Self::allow_all() }
    }

    /// Allows everything with the device at `path`, which is looked up now: see [`DeviceNode::at`].
    pub fn path(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::at(path, DeviceNode::at(path)?))
    }

    /// Allows everything with a device whose numbers are known already.
    pub(super) fn at(path: &Path, node: DeviceNode) -> Self {
        let rule = Self::allow(node.kind, Some(node.major), Some(node.minor), Access::ALL);
        Self { path: Some(path.to_owned()), ..rule }
    }

    /// Reads one argument of the command line: `/dev/PATH[:rwm]` or `c|b|a MAJOR:MINOR [rwm]` with `*`; without
    /// access, all of it. `resolve` finds the numbers of a path, such as [`DeviceNode::at`].
    pub fn parse(allow: bool, text: &str, resolve: impl Fn(&Path) -> Result<DeviceNode>) -> Result<Self> {
        let refused = || {
            Error::invalid(
                "devices",
                text,
                "a rule is /dev/PATH[:rwm], or \"c|b|a MAJOR:MINOR [rwm]\" with *",
            )
        };
        if text.starts_with('/') {
            // A path may have colons of its own (/dev/disk/by-path/pci-0000:00:1f.2).
            let with_access =
                text.rsplit_once(':').and_then(|(path, access)| Some((path, access.parse().ok()?)));
            let (path, access) = with_access.unwrap_or((text, Access::ALL));
            let path = Path::new(path);
            return Ok(Self { allow, access, ..Self::at(path, resolve(path)?) });
        }
        let mut words = text.split_whitespace();
        let kind = match words.next() {
            Some("a") => RuleKind::All,
            Some("b") => RuleKind::Only(DeviceKind::Block),
            Some("c") => RuleKind::Only(DeviceKind::Char),
            _ => return Err(refused()),
        };
        let numbers = match words.next() {
            Some(numbers) => Numbers::parse(numbers).ok_or_else(refused)?,
            None if kind == RuleKind::All => Numbers::ALL,
            None => return Err(refused()),
        };
        let access = words.next().map_or(Ok(Access::ALL), str::parse)?;
        if words.next().is_some() {
            return Err(refused());
        }
        let rule = Self { allow, kind, numbers, access, path: None };
        rule.validate().map(|()| rule)
    }

    /// Refuses a rule for every device that names only some (elsewhere it silently opens everything), and numbers
    /// that the kernel would read as `*`.
    pub(super) fn validate(&self) -> Result<()> {
        if self.kind == RuleKind::All && (self.numbers != Numbers::ALL || self.access != Access::ALL) {
            return Err(Error::invalid(
                "devices",
                self,
                "a rule for every device (type a, or no type) can name no numbers and no less than rwm: \
                 give the type b or c",
            ));
        }
        if [self.numbers.major, self.numbers.minor].contains(&Some(Numbers::KERNELS_ANY)) {
            return Err(Error::invalid("devices", self, "device numbers go up to 4294967294"));
        }
        Ok(())
    }

    /// With verb and path, for messages: `deny c 10:232 rwm (/dev/kvm)`.
    pub(crate) fn sentence(&self) -> String {
        format!("{} {}", if self.allow { "allow" } else { "deny" }, self.with_path())
    }

    /// With the path, for messages: `c 10:232 rwm (/dev/kvm)`.
    pub(super) fn with_path(&self) -> String {
        match &self.path {
            Some(path) => format!("{self} ({})", path.display()),
            None => self.to_string(),
        }
    }

    /// Drops the rules that make no difference any more, since a later one speaks of the same devices and all of the
    /// access: a device that comes and goes a thousand times leaves one rule.
    pub(crate) fn drop_superseded(rules: &mut Vec<Self>) {
        let mut later: Vec<Self> = Vec::new();
        for rule in std::mem::take(rules).into_iter().rev() {
            let same = |other: &Self| other.kind == rule.kind && other.numbers == rule.numbers;
            if !later.iter().any(|other| same(other) && other.access.contains(rule.access)) {
                later.push(rule);
            }
        }
        rules.extend(later.into_iter().rev());
    }

    /// Whether there is an access to a device that both speak of.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let kinds = self.kind == RuleKind::All || other.kind == RuleKind::All || self.kind == other.kind;
        kinds && self.numbers.overlaps(other.numbers) && self.access.intersects(other.access)
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char(self.letter())
    }
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("a"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.add_to(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.numbers, self.access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DeviceRule> {
        DeviceRule::parse(true, text, |path| match path.to_str() {
            Some("/dev/kvm" | "/dev/by-path/pci-0000:00:1f.2") => {
                Ok(DeviceNode { kind: DeviceKind::Char, major: 10, minor: 232 })
            }
            _ => Err(Error::invalid("devices", path.display(), "no such node")),
        })
    }

    #[test]
    fn a_rule_on_the_command_line_is_a_path_or_a_kernel_line() {
        for (given, meant) in [
            ("c 1:3 rwm", "c 1:3 rwm"),
            ("c 1:3", "c 1:3 rwm"),
            (" b  8:*   mr ", "b 8:* rm"),
            ("c *:7 w", "c *:7 w"),
            ("b 4294967294:0 r", "b 4294967294:0 r"),
            ("a", "a *:* rwm"),
            ("a *:*", "a *:* rwm"),
            ("a *:* mrw", "a *:* rwm"),
            ("/dev/kvm", "c 10:232 rwm"),
            ("/dev/kvm:r", "c 10:232 r"),
            ("/dev/by-path/pci-0000:00:1f.2", "c 10:232 rwm"),
            ("/dev/by-path/pci-0000:00:1f.2:wr", "c 10:232 rw"),
        ] {
            assert_eq!(parse(given).unwrap().to_string(), meant, "{given:?}");
        }
        assert_eq!(parse("/dev/kvm:r").unwrap().path.as_deref(), Some(Path::new("/dev/kvm")));
    }

    #[test]
    fn a_rule_goes_when_a_later_one_has_the_last_word_on_all_of_it() {
        let read = |text: &str| {
            let (verb, rule) = text.split_once(' ').unwrap();
            DeviceRule::parse(verb == "allow", rule, |_| unreachable!()).unwrap()
        };
        let cycle = ["allow c 10:1 rw", "deny c 10:1 rwm"].repeat(50);
        for (given, left) in [
            (&cycle[..], &["deny c 10:1 rwm"][..]),
            (
                &["allow c 10:1 rw", "deny c 10:1 r", "allow c 10:1 m"],
                &["allow c 10:1 rw", "deny c 10:1 r", "allow c 10:1 m"],
            ),
            (
                &["deny a", "allow b 8:0 r", "allow c 8:0 r", "allow c 8:* r", "deny b 8:0 r"],
                &["deny a", "allow c 8:0 r", "allow c 8:* r", "deny b 8:0 r"],
            ),
        ] {
            let mut rules: Vec<_> = given.iter().map(|text| read(text)).collect();
            DeviceRule::drop_superseded(&mut rules);
            let left: Vec<_> = left.iter().map(|text| read(text)).collect();
            assert_eq!(rules, left);
        }
    }

    #[test]
    fn other_text_is_refused_with_what_is_allowed() {
        for given in [
            "",
            "c",
            "d 1:3 rwm",
            "c 1 rwm",
            "c 1:3 rwx",
            "c 1:3 rwm m",
            "c -1:3",
            "c +1:3",
            "c 4294967295:3",
            "c 4294967296:3",
            "c :3",
            "c 1:3:4",
            "dev/kvm",
            "/dev/none",
            "/dev/kvm:x",
            "/dev/kvm:",
        ] {
            let error = parse(given).expect_err(given);
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{given:?}: {error}");
        }
        assert!(parse("d 1:3").unwrap_err().to_string().contains("MAJOR:MINOR"));
    }

    #[test]
    fn a_rule_of_type_a_with_numbers_or_less_than_all_access_is_refused() {
        for given in ["a 1:3 rwm", "a 1:*", "a *:3 rwm", "a *:* r", "a *:* rw"] {
            assert!(parse(given).unwrap_err().to_string().contains("every device"), "{given:?}");
        }
    }

    #[test]
    fn a_path_is_resolved_through_links_and_must_be_a_device_node() {
        let rule = DeviceRule::path("/dev/null").unwrap();
        assert_eq!((rule.to_string().as_str(), rule.allow), ("c 1:3 rwm", true));
        assert_eq!(rule.sentence(), "allow c 1:3 rwm (/dev/null)");
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert_eq!(DeviceNode::at(&link).unwrap(), DeviceNode::at("/dev/null").unwrap());
        for other in [directory.path(), Path::new("/dev/no-such-device")] {
            assert!(DeviceRule::path(other).unwrap_err().to_string().contains("device node"), "{other:?}");
        }
    }
}
