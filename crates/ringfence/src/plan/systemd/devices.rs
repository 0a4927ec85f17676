//! The device policy as systemd's `DeviceAllow` (v1). systemd writes `DeviceAllow` to the kernel again with every change of the
//! unit and with every reload, so that it must never allow more than the policy does.

use std::borrow::Cow;

use super::super::devices::{DEVICES_LIST, v1_from, writes_between};
use super::super::{Action, DeviceWant, Draft, Step, Undo, Verify};
use super::Told;
use crate::devices::filter::Override;
use crate::devices::{Access, DeviceKind, DevicePolicy, Exception, Numbers, Verdict};
use crate::error::Result;
use crate::host::{Controller, Host, Version};
use crate::systemd::property::{Property, Value};

/// All major numbers that the kernel hands out (`CHRDEV_MAJOR_MAX`, `BLKDEV_MAJOR_MAX`).
const MAJORS: std::ops::Range<u32> = 0..512;

/// The report line for a policy that `DeviceAllow` cannot express.
const STRICTER: &str = "systemd cannot express this device policy and is told the closest stricter one: that one is in force \
                        from a reload of systemd until the next change of the sandbox";

/// Whether systemd resets the device list of a unit with every change of the unit: the devices controller is on v1.
pub(crate) fn resets_devices(host: &Host) -> bool {
    let devices = host.hierarchy_of(Controller::Devices);
    !host.rootless && devices.is_some_and(|(_, hierarchy)| hierarchy.version == Version::V1)
}

/// Plans `DevicePolicy` and `DeviceAllow`. Where they cannot express the policy, adds the writes of the whole policy to `after`,
/// also for a change of other properties (`is_told`), with which systemd resets the device list.
pub(super) fn rules(draft: &mut Draft<'_>, is_told: bool, after: &mut Vec<Step>) -> Result<Option<Told>> {
    let Some((index, _)) = draft.place_of(Controller::Devices) else { return Ok(None) };
    let is_changed = draft.want.devices.is_some();
    let now = draft.want.devices_now.filter(|_| is_told);
    let now = now.map(|policy| DeviceWant { before: Some(policy), policy, overriding: Override::Refuse });
    let Some(wanted) = draft.want.devices.or(now) else { return Ok(None) };
    if draft.host.rootless {
        if is_changed {
            let value = format!("{} exceptions", wanted.policy.exceptions().count());
            draft.report.add("devices", value, "a user's systemd has no say on cgroup v1");
        }
        return Ok(None);
    }
    let shown = expressible(wanted.policy);
    if !is_same(&shown, wanted.policy) {
        if is_changed {
            draft.report.add("devices", wanted.policy.to_string(), STRICTER);
        }
        v1_from(draft, index, &wanted, &shown)?;
        after.append(&mut draft.steps);
    } else if !is_changed {
        return Ok(None);
    }
    let dir = draft.leaf(index);
    let list = Action::Write { dir, file: Cow::Borrowed(DEVICES_LIST), value: String::new() };
    let mut step = Step::new(list);
    step.setting = Some("devices".into());
    let (mut properties, mut back) = (Vec::new(), Vec::new());
    if is_changed {
        properties = strict(&shown);
    }
    if let Some(before) = wanted.before {
        let told_before = expressible(before);
        if is_changed {
            back = strict(&told_before);
        }
        if !is_same(&told_before, before) {
            step.undo = Undo::Write(writes_between(&told_before, before)?);
        }
    }
    step.verify(Verify::DeviceList(shown));
    Ok(Some(Told { step, properties, back }))
}

/// The closest policy that `DeviceAllow` can express and that allows nothing more. `DeviceAllow` takes a kind, a major number
/// and a single device, and cannot deny.
fn expressible(policy: &DevicePolicy) -> DevicePolicy {
    let mut told = DevicePolicy::deny_all();
    for kind in [DeviceKind::Char, DeviceKind::Block] {
        let exceptions: Vec<_> = policy.exceptions().filter(|exception| exception.kind == kind).collect();
        match policy.default_verdict() {
            Verdict::Deny => {
                for exception in &exceptions {
                    match exception.numbers {
                        Numbers { major: None, minor: minor @ Some(_) } => {
                            let each = MAJORS.map(|major| Numbers { major: Some(major), minor });
                            let is_free =
                                |numbers: &Numbers| exceptions.iter().all(|one| one.numbers != *numbers);
                            each.filter(is_free)
                                .for_each(|numbers| told.insert(Exception { numbers, ..*exception }));
                        }
                        _ => told.insert(*exception),
                    }
                }
            }
            Verdict::Allow => {
                let mut allow = |major: Option<u32>| {
                    let mut of_it =
                        exceptions.iter().filter(|one| one.numbers.major.is_none_or(|of| Some(of) == major));
                    let left = of_it.try_fold(Access::ALL, |left, denied| left.minus(denied.access));
                    if let Some(access) = left {
                        told.insert(Exception { kind, numbers: Numbers { major, minor: None }, access });
                    }
                };
                if exceptions.iter().all(|one| one.numbers.major.is_none()) {
                    allow(None);
                } else {
                    MAJORS.for_each(|major| allow(Some(major)));
                }
            }
        }
    }
    told
}

/// Whether `DeviceAllow` has the same effect: it has no default that allows, and lists all devices instead.
fn is_same(told: &DevicePolicy, policy: &DevicePolicy) -> bool {
    told == policy || *policy == DevicePolicy::allow_all()
}

/// The two properties. With `DevicePolicy=auto` systemd would make no cgroup for devices.
fn strict(told: &DevicePolicy) -> Vec<Property> {
    let entry = |exception: Exception| {
        let kind = match exception.kind {
            DeviceKind::Char => "char",
            DeviceKind::Block => "block",
        };
        let name = match (exception.numbers.major, exception.numbers.minor) {
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => format!("{kind}-{major}"),
            (None, _) => format!("{kind}-*"),
        };
        (name, exception.access.to_string())
    };
    let entries = told.exceptions().map(entry).collect();
    vec![Property::text("DevicePolicy", "strict"), Property::new("DeviceAllow", Value::Devices(entries))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceRule;

    fn policy(rules: &[&str]) -> DevicePolicy {
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| {
                let (allow, rule) = (!rule.starts_with('-'), rule.trim_start_matches('-'));
                DeviceRule::parse(allow, rule, |_| unreachable!()).unwrap()
            })
            .collect();
        DevicePolicy::from_rules(&rules).unwrap().0
    }

    #[test]
    fn device_allow_never_allows_what_the_policy_denies() {
        for (rules, is_exact) in [
            (&["a"][..], true),
            (&["a", "-c 1:3 w"], false),
            (&["a", "-c 1:* m", "-b *:0 rw"], false),
            (&["a", "-c *:* m", "-b 8:0 rwm", "-b 8:1 rwm"], false),
            (&["c *:5 r"], true),
            (&["c *:5 r", "c 1:3 rwm", "b *:* m"], true),
            // Told as one, the two rules would allow to open it for both at once.
            (&["c *:5 r", "c 1:5 w"], false),
            (&["c 7:* rw", "b 8:1 r"], true),
        ] {
            let policy = policy(rules);
            let told = expressible(&policy);
            assert_eq!(told.default_verdict(), Verdict::Deny);
            let (mut allowed, mut lost) = (0, 0);
            for kind in [DeviceKind::Char, DeviceKind::Block] {
                for (major, minor) in
                    [0, 1, 7, 8, 511].into_iter().flat_map(|major| [0, 1, 3, 5].map(|minor| (major, minor)))
                {
                    for access in ["r", "w", "m", "rw", "rwm"].map(|access| access.parse().unwrap()) {
                        let [by_policy, by_told] =
                            [&policy, &told].map(|policy| policy.check(kind, major, minor, access).allowed);
                        assert!(by_policy || !by_told, "{rules:?}: {kind:?} {major}:{minor} {access}");
                        allowed += u32::from(by_told);
                        lost += u32::from(by_policy && !by_told);
                    }
                }
            }
            assert!(allowed > 0, "{rules:?}: not the closest one");
            assert_eq!(lost == 0, is_exact, "{rules:?}: {lost}");
        }
    }
}
