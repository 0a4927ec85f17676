//! System calls that a seccomp filter denies, as container engines do with those that they do not know: ENOSYS is the answer
//! of newer ones, EPERM of older ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;

use crate::support::{Guarded, MIB, SOON, by_systemd, path, skip, sleeper, test_path};
use ringfence::{Host, Mode, Resources, SandboxConfig};

testbed! {
    modes: "host trixie plain-v1 forky old-v2";
    drivers: "cgroupfs systemd";
}

const CALLS: [(&str, libc::c_long); 7] = [
    ("openat2", libc::SYS_openat2),
    ("clone3", libc::SYS_clone3),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("bpf", libc::SYS_bpf),
    // What else is younger than the filters of engines that are in use.
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("faccessat2", libc::SYS_faccessat2),
    ("close_range", libc::SYS_close_range),
];

/// Answers these calls of this thread, and of what it forks, with an errno.
fn deny(calls: &BTreeSet<&str>, errno: i32) {
    let filter = |code: u32, k: u32, jt: u8| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let (load, equals, answer) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_RET);
    let mut program = vec![filter(load, 0, 0)];
    for (_, number) in CALLS.iter().filter(|(name, _)| calls.contains(name)) {
        // Not this one: over the answer.
        program.push(libc::sock_filter {
            code: equals as u16,
            jt: 0,
            jf: 1,
            k: u32::try_from(*number).unwrap(),
        });
        program.push(filter(answer, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(), 0));
    }
    program.push(filter(answer, libc::SECCOMP_RET_ALLOW, 0));
    let whole = libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, whose length is given.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const whole), 0);
    }
}

/// In the environment of the test that is denied them: `before` or `after` the host was looked at, the errno, the calls.
const DENIED: &str = "RINGFENCE_TEST_DENIED";

/// Run by the others.
#[test]
fn lives_without_the_calls() {
    let Ok(case) = std::env::var(DENIED) else { return };
    let words: Vec<&str> = case.split(' ').collect();
    let calls: BTreeSet<&str> = words[2].split(',').collect();
    // The C library's own way to start a program does not do without clone3 that is denied with EPERM.
    // It holds no output of this test open, whose end the test that started this one waits for.
    let null = std::process::Stdio::null;
    let mut joins =
        std::process::Command::new("sleep").arg("1000").stdout(null()).stderr(null()).spawn().unwrap();
    let deny = || deny(&calls, words[1].parse().unwrap());
    let host = if words[0] == "before" {
        deny();
        Host::detect().unwrap()
    } else {
        let host = Host::detect().unwrap();
        deny();
        host
    };
    let is_without_bpf = calls.contains("bpf") && host.mode == Mode::V2;
    let mut host = host;
    if is_without_bpf && words[0] == "after" {
        let error = Guarded::refused(&host, path("no-filter"), |config| config);
        assert!(error.to_string().contains("bpf(2)"), "{error}");
        host = Host::detect().unwrap();
    }
    let vm = Guarded::make(&host, &SandboxConfig::new(path("denied")).resources(limits()));
    let report = vm.state().full_report().to_string();
    assert_eq!(report.contains("bpf(2)"), is_without_bpf, "{report}");
    assert_eq!(vm.number("pids", "pids.max", "pids.max"), ringfence::Limit::Value(100));
    let child = vm.spawn(&sleeper()).unwrap();
    assert_eq!(vm.processes().unwrap(), BTreeSet::from([child.pid()]));
    vm.change(&Resources::new().pids_limit(200)).unwrap();
    assert_eq!(vm.number("pids", "pids.max", "pids.max"), ringfence::Limit::Value(200));
    drop(vm.hold_meanwhile().unwrap());
    vm.join(joins.id()).unwrap();
    assert!(vm.processes().unwrap().contains(&joins.id()));
    child.signal(libc::SIGTERM).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGTERM));
    // It was waited for, so that its PID may be another's.
    child.signal(libc::SIGTERM).unwrap();
    assert_eq!(vm.kill(SOON).unwrap(), BTreeSet::from([joins.id()]));
    joins.wait().unwrap();
}

fn limits() -> Resources {
    Resources::new().pids_limit(100).memory_limit(256 * MIB)
}

fn live_without(calls: &str) {
    for errno in [libc::ENOSYS, libc::EPERM] {
        if by_systemd() && errno == libc::EPERM && calls.contains("clone3") {
            // The C library takes it for final.
            skip("the connection to systemd has a thread, which is not to be had either");
            continue;
        }
        for when in ["before", "after"] {
            let case = format!("{when} {errno} {calls}");
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args([
                "--exact",
                &test_path(module_path!(), "lives_without_the_calls"),
                "--test-threads=1",
            ]);
            let done = command.env(DENIED, &case).output().unwrap();
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            assert!(done.status.success(), "{case}: {}\n{}", text(&done.stdout), text(&done.stderr));
        }
    }
}

#[test]
fn a_sandbox_lives_where_openat2_is_denied() {
    live_without("openat2,faccessat2");
}

#[test]
fn a_sandbox_lives_where_clone3_is_denied() {
    live_without("clone3");
}

#[test]
fn a_sandbox_lives_where_pidfd_calls_are_denied() {
    live_without("pidfd_open,pidfd_send_signal");
}

#[test]
fn a_sandbox_lives_where_bpf_is_denied() {
    live_without("bpf");
}

#[test]
fn a_sandbox_lives_where_all_of_them_are_denied() {
    live_without(&CALLS.map(|(name, _)| name).join(","));
}
