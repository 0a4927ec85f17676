//! Device rules: on the command line, in JSON, and the parts that they are made of.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ringfence::devices::{Access, DeviceKind, Numbers, RuleKind};
use ringfence::{DeviceNode, DeviceNumber, DevicePolicy, DeviceRule, Profile};
use ringfence_fuzz::assert_refused;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    for allow in [true, false] {
        match DeviceRule::parse(allow, text, |_| Ok(NODE)) {
            Ok(rule) => {
                assert_eq!(rule.allow, allow);
                assert_eq!(rule.path.is_some(), text.starts_with('/'));
                is_sound(&rule);
            }
            Err(error) => assert_refused(&error),
        }
    }
    let refused = |path: &Path| Err(ringfence::Error::invalid("devices", path.display(), "nothing there"));
    if let Ok(rule) = DeviceRule::parse(true, text, refused) {
        assert_eq!(rule.path, None);
    }
    if let Ok(rules) = serde_json::from_str::<Vec<DeviceRule>>(text) {
        rules.iter().for_each(is_sound);
        if let Ok((policy, _)) = DevicePolicy::from_rules(&rules) {
            is_restored(&policy);
        }
    }
    if let Ok(policy) = serde_json::from_str::<DevicePolicy>(text) {
        is_restored(&policy);
    }
    if let Ok(access) = text.parse::<Access>() {
        assert_eq!(access, access.to_string().parse().unwrap());
        assert!(text.chars().all(|letter| access.to_string().contains(letter)));
    }
    if let Ok(device) = text.parse::<DeviceNumber>() {
        assert_eq!(device, device.to_string().parse().unwrap());
    }
    if let Ok(profile) = text.parse::<Profile>() {
        assert_eq!(profile.to_string(), text);
    }
});

const NODE: DeviceNode = DeviceNode { kind: DeviceKind::Char, major: 10, minor: 232 };

fn is_sound(rule: &DeviceRule) {
    let without_path = DeviceRule { path: None, ..rule.clone() };
    let again = DeviceRule::parse(rule.allow, &rule.to_string(), |_| Ok(NODE)).unwrap();
    assert_eq!(again, without_path);
    let json = serde_json::to_string(rule).unwrap();
    assert_eq!(serde_json::from_str::<DeviceRule>(&json).unwrap(), without_path, "{json}");
    // It opens every device only if it says so.
    if rule.kind == RuleKind::All {
        assert_eq!((rule.numbers, rule.access), (Numbers::ALL, Access::ALL));
    }
}

fn is_restored(policy: &DevicePolicy) {
    let json = serde_json::to_string(policy).unwrap();
    assert_eq!(serde_json::from_str::<DevicePolicy>(&json).unwrap(), *policy, "{json}");
    let (again, report) = DevicePolicy::from_rules(&policy.to_rules()).unwrap();
    assert!(again == *policy && report.is_empty(), "{policy:?} is not {again:?}");
}
