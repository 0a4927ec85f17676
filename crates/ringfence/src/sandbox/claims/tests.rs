use proptest::prelude::*;

use super::*;
use crate::devices::{Access, DeviceKind};

/// `allow c 1:11 r`, as a rule.
fn rules(texts: &[&str]) -> Vec<DeviceRule> {
    let read = |text: &&str| {
        let (verb, rule) = text.split_once(' ').unwrap();
        DeviceRule::parse(verb == "allow", rule, |_| unreachable!()).unwrap()
    };
    texts.iter().map(read).collect()
}

fn on(base: &[&str]) -> Devices {
    let (base, _) = DevicePolicy::from_rules(&rules(base)).unwrap();
    Devices { policy: base.clone(), base, claims: BTreeMap::new() }
}

impl Devices {
    fn claim(self, name: &str, texts: &[&str]) -> Self {
        self.claimed(name, Claim::Rules(&rules(texts))).unwrap().0
    }

    fn release(self, name: &str) -> Self {
        self.claimed(name, Claim::Release).unwrap().0
    }

    fn allows(&self) -> String {
        self.policy.exceptions().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
    }
}

#[test]
fn a_device_stays_for_as_long_as_one_claim_needs_it() {
    let both = on(&["allow c 1:3 rwm"])
        .claim("gpu0", &["allow c 243:0 rw", "allow c 10:196 rw"])
        .claim("gpu1", &["allow c 243:1 rw", "allow c 10:196 rw"]);
    assert_eq!(both.allows(), "c 1:3 rwm, c 10:196 rw, c 243:0 rw, c 243:1 rw");
    let one = both.clone().release("gpu0");
    assert_eq!(one.allows(), "c 1:3 rwm, c 10:196 rw, c 243:1 rw");
    assert_eq!(one.release("gpu1").allows(), "c 1:3 rwm");
    assert_eq!(both.release("gpu1").release("gpu0").allows(), "c 1:3 rwm");
}

#[test]
fn a_claim_leaves_what_was_allowed_before_as_it_was() {
    let base = on(&["allow c 10:196 r", "allow c 10:* w"]);
    let before = base.allows();
    let claimed = base.claim("disk", &["allow c 10:196 rw", "allow c 10:* m"]);
    assert_eq!(claimed.allows(), "c 10:* wm, c 10:196 rw");
    assert_eq!(claimed.release("disk").allows(), before);
}

#[test]
fn under_default_allow_a_claim_lifts_what_is_denied_and_gives_it_back() {
    let base = on(&["allow a", "deny c 1:11 rw"]);
    let claimed = base.clone().claim("log", &["allow c 1:11 r"]);
    assert_eq!(claimed.allows(), "c 1:11 w");
    assert_eq!(claimed.release("log").allows(), "c 1:11 rw");
    let wide = on(&["allow a", "deny c 1:* rw"]);
    let error = wide.claimed("log", Claim::Rules(&rules(&["allow c 1:11 r"]))).unwrap_err();
    assert!(error.to_string().contains("claim log"), "{error}");
}

#[test]
fn the_same_again_changes_nothing_and_other_rules_are_added() {
    let once = on(&[]).claim("disk", &["allow b 8:0 rw"]);
    let twice = once.clone().claim("disk", &["allow b 8:0 rw"]);
    assert_eq!(twice.claims, once.claims);
    let more = twice.claim("disk", &["allow b 8:16 r", "allow b 8:0 m"]);
    assert_eq!(more.allows(), "b 8:0 rwm, b 8:16 r");
    assert_eq!(more.release("disk").allows(), "");
}

#[test]
fn a_rule_that_denies_takes_away_from_its_claim_alone() {
    let two = on(&["allow b 8:32 r"])
        .claim("a", &["allow b 8:0 rw", "allow b 8:16 rw", "allow b 8:32 rw"])
        .claim("b", &["allow b 8:16 r"]);
    let less = two.claim("a", &["deny b 8:0 w", "deny b 8:16 rwm", "deny b 8:32 rw"]);
    assert_eq!(less.allows(), "b 8:0 r, b 8:16 r, b 8:32 r");
    // Nothing is left of it: it is gone.
    let gone = less.claim("a", &["deny b 8:0 r"]);
    assert_eq!(gone.claims.keys().collect::<Vec<_>>(), ["b"]);
    let error = gone.claimed("a", Claim::Rules(&rules(&["deny b 8:0 r"]))).unwrap_err();
    assert_eq!((error.kind(), error.value()), (ErrorKind::NotFound, Some("a")));
}

#[test]
fn what_is_denied_while_a_claim_needs_it_stays_and_is_reported() {
    let claimed = on(&["allow c 1:11 rw", "allow b 8:0 rw"]).claim("log", &["allow c 1:11 r"]);
    let (after, report) =
        claimed.changed(&rules(&["deny c 1:11 rwm", "deny b 8:0 rwm"]), || unreachable!(), &[]).unwrap();
    assert_eq!(after.allows(), "c 1:11 r");
    let [line] = report.lines() else { panic!("{report}") };
    assert!(line.value == "deny c 1:11 rwm" && line.why.contains("claim log"), "{line:?}");
    assert_eq!(after.release("log").allows(), "");
}

#[test]
fn claims_outlast_a_rule_for_every_device() {
    let claimed = on(&["allow c 1:11 rw"]).claim("disk", &["allow b 8:0 rw"]);
    let (after, _) = claimed.changed(&rules(&["deny a"]), || Ok(rules(&["allow c 1:3 rw"])), &[]).unwrap();
    assert_eq!(after.allows(), "b 8:0 rw, c 1:3 rw");
    let (open, _) = after.changed(&rules(&["allow a"]), || Ok(Vec::new()), &[]).unwrap();
    assert_eq!(open.policy, DevicePolicy::allow_all());
    assert_eq!(open.release("disk").policy, DevicePolicy::allow_all());
}

#[test]
fn what_cannot_be_a_claim_is_refused_with_its_name_or_rule() {
    let kinds = |name: &str, texts: &[&str]| {
        on(&[]).claimed(name, Claim::Rules(&rules(texts))).map(drop).map_err(|error| error.kind())
    };
    assert_eq!(kinds("all", &["allow a"]), Err(ErrorKind::InvalidInput));
    assert_eq!(kinds("all", &["deny a"]), Err(ErrorKind::NotFound));
    assert_eq!(kinds("0000:01:00.0", &["allow b 8:0 r"]), Ok(()));
    for name in ["", "a b", "a/b", "ä", &"x".repeat(129)] {
        assert_eq!(kinds(name, &["allow b 8:0 r"]), Err(ErrorKind::InvalidInput), "{name:?}");
    }
    let error = on(&[]).claimed("x", Claim::Release).unwrap_err();
    assert_eq!(
        (error.kind(), error.setting(), error.value()),
        (ErrorKind::NotFound, Some("claim"), Some("x"))
    );
}

/// Few devices, so that rules meet: a number or every number.
fn any_rule() -> impl Strategy<Value = DeviceRule> {
    let number = || prop_oneof![4 => (0_u32..3).prop_map(Some), 1 => Just(None)];
    let access = prop_oneof![Just("r"), Just("rw"), Just("rwm"), Just("w"), Just("m")];
    (any::<bool>(), number(), number(), access).prop_map(|(is_char, major, minor, access)| {
        let kind = if is_char { DeviceKind::Char } else { DeviceKind::Block };
        DeviceRule::allow(kind, major, minor, access.parse::<Access>().unwrap())
    })
}

proptest! {
    #[test]
    fn claims_that_come_and_go_never_touch_what_others_need(
        base in prop::collection::vec(any_rule(), 0..5),
        steps in prop::collection::vec((0..3_usize, any::<bool>(), prop::collection::vec(any_rule(), 1..4)), 1..12),
    ) {
        let (policy, _) = DevicePolicy::from_rules(&base).unwrap();
        let mut devices = Devices { policy: policy.clone(), base: policy.clone(), claims: BTreeMap::new() };
        for (name, is_release, rules) in steps {
            let name = ["a", "b", "c"][name];
            let claim = if is_release { Claim::Release } else { Claim::Rules(&rules) };
            let Ok((next, report)) = devices.clone().claimed(name, claim) else {
                prop_assert!(is_release && !devices.claims.contains_key(name));
                continue;
            };
            prop_assert!(report.is_empty(), "{report}");
            devices = next;
            for needed in base.iter().chain(devices.claims.values().flatten()) {
                prop_assert!(devices.policy.check_rule(needed).allowed, "{needed} in {}", devices.policy);
            }
            prop_assert!(is_release || devices.claims.contains_key(name));
        }
        for name in devices.claims.clone().into_keys() {
            devices = devices.release(&name);
        }
        prop_assert_eq!(devices.policy, policy);
    }
}
