//! Devices that come and go while a process runs inside.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::time::{Duration, Instant};

use crate::support::soak::times;
use crate::support::{Guarded, by_systemd, name, path, skip};
use ringfence::{
    Cgroup, Child, Command, DeviceRule, ErrorKind, Host, Profile, Remaining, Resources, Sandbox,
    SandboxConfig, null,
};

testbed! {
    drivers: "cgroupfs systemd";
    soak: "trixie";
}

/// 1:11, in no profile's list, and harmless to open.
const OUTSIDER: &str = "/dev/kmsg";

fn outsider_opens_outside() -> bool {
    let opens = fs::File::options().read(true).write(true).open(OUTSIDER).is_ok();
    if !opens {
        skip("/dev/kmsg does not open outside a sandbox either");
    }
    opens
}

fn rule(text: &str) -> DeviceRule {
    DeviceRule::parse(true, text, |_| unreachable!()).unwrap()
}

fn denied(text: &str) -> DeviceRule {
    DeviceRule { allow: false, ..rule(text) }
}

fn none(what: &str) -> SandboxConfig {
    SandboxConfig::new(path(what)).profile(Profile::None)
}

/// A process inside that opens what it is asked to.
struct Opener {
    child: Child,
    asks: std::io::PipeWriter,
    answers: BufReader<std::io::PipeReader>,
}

impl Opener {
    fn inside(vm: &Sandbox) -> Self {
        let script = "while read -r how path; do
            case $how in r) { true < $path; } 2>&-;; w) { true > $path; } 2>&-;; *) { true <> $path; } 2>&-;; esac \\
                && echo y || echo n
        done";
        let (theirs, asks) = std::io::pipe().unwrap();
        let (answers, their_answers) = std::io::pipe().unwrap();
        let command = Command::new("sh").args(["-c", script]).stdin(theirs).stdout(their_answers);
        let child = vm.spawn(&command).unwrap();
        Self { child, asks, answers: BufReader::new(answers) }
    }

    /// Whether the kernel lets it open the device.
    fn opens(&mut self, how: &str) -> bool {
        self.opens_at(how, OUTSIDER)
    }

    fn opens_at(&mut self, how: &str, path: &str) -> bool {
        writeln!(self.asks, "{how} {path}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim() == "y"
    }

    fn end(self) {
        drop(self.asks);
        self.child.wait().unwrap();
    }
}

#[test]
fn a_claimed_device_opens_until_the_last_claim_that_needs_it_is_released() {
    if !outsider_opens_outside() {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &none("claims"));
    let mut inside = Opener::inside(&vm);
    assert!(!inside.opens("r"));
    vm.claim_devices("one", &[rule("c 1:11 rw")]).unwrap();
    vm.claim_devices("two", &[rule("c 1:11 r")]).unwrap();
    // The same again.
    vm.claim_devices("one", &[rule("c 1:11 rw")]).unwrap();
    assert!(inside.opens("rw"));
    vm.release_devices("one").unwrap();
    assert_eq!(["r", "w", "rw"].map(|how| inside.opens(how)), [true, false, false]);
    vm.release_devices("two").unwrap();
    assert!(!inside.opens("r"));
    let error = vm.release_devices("two").unwrap_err();
    assert_eq!((error.kind(), error.value()), (ErrorKind::NotFound, Some("two")));
    assert!(vm.claims().is_empty() && vm.diff().unwrap().is_empty());
    inside.end();
}

#[test]
fn what_is_allowed_without_a_claim_is_never_taken_away_by_a_release() {
    if !outsider_opens_outside() {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &none("base").resources(Resources::new().devices([rule("c 1:11 r")])));
    let mut inside = Opener::inside(&vm);
    vm.claim_devices("log", &[rule("c 1:11 rw"), rule("c 1:5 rwm")]).unwrap();
    assert!(inside.opens("rw"));
    vm.release_devices("log").unwrap();
    assert_eq!(["r", "w", "rw"].map(|how| inside.opens(how)), [true, false, false]);
    assert!(inside.opens_at("rw", "/dev/zero"));
    // A device that is denied while a claim needs it stays, and the report says so.
    vm.claim_devices("log", &[rule("c 1:11 w")]).unwrap();
    let report = vm.change(&Resources::new().devices([denied("c 1:11 rwm")])).unwrap();
    assert!(report.to_string().contains("claim log"), "{report}");
    assert_eq!(["r", "w"].map(|how| inside.opens(how)), [false, true]);
    vm.release_devices("log").unwrap();
    assert!(!inside.opens("w"));
    inside.end();
}

#[test]
fn another_process_that_restores_the_sandbox_knows_its_claims() {
    if !outsider_opens_outside() {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &none("restored"));
    let mut inside = Opener::inside(&vm);
    vm.claim_devices("one", &[rule("c 1:11 rw")]).unwrap();
    let restored = || {
        let state = serde_json::to_string(&vm.state()).unwrap();
        Sandbox::restore(&host, serde_json::from_str(&state).unwrap()).unwrap()
    };
    let other = restored();
    assert_eq!(other.claims(), vm.claims());
    other.claim_devices("two", &[rule("c 1:11 r")]).unwrap();
    other.release_devices("one").unwrap();
    assert_eq!(["r", "w"].map(|how| inside.opens(how)), [true, false]);
    other.release_devices("two").unwrap();
    assert!(!inside.opens("r"));
    inside.end();
}

#[test]
fn a_claim_that_fails_leaves_everything_as_it_was() {
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &none("failed"));
    vm.claim_devices("one", &[rule("c 1:11 r")]).unwrap();
    let (state, files) = (vm.state(), vm.files());
    for (name, rules) in [
        ("one", vec![rule("c 10:229 rw"), DeviceRule::allow_all()]),
        ("two", vec![rule("c 10:229 rw"), rule("c 10:* r"), denied("c 10:5 r")]),
        ("two", vec![denied("c 1:11 r")]),
        ("t w o", vec![rule("c 10:229 rw")]),
    ] {
        let error = vm.claim_devices(name, &rules).unwrap_err();
        assert!([ErrorKind::InvalidInput, ErrorKind::NotFound].contains(&error.kind()), "{error:?}");
    }
    assert_eq!((vm.state(), vm.files()), (state, files));
    if !vm.is_on_v1("devices") {
        return skip("on v2 no parent refuses a rule");
    }
    if by_systemd() {
        return skip("a unit is in no scope");
    }
    // The kernel refuses what a parent denies, here the second of two.
    let above = format!("/{}", name("parent"));
    let only = Resources::new().devices([rule("c 1:11 r")]);
    let (parent, _) = Cgroup::create(&host, &above.parse().unwrap(), &only).unwrap();
    let within = format!("{above}/{}", name("child"));
    let child = Guarded::make(&host, &SandboxConfig::new(within.parse().unwrap()).profile(Profile::None));
    let (state, files) = (child.state(), child.files());
    let error = child.claim_devices("two", &[rule("c 1:11 r"), rule("c 10:229 rw")]).unwrap_err();
    assert!(error.to_string().contains("parent"), "{error}");
    assert_eq!((child.state(), child.files()), (state, files));
    child.claim_devices("two", &[rule("c 1:11 r")]).unwrap();
    drop(child);
    parent.destroy(Remaining::Refuse, Duration::from_secs(10)).unwrap();
}

#[test]
fn a_scope_that_has_not_started_keeps_its_claims_for_its_start() {
    if !by_systemd() {
        return skip("a cgroup of our own starts at once");
    }
    if !outsider_opens_outside() {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::planned(&host, &none("planned"));
    vm.claim_devices("one", &[rule("c 1:11 rw")]).unwrap();
    vm.claim_devices("two", &[rule("c 10:229 rw")]).unwrap();
    vm.release_devices("two").unwrap();
    let mut inside = Opener::inside(&vm);
    assert!(inside.opens("rw"));
    assert!(vm.diff().unwrap().is_empty());
    vm.release_devices("one").unwrap();
    assert!(!inside.opens("r"));
    inside.end();
}

#[test]
fn a_process_inside_is_never_refused_what_it_may_open_while_devices_come_and_go() {
    // So many rules change in any case, and so many times as there is time for.
    let (all_rules, all_changes) = (times(10_000), times(10_000));
    const TIME: Duration = Duration::from_secs(15);
    if !outsider_opens_outside() {
        return;
    }
    let host = Host::detect().unwrap();
    let vm = Guarded::make(&host, &none("steady").resources(Resources::new().devices([rule("c 10:229 rw")])));
    let scratch = tempfile::tempdir().unwrap();
    let (go_on, counted) = (scratch.path().join("go-on"), scratch.path().join("counted"));
    fs::write(&go_on, "").unwrap();
    // A redirection that fails ends the shell, with another status than 0.
    let opens = ": < /dev/zero; : > /dev/null; : <> /dev/full; ".repeat(10);
    let script = format!(
        "n=0; while [ -e {} ]; do {opens} n=$((n+30)); done; echo $n > {}",
        go_on.display(),
        counted.display()
    );
    let command = Command::new("sh").args(["-c", &script]).stdin(null().unwrap()).stdout(null().unwrap());
    let steady = vm.spawn(&command).unwrap();
    let mut inside = Opener::inside(&vm);
    let (mut allow, mut deny) =
        (vec![rule("c 10:237 rw"), rule("b 7:* r")], vec![denied("b 7:* r"), denied("c 10:237 rwm")]);
    allow.extend((64..104).map(|minor| rule(&format!("c 10:{minor} rw"))));
    deny.extend((64..104).map(|minor| denied(&format!("c 10:{minor} rwm"))));
    // The claims of a round change seven beside these.
    let rules_each = allow.len() + deny.len() + 7;
    let (allow, deny) = (Resources::new().devices(allow), Resources::new().devices(deny));
    let (start, mut done, mut rules, mut refused) = (Instant::now(), 0, 0, 0);
    while rules < all_rules || done < all_changes && start.elapsed() < TIME {
        let seen = (done / 8).is_multiple_of(2);
        done += 8;
        rules += rules_each;
        let mut opens = |how: &str, expected: bool, when: &str| {
            if seen {
                assert_eq!(inside.opens(how), expected, "change {done}, {when}: {how}");
                refused += usize::from(!expected);
            }
        };
        vm.claim_devices("one", &[rule("c 1:11 rw"), rule("c 10:196 rw")]).unwrap();
        opens("rw", true, "claimed");
        vm.change(&allow).unwrap();
        vm.claim_devices("two", &[rule("c 1:11 r"), rule("c 10:196 rw")]).unwrap();
        vm.release_devices("one").unwrap();
        opens("r", true, "claimed for reading");
        opens("rw", false, "claimed for reading");
        vm.change(&deny).unwrap();
        vm.claim_devices("two", &[denied("c 10:196 rw"), rule("b 8:0 rw")]).unwrap();
        vm.claim_devices("two", &[denied("b 8:0 rw")]).unwrap();
        vm.release_devices("two").unwrap();
        opens("r", false, "released");
        opens("w", false, "released");
    }
    assert!(vm.diff().unwrap().is_empty());
    fs::remove_file(&go_on).unwrap();
    assert!(steady.wait().unwrap().success(), "it was refused a device");
    let tries: u64 = fs::read_to_string(&counted).unwrap().trim().parse().unwrap();
    println!("{tries} opened, {refused} refused as they should be, in {done} changes of {rules} rules");
    assert!(tries > 300 && refused >= times(100), "{tries} opened, {refused} refused");
    inside.end();
}
