use proptest::prelude::*;

use super::super::kernel_list::KernelList;
use super::*;

pub(in super::super) const EVERY_ACCESS: [&str; 7] = ["r", "w", "m", "rw", "rm", "wm", "rwm"];

fn rule(text: &str) -> DeviceRule {
    let (verb, line) = text.split_once(' ').unwrap();
    let allow = match verb {
        "allow" => true,
        "deny" => false,
        _ => panic!("{text}"),
    };
    DeviceRule::parse(allow, line, |_| unreachable!()).unwrap()
}

fn rules(texts: &[&str]) -> Vec<DeviceRule> {
    texts.iter().map(|text| rule(text)).collect()
}

pub(in super::super) fn policy(texts: &[&str]) -> DevicePolicy {
    DevicePolicy::from_rules(&rules(texts)).unwrap().0
}

fn sentences(policy: &DevicePolicy) -> Vec<String> {
    policy.to_rules().iter().map(DeviceRule::sentence).collect()
}

/// Rules over few numbers, so that they meet; one in ten is for every device.
pub(in super::super) fn any_rules() -> impl Strategy<Value = Vec<DeviceRule>> {
    let number = || prop_oneof![2 => Just(None), 5 => (0u32..3).prop_map(Some)];
    let access = proptest::sample::select(&EVERY_ACCESS[..]).prop_map(|access| access.parse().unwrap());
    let kind = prop_oneof![1 => Just(DeviceKind::Block), 3 => Just(DeviceKind::Char)];
    let specific =
        (any::<bool>(), kind, number(), number(), access).prop_map(|(allow, kind, major, minor, access)| {
            DeviceRule { allow, ..DeviceRule::allow(kind, major, minor, access) }
        });
    let all = any::<bool>().prop_map(|allow| DeviceRule { allow, ..DeviceRule::allow_all() });
    proptest::collection::vec(prop_oneof![1 => all, 9 => specific], 0..8)
}

/// Every access to the devices that `any_rules` names and to one that it does not.
pub(in super::super) fn every_access() -> impl Iterator<Item = (DeviceKind, u32, u32, Access)> {
    [DeviceKind::Block, DeviceKind::Char].into_iter().flat_map(|kind| {
        (0..16).flat_map(move |n| {
            EVERY_ACCESS.iter().map(move |access| (kind, n / 4, n % 4, access.parse().unwrap()))
        })
    })
}

/// The policy of those rules that can be expressed.
pub(in super::super) fn expressible(rules: &[DeviceRule]) -> DevicePolicy {
    let (mut policy, mut report) = (DevicePolicy::deny_all(), Report::default());
    for rule in rules {
        let before = policy.clone();
        if policy.apply(rule, &mut report).is_err() {
            assert_eq!(policy, before, "a refused rule changes nothing");
        }
    }
    policy
}

#[test]
fn later_rules_win() {
    let table: [(&[&str], &[&str]); 9] = [
        (&[], &["deny a *:* rwm"]),
        (&["allow c 1:3 r", "allow c 1:3 w"], &["deny a *:* rwm", "allow c 1:3 rw"]),
        (&["allow c 1:3 rwm", "deny c 1:3 w"], &["deny a *:* rwm", "allow c 1:3 rm"]),
        (&["allow c 1:3 rwm", "deny c 1:3 rwm"], &["deny a *:* rwm"]),
        (
            &["allow c 1:3 rw", "allow c 1:5 rw", "allow c 2:5 r", "deny c 1:* w"],
            &["deny a *:* rwm", "allow c 1:3 r", "allow c 1:5 r", "allow c 2:5 r"],
        ),
        (&["allow c 1:3 rwm", "deny b 1:3 rwm"], &["deny a *:* rwm", "allow c 1:3 rwm"]),
        (&["allow c 1:3 rwm", "allow a", "deny c 1:5 w"], &["allow a *:* rwm", "deny c 1:5 w"]),
        (&["allow a", "deny c 1:5 rw", "allow c *:5 w"], &["allow a *:* rwm", "deny c 1:5 r"]),
        (&["allow a", "deny c 1:5 rw", "deny a"], &["deny a *:* rwm"]),
    ];
    for (given, meant) in table {
        assert_eq!(sentences(&policy(given)), meant, "{given:?}");
    }
}

#[test]
fn a_part_of_a_wildcard_cannot_be_taken_out() {
    let table: [(&[&str], &str, &str); 6] = [
        (&["allow c 1:* rwm"], "deny c 1:3 r", "c 1:* rwm is allowed"),
        (&["allow c *:* rw"], "deny c 1:* rwm", "c *:* rw is allowed"),
        (&["allow c *:3 w", "allow c 1:3 w"], "deny c 1:* w", "c *:3 w is allowed"),
        (&["allow a", "deny c 1:* rwm"], "allow c 1:3 r", "c 1:* rwm is denied"),
        (&["allow a", "deny b *:* w"], "allow b 8:* wm", "b *:* w is denied"),
        (&["allow a", "deny b *:3 w"], "allow b 8:* w", "b *:3 w is denied"),
    ];
    for (given, last, said) in table {
        let (mut policy, mut report) = DevicePolicy::from_rules(&rules(given)).unwrap();
        let before = policy.clone();
        let error = policy.apply(&rule(last), &mut report).expect_err(last);
        assert!(error.to_string().contains(said), "{given:?}, {last}: {error}");
        assert!(policy == before && report.is_empty(), "{given:?}, {last}");
    }
}

#[test]
fn where_only_mknod_would_be_cut_it_stays_and_the_report_says_so() {
    let table: [(&[&str], &[&str]); 2] = [
        (&["allow c *:* m", "allow c 1:3 rwm", "deny c 1:3 rwm"], &["deny a *:* rwm", "allow c *:* m"]),
        (
            &["allow a", "deny c *:* m", "deny c 1:3 rw", "allow c 1:3 rwm"],
            &["allow a *:* rwm", "deny c *:* m"],
        ),
    ];
    for (given, meant) in table {
        let (policy, report) = DevicePolicy::from_rules(&rules(given)).unwrap();
        assert_eq!(sentences(&policy), meant);
        let [line] = report.lines() else { panic!("{report}") };
        assert_eq!(line.value, *given.last().unwrap());
        assert!(line.why.contains("mknod stays") && line.why.contains("c *:* m"), "{report}");
    }
    let (_, report) = DevicePolicy::from_rules(&rules(&["allow c *:* m", "deny c 1:3 rw"])).unwrap();
    assert!(report.is_empty(), "nothing was to be cut: {report}");
}

#[test]
fn a_rule_for_every_device_that_names_some_is_refused_however_it_was_made() {
    let some = Numbers { major: Some(1), minor: None };
    for rule in [
        DeviceRule { numbers: some, ..DeviceRule::allow_all() },
        DeviceRule { access: Access::READ, ..DeviceRule::deny_all() },
        DeviceRule::allow(DeviceKind::Char, Some(u32::MAX), None, Access::ALL),
    ] {
        assert!(DevicePolicy::from_rules(std::slice::from_ref(&rule)).is_err(), "{}", rule.sentence());
    }
}

#[test]
fn one_exception_must_cover_all_of_an_access_and_any_overlap_denies() {
    let check = |policy: &DevicePolicy, line: &str| {
        let decision = policy.check_rule(&rule(&format!("allow {line}")));
        (decision.allowed, decision.by.sentence())
    };
    let denied = policy(&["allow c 1:* r", "allow c 1:3 w", "allow c *:* m"]);
    let granted = policy(&["allow a", "deny c 1:3 r", "deny b *:* m"]);
    for (policy, asked, allowed, by) in [
        (&denied, "c 1:3 r", true, "allow c 1:* r"),
        (&denied, "c 1:3 w", true, "allow c 1:3 w"),
        (&denied, "c 1:3 m", true, "allow c *:* m"),
        (&denied, "c 1:3 rw", false, "deny a *:* rwm"),
        (&denied, "c 1:* r", true, "allow c 1:* r"),
        (&denied, "c *:* r", false, "deny a *:* rwm"),
        (&denied, "b 1:3 r", false, "deny a *:* rwm"),
        (&denied, "a", false, "deny a *:* rwm"),
        (&granted, "c 1:3 rw", false, "deny c 1:3 r"),
        (&granted, "c 1:3 w", true, "allow a *:* rwm"),
        (&granted, "c *:* rw", false, "deny c 1:3 r"),
        (&granted, "a", false, "deny b *:* m"),
        (&DevicePolicy::allow_all(), "a", true, "allow a *:* rwm"),
    ] {
        assert_eq!(check(policy, asked), (allowed, by.to_owned()), "{asked}");
    }
}

#[test]
fn base_rules_come_after_the_callers_last_reset_and_before_its_specific_rules() {
    let base = rules(&["allow c 1:3 rwm", "allow c 10:232 rw"]);
    let table: [(&[&str], &[&str]); 5] = [
        (&[], &["deny a *:* rwm", "allow c 1:3 rwm", "allow c 10:232 rw"]),
        (
            &["deny a", "allow b 8:0 r"],
            &["deny a *:* rwm", "allow b 8:0 r", "allow c 1:3 rwm", "allow c 10:232 rw"],
        ),
        (&["deny a", "deny c 1:3 rwm"], &["deny a *:* rwm", "allow c 10:232 rw"]),
        (&["deny c 1:3 w"], &["deny a *:* rwm", "allow c 1:3 rm", "allow c 10:232 rw"]),
        (&["deny a", "allow c 5:1 r", "allow a", "deny c 1:3 w"], &["allow a *:* rwm", "deny c 1:3 w"]),
    ];
    for (caller, meant) in table {
        let (policy, report) = DevicePolicy::with_base(&rules(caller), &base, &[]).unwrap();
        assert_eq!(sentences(&policy), meant, "{caller:?}");
        assert!(report.is_empty());
    }
}

#[test]
fn taking_away_what_the_profile_requires_is_obeyed_and_reported() {
    let kvm = DeviceRule { path: Some("/dev/kvm".into()), ..rule("allow c 10:232 rw") };
    let base = [rule("allow c 1:3 rwm"), kvm.clone()];
    let required = [kvm];
    for (caller, by) in [
        (&["deny a", "deny c 10:232 w", "deny c 1:3 r"][..], Some("deny c 10:232 w")),
        (&["allow a", "deny c 10:* rwm"], Some("deny c 10:* rwm")),
        (&["deny c 10:232 rwm", "allow c 10:232 rw"], None),
        (&["deny c 10:232 m"], None),
        (&["allow a"], None),
    ] {
        let (policy, report) = DevicePolicy::with_base(&rules(caller), &base, &required).unwrap();
        assert_eq!(
            policy.check(DeviceKind::Char, 10, 232, Access::READ.union(Access::WRITE)).allowed,
            by.is_none()
        );
        assert_eq!(report.lines().first().map(|line| line.value.as_str()), by, "{caller:?}");
        assert_eq!(report.to_string().contains("/dev/kvm"), by.is_some(), "{report}");
    }
}

#[test]
fn a_change_speaks_of_its_own_rules_alone() {
    let kvm = DeviceRule { path: Some("/dev/kvm".into()), ..rule("allow c 10:232 rw") };
    let taken = policy(&["allow c 1:3 rwm"]);
    let no_base = || panic!("nothing of the base is asked for");
    let (changed, report) =
        taken.changed(&rules(&["allow c 1:5 r"]), no_base, std::slice::from_ref(&kvm)).unwrap();
    assert_eq!(changed, policy(&["allow c 1:3 rwm", "allow c 1:5 r"]));
    assert!(report.is_empty(), "what was taken away before is no news: {report}");

    let there = policy(&["allow c 10:232 rw"]);
    let (_, report) = there.changed(&rules(&["deny c 10:* r"]), no_base, std::slice::from_ref(&kvm)).unwrap();
    assert!(report.to_string().contains("/dev/kvm"), "{report}");

    let anew = rules(&["allow b 8:0 r", "deny a", "allow c 1:5 r"]);
    let (changed, report) =
        taken.changed(&anew, || Ok(vec![kvm.clone()]), std::slice::from_ref(&kvm)).unwrap();
    assert_eq!(changed, policy(&["allow c 10:232 rw", "allow c 1:5 r"]));
    assert!(report.is_empty(), "{report}");
}

#[test]
fn the_json_has_stars_for_wildcards() {
    let json = r#"{"default":"deny","exceptions":[{"type":"b","major":"*","minor":7,"access":"m"},{"type":"c","major":1,"minor":3,"access":"rwm"}]}"#;
    let read: DevicePolicy = serde_json::from_str(json).unwrap();
    assert_eq!(read, policy(&["allow b *:7 m", "allow c 1:3 rwm"]));
    assert_eq!(serde_json::to_string(&read).unwrap(), json);
    for refused in [r#""+""#, "-1", "4294967295", "null", "1.5"] {
        let json = format!(
            r#"{{"default":"deny","exceptions":[{{"type":"c","major":{refused},"minor":3,"access":"r"}}]}}"#
        );
        assert!(serde_json::from_str::<DevicePolicy>(&json).is_err(), "{refused}");
    }
}

#[test]
fn a_hundred_thousand_rules_are_applied_in_one_pass() {
    // Each denies what the one before allowed, from the highest number down, beside ten thousands that stay.
    let number = |at: u32| (Some(at % 1000), Some(100_000 - at));
    let many = (0..100_000_u32).flat_map(|at| {
        let (major, minor) = number(at);
        let access = if at % 2 == 0 { Access::WRITE } else { Access::READ };
        let allow = DeviceRule::allow(DeviceKind::Char, major, minor, access);
        let every = DeviceRule::allow(DeviceKind::Char, None, None, Access::READ);
        [allow, DeviceRule { allow: false, ..every }]
    });
    let many: Vec<_> = many.collect();
    let (policy, report) = DevicePolicy::from_rules(&many).unwrap();
    assert!(report.is_empty());
    assert_eq!(policy.exceptions().count(), 50_000);
    let mut json = serde_json::to_value(&policy).unwrap();
    json["exceptions"].as_array_mut().unwrap().reverse();
    assert_eq!(serde_json::from_value::<DevicePolicy>(json).unwrap(), policy);
}

#[test]
fn a_rule_reports_no_more_than_a_few_wider_ones() {
    let wide = (0..100).map(|minor| DeviceRule::allow(DeviceKind::Char, None, Some(minor), Access::MKNOD));
    let deny = DeviceRule::allow(DeviceKind::Char, Some(1), None, Access::ALL);
    let rules: Vec<_> = wide.chain([DeviceRule { allow: false, ..deny }]).collect();
    let (_, report) = DevicePolicy::from_rules(&rules).unwrap();
    let (mut one_by_one, mut again) = (DevicePolicy::deny_all(), Report::default());
    rules.iter().for_each(|rule| one_by_one.apply(rule, &mut again).unwrap());
    assert_eq!((report.lines().len(), &report), (MOST_WIDER + 1, &again));
}

proptest! {
    #[test]
    fn many_rules_at_once_are_the_same_as_one_after_another(rules in any_rules()) {
        let (mut policy, mut report) = (DevicePolicy::deny_all(), Report::default());
        let mut index = Index::new(Verdict::Deny, std::iter::empty());
        let mut of_index = Report::default();
        for rule in rules {
            let done = policy.apply(&rule, &mut report).map_err(|error| error.to_string());
            let same = index.apply(&rule, &mut of_index).map_err(|error| error.to_string());
            prop_assert_eq!(done, same, "{}", rule);
            prop_assert_eq!(&report, &of_index);
        }
        let (default, exceptions) = index.into_parts();
        prop_assert_eq!(DevicePolicy { default, exceptions }, policy);
    }

    #[test]
    fn a_policy_comes_back_from_its_rules_and_its_json(rules in any_rules()) {
        let policy = expressible(&rules);
        let (again, report) = DevicePolicy::from_rules(&policy.to_rules()).unwrap();
        prop_assert_eq!(&again, &policy);
        prop_assert!(report.is_empty());
        let json: DevicePolicy = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
        prop_assert_eq!(json, policy);
    }

    #[test]
    fn every_access_is_decided_as_the_kernel_decides_it(rules in any_rules()) {
        let policy = expressible(&rules);
        let kernel = KernelList::after(&policy.to_rules());
        for (kind, major, minor, access) in every_access() {
            let decision = policy.check(kind, major, minor, access);
            let letter = if kind == DeviceKind::Char { 'c' } else { 'b' };
            prop_assert_eq!(
                decision.allowed,
                kernel.allows(letter, major, minor, &access.to_string()),
                "{} {}:{} {}", kind, major, minor, access
            );
            prop_assert_eq!(decision.by.allow, decision.allowed);
        }
    }

    /// Of one letter, the last rule that speaks of it decides: nothing is approximated.
    #[test]
    fn the_last_rule_decides_each_letter_unless_it_is_refused_or_reported(rules in any_rules()) {
        let (mut policy, mut accepted) = (DevicePolicy::deny_all(), vec![DeviceRule::deny_all()]);
        for rule in rules {
            let mut report = Report::default();
            let mut changed = policy.clone();
            if changed.apply(&rule, &mut report).is_ok() && report.is_empty() {
                policy = changed;
                accepted.push(rule);
            }
        }
        for (kind, major, minor, access) in every_access() {
            if access.to_string().len() == 1 {
                let asked = DeviceRule::allow(kind, Some(major), Some(minor), access);
                let last = accepted.iter().rfind(|rule| rule.overlaps(&asked)).unwrap();
                prop_assert_eq!(policy.check(kind, major, minor, access).allowed, last.allow, "{}", asked);
            }
        }
    }
}
