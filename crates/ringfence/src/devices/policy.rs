//! What all device rules together mean: a default, and exceptions from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::index::Index;
use super::{Access, DeviceKind, DeviceRule, Numbers, RuleKind};
use crate::{Error, Report, Result};

/// From how many rules on an index of the exceptions costs less than looking through all of them for each rule.
const MANY_RULES: usize = 64;
/// The most lines that one rule adds to a report about exceptions that are wider than it.
pub(super) const MOST_WIDER: usize = 8;

/// What happens to an access that no exception speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is allowed.
    Allow,
    /// It is denied.
    Deny,
}

/// Some devices, and an access to them that is not treated as the default has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Exception {
    /// Character or block.
    #[serde(rename = "type")]
    pub kind: DeviceKind,
    /// Which numbers; in JSON `major` and `minor`, each a number or `"*"`.
    #[serde(flatten, with = "star")]
    pub numbers: Numbers,
    /// The access.
    pub access: Access,
}

/// A default and the exceptions from it.
///
/// The meaning is that of the kernel's v1 device controller. Under default deny, an access is allowed if one exception
/// covers all of it: reading and writing at once is not covered by one that reads and another that writes. Under
/// default allow, it is denied if any exception overlaps it. An exception that is wider than another stays beside it.
///
/// JSON: `{"default": "deny", "exceptions": [{"type": "c", "major": 1, "minor": "*", "access": "rwm"}]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Json", into = "Json")]
pub struct DevicePolicy {
    default: Verdict,
    /// Sorted; no two are for the same type and numbers.
    exceptions: Vec<Exception>,
}

/// Whether an access is allowed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The exception that decided, as a rule; or the default, as a rule for every device.
    pub by: DeviceRule,
}

impl Exception {
    /// As the kernel's v1 files have it.
    pub(super) fn text(self) -> String {
        let mut text = String::with_capacity("c 4294967294:4294967294 rwm".len());
        text.push(self.kind.letter());
        text.push(' ');
        self.numbers.add_to(&mut text);
        text.push(' ');
        text.extend(self.access.letters());
        text
    }

    /// Orders exceptions as their fields do, in one comparison.
    fn place(self) -> u128 {
        let number = |number: Option<u32>| number.map_or(0, |number| u128::from(number) + 1);
        let Self { kind, numbers, .. } = self;
        (kind as u128) << 80 | number(numbers.major) << 40 | number(numbers.minor)
    }

    fn rule(self, allow: bool) -> DeviceRule {
        let Self { kind, numbers, access } = self;
        DeviceRule { allow, kind: RuleKind::Only(kind), numbers, access, path: None }
    }
}

impl DevicePolicy {
    /// Every device denied: what a sandbox without rules has.
    pub fn deny_all() -> Self {
        Self { default: Verdict::Deny, exceptions: Vec::new() }
    }

    /// Every device allowed.
    pub fn allow_all() -> Self {
        Self { default: Verdict::Allow, exceptions: Vec::new() }
    }

    /// The policy that rules make, beginning with every device denied; later rules win.
    ///
    /// Errors: those of [`DevicePolicy::apply`].
    pub fn from_rules(rules: &[DeviceRule]) -> Result<(Self, Report)> {
        let (mut policy, mut report) = (Self::deny_all(), Report::default());
        policy.apply_all(rules, &mut report)?;
        Ok((policy, report))
    }

    /// The policy of a caller's rules with others below them: runtime defaults and a hypervisor's profile.
    ///
    /// The others come right after the caller's last rule for every device (first, if there is none): before the
    /// caller's specific rules, which can so take them away. If those take away a rule of `required`, it is reported.
    ///
    /// Errors: those of [`DevicePolicy::apply`].
    pub fn with_base(
        caller: &[DeviceRule],
        base: &[DeviceRule],
        required: &[DeviceRule],
    ) -> Result<(Self, Report)> {
        let resets = caller.iter().rposition(|rule| rule.kind == RuleKind::All).map_or(0, |last| last + 1);
        let (start, specific) = caller.split_at_checked(resets).unwrap_or((caller, &[]));
        let (mut policy, mut report) = (Self::deny_all(), Report::default());
        policy.exceptions.reserve(caller.len() + base.len());
        policy.apply_all(start, &mut report)?;
        policy.apply_all(base, &mut report)?;
        policy.apply_specific(specific, required, &mut report)?;
        Ok((policy, report))
    }

    /// The policy of the caller's rules after this one's. A rule for every device among them begins anew, as
    /// [`DevicePolicy::with_base`] does; otherwise nothing but what the rules speak of changes.
    ///
    /// Errors: those of [`DevicePolicy::apply`].
    pub(crate) fn changed(
        &self,
        rules: &[DeviceRule],
        base: impl FnOnce() -> Result<Vec<DeviceRule>>,
        required: &[DeviceRule],
    ) -> Result<(Self, Report)> {
        if rules.iter().any(|rule| rule.kind == RuleKind::All) {
            return Self::with_base(rules, &base()?, required);
        }
        let (mut policy, mut report) = (self.clone(), Report::default());
        // What was taken away before was reported then.
        let there: Vec<_> = required.iter().filter(|need| self.check_rule(need).allowed).cloned().collect();
        policy.apply_specific(rules, &there, &mut report)?;
        Ok((policy, report))
    }

    fn apply_specific(
        &mut self,
        specific: &[DeviceRule],
        required: &[DeviceRule],
        report: &mut Report,
    ) -> Result<()> {
        self.apply_all(specific, report)?;
        for need in required.iter().filter(|need| !self.check_rule(need).allowed) {
            let taken_by = specific.iter().rfind(|rule| !rule.allow && rule.overlaps(need));
            report.add(
                "devices",
                taken_by.map_or_else(|| "deny".to_owned(), DeviceRule::sentence),
                format!("obeyed, but the hypervisor profile requires {}", need.with_path()),
            );
        }
        Ok(())
    }

    /// Applies rules in order, in a time that grows with their number and not with its square. After an error only some
    /// may have been applied.
    pub(super) fn apply_all(&mut self, rules: &[DeviceRule], report: &mut Report) -> Result<()> {
        if rules.len() < MANY_RULES {
            return rules.iter().try_for_each(|rule| self.apply(rule, report));
        }
        let mut index = Index::new(self.default, self.exceptions());
        rules.iter().try_for_each(|rule| index.apply(rule, report))?;
        (self.default, self.exceptions) = index.into_parts();
        Ok(())
    }

    /// Applies one more rule, which wins over those before.
    ///
    /// A rule for every device resets the policy. One against the default makes an exception. One with the default
    /// takes from the exceptions that lie within it. What it would have to cut out of a wider exception cannot be
    /// expressed: reading and writing is an error, of which nothing was applied; where it is only mknod, that stays and
    /// the report says so.
    pub fn apply(&mut self, rule: &DeviceRule, report: &mut Report) -> Result<()> {
        rule.validate()?;
        let verdict = if rule.allow { Verdict::Allow } else { Verdict::Deny };
        match rule.kind {
            RuleKind::All => *self = Self { default: verdict, exceptions: Vec::new() },
            RuleKind::Only(kind) if verdict != self.default => {
                self.insert(Exception { kind, numbers: rule.numbers, access: rule.access });
            }
            RuleKind::Only(kind) => self.take(kind, rule, report)?,
        }
        Ok(())
    }

    fn take(&mut self, kind: DeviceKind, rule: &DeviceRule, report: &mut Report) -> Result<()> {
        let touches = |exception: &Exception| {
            exception.kind == kind
                && exception.numbers.overlaps(rule.numbers)
                && exception.access.intersects(rule.access)
        };
        let lies_within = |exception: &Exception| rule.numbers.contains(exception.numbers);
        let wider: Vec<_> = self.exceptions().filter(|one| touches(one) && !lies_within(one)).collect();
        report_wider(&wider, rule, report)?;
        self.exceptions.retain_mut(|exception| {
            if !(touches(exception) && lies_within(exception)) {
                return true;
            }
            let rest = exception.access.minus(rule.access);
            exception.access = rest.unwrap_or(exception.access);
            rest.is_some()
        });
        Ok(())
    }

    /// Where the exception for exactly these devices is, or belongs.
    fn position(&self, wanted: Exception) -> std::result::Result<usize, usize> {
        self.exceptions.binary_search_by_key(&wanted.place(), |one| one.place())
    }

    /// Adds to the exceptions.
    pub(crate) fn insert(&mut self, exception: Exception) {
        match self.position(exception) {
            Err(at) => self.exceptions.insert(at, exception),
            Ok(at) => {
                if let Some(there) = self.exceptions.get_mut(at) {
                    there.access = there.access.union(exception.access);
                }
            }
        }
    }

    /// What happens to an access that no exception speaks of.
    pub fn default_verdict(&self) -> Verdict {
        self.default
    }

    /// The exceptions, sorted; no two are for the same type and numbers.
    pub fn exceptions(&self) -> impl DoubleEndedIterator<Item = Exception> + '_ {
        self.exceptions.iter().copied()
    }

    /// What of these exceptions is not in those of another policy for exactly the same devices.
    pub(super) fn minus(&self, other: &Self) -> impl Iterator<Item = Exception> {
        let mut theirs = other.exceptions().peekable();
        self.exceptions().filter_map(move |own| {
            while theirs.next_if(|their| their.place() < own.place()).is_some() {}
            let same = theirs.peek().filter(|their| their.place() == own.place());
            let access = same.map_or(Some(own.access), |their| own.access.minus(their.access))?;
            Some(Exception { access, ..own })
        })
    }

    /// The shortest rules that make this policy, whatever was before.
    pub fn to_rules(&self) -> Vec<DeviceRule> {
        let against = self.default == Verdict::Deny;
        let exceptions = self.exceptions().map(|exception| exception.rule(against));
        std::iter::once(self.default.rule()).chain(exceptions).collect()
    }

    /// Whether one access, such as opening a device for reading and writing, is allowed, and by what.
    pub fn check(&self, kind: DeviceKind, major: u32, minor: u32, access: Access) -> Decision {
        self.decide(Exception { kind, numbers: Numbers { major: Some(major), minor: Some(minor) }, access })
    }

    /// Whether all that the rule speaks of is allowed, and by what, or by what a part of it is not. Whether the rule
    /// itself is to allow or to deny does not matter.
    pub fn check_rule(&self, rule: &DeviceRule) -> Decision {
        let of = |kind| self.decide(Exception { kind, numbers: rule.numbers, access: rule.access });
        match rule.kind {
            RuleKind::Only(kind) => of(kind),
            RuleKind::All => Some(of(DeviceKind::Block))
                .filter(|blocks| !blocks.allowed)
                .unwrap_or_else(|| of(DeviceKind::Char)),
        }
    }

    fn decide(&self, asked: Exception) -> Decision {
        let decides = |exception: &Exception| match self.default {
            Verdict::Deny => {
                exception.numbers.contains(asked.numbers) && exception.access.contains(asked.access)
            }
            Verdict::Allow => {
                exception.numbers.overlaps(asked.numbers) && exception.access.intersects(asked.access)
            }
        };
        // Numbers sort after `*`: from the end, the narrowest comes first.
        match self.exceptions().rev().find(|exception| exception.kind == asked.kind && decides(exception)) {
            Some(exception) => {
                let allowed = self.default == Verdict::Deny;
                Decision { allowed, by: exception.rule(allowed) }
            }
            None => Decision { allowed: self.default == Verdict::Allow, by: self.default.rule() },
        }
    }
}

impl Verdict {
    /// The rule for every device that sets it.
    pub(super) fn rule(self) -> DeviceRule {
        match self {
            Self::Allow => DeviceRule::allow_all(),
            Self::Deny => DeviceRule::deny_all(),
        }
    }
}

impl fmt::Display for DevicePolicy {
    /// For people: `all denied but c 1:3 rwm, c 1:5 rwm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = match self.default_verdict() {
            Verdict::Deny => "all denied but",
            Verdict::Allow => "all allowed but",
        };
        let exceptions: Vec<_> = self.exceptions().map(|exception| exception.to_string()).collect();
        write!(f, "{default} {}", exceptions.join(", "))
    }
}

impl fmt::Display for Exception {
    /// As the kernel's v1 files have it: `c 1:3 rwm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

#[derive(Serialize, Deserialize)]
struct Json {
    default: Verdict,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

impl From<DevicePolicy> for Json {
    fn from(policy: DevicePolicy) -> Self {
        Self { default: policy.default, exceptions: policy.exceptions().collect() }
    }
}

impl From<Json> for DevicePolicy {
    fn from(json: Json) -> Self {
        let mut policy =
            Self { default: json.default, exceptions: Vec::with_capacity(json.exceptions.len()) };
        let mut exceptions = json.exceptions;
        // In order, each is inserted behind all others.
        exceptions.sort_by_key(|exception| exception.place());
        exceptions.into_iter().for_each(|exception| policy.insert(exception));
        policy
    }
}

/// Reports the exceptions, in their order, of which a rule would have to take a part: an error unless that is only mknod.
pub(super) fn report_wider(wider: &[Exception], rule: &DeviceRule, report: &mut Report) -> Result<()> {
    let done = if rule.allow { "denied" } else { "allowed" };
    let read_write = rule.access.minus(Access::MKNOD);
    let is_cut = |wide: &&Exception| read_write.is_some_and(|cut| cut.intersects(wide.access));
    if let Some(wide) = wider.iter().find(is_cut) {
        let allowed = format!(
            "{wide} is {done}, and no cgroup can take a part out of it: name the whole of it, or only its parts"
        );
        return Err(Error::invalid("devices", rule.sentence(), allowed));
    }
    for wide in wider.iter().take(MOST_WIDER) {
        report.add("devices", rule.sentence(), format!("mknod stays {done}, by the wider {wide}"));
    }
    if wider.len() > MOST_WIDER {
        report.add("devices", rule.sentence(), format!("mknod stays {done}, by more rules that are wider"));
    }
    Ok(())
}

/// Numbers in JSON: a number or `"*"`.
mod star {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Numbers;

    #[derive(Serialize, Deserialize)]
    struct Json {
        major: Number,
        minor: Number,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Number {
        One(u32),
        Any(String),
    }

    impl From<Option<u32>> for Number {
        fn from(number: Option<u32>) -> Self {
            number.map_or_else(|| Self::Any("*".to_owned()), Self::One)
        }
    }

    impl Number {
        fn read<E: Error>(self) -> Result<Option<u32>, E> {
            match self {
                Self::One(number) if number != Numbers::KERNELS_ANY => Ok(Some(number)),
                Self::Any(star) if star == "*" => Ok(None),
                _ => Err(E::custom("a device number is 0 to 4294967294 or \"*\"")),
            }
        }
    }

    pub(super) fn serialize<S: Serializer>(numbers: &Numbers, serializer: S) -> Result<S::Ok, S::Error> {
        Json { major: numbers.major.into(), minor: numbers.minor.into() }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Numbers, D::Error> {
        let Json { major, minor } = Json::deserialize(deserializer)?;
        Ok(Numbers { major: major.read()?, minor: minor.read()? })
    }
}

#[cfg(test)]
pub(super) mod tests;
