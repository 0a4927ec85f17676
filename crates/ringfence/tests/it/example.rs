//! The example for authors of runtimes does what it says.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml frees only #[test] functions.

use std::process::Command;

testbed! {
    // cargo builds it, and guests have no cargo.
    modes: "host";
}

/// The number behind `what`.
fn number(told: &str, what: &str) -> u64 {
    let rest = told.lines().find_map(|line| line.strip_prefix(what));
    rest.and_then(|rest| rest.trim().split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{what}: {told}"))
}

#[test]
fn a_machine_is_made_split_plugged_measured_frozen_and_taken_away() {
    // Of the whole workspace, as this test was: nothing is built anew for other features of the same crates.
    let build = ["build", "--quiet", "--locked", "--workspace", "--example", "vmm"];
    assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    let beside = std::env::current_exe().unwrap().with_file_name("../examples/vmm");
    let done = Command::new(beside).output().unwrap();
    let told = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    for line in [
        "  vcpu0           Some(Vcpu)",
        "  vcpu1           Some(Vcpu)",
        "  vmm             Some(Overhead)",
        "not allowed: Operation not permitted (os error 1)",
        "claimed: opened",
        "released: Operation not permitted (os error 1)",
        "the overhead was throttled 0 times",
    ] {
        assert!(told.lines().any(|told| told == line), "no {line:?} in\n{told}");
    }
    assert!((1..=700).contains(&number(&told, "in a second the vCPUs computed ")), "{told}");
    assert!(number(&told, "frozen, they computed ") < 10, "{told}");
    if let Some(skipped) = told.lines().find(|line| line.contains("SKIPPED")) {
        eprintln!("{skipped}");
    }
}
