//! A real virtual machine of an ordinary user: QEMU, ring-fenced in a delegated subtree.
//!
//! The guest is firmware of a few instructions, so that it comes up at once even where QEMU's interpreter runs under
//! another one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::fs;
use std::process::Command;

use crate::support::place::{ALL, Place, has_v2};
use crate::support::{directories_named, hierarchies, hierarchy_of, is_alive, is_on_v1, skip, until};

testbed! {}

const QEMU: &str = "qemu-system-x86_64";
const GREETING: &[u8] = b"guest is up\r\n\0";

/// A ROM of 64 KiB: it writes the greeting to the first serial port, and spins.
fn firmware() -> Vec<u8> {
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0xBA, 0xF8, 0x03, //       mov dx, 3F8h
        0xBE, 0x20, 0x00, //       mov si, 20h
        0x2E, 0xAC,       // next: cs lodsb
        0x84, 0xC0,       //       test al, al
        0x74, 0x03,       //       jz spin
        0xEE,             //       out dx, al
        0xEB, 0xF7,       //       jmp next
        0xEB, 0xFE,       // spin: jmp spin
    ];
    let mut rom = vec![0; 64 << 10];
    rom[..CODE.len()].copy_from_slice(CODE);
    rom[0x20..0x20 + GREETING.len()].copy_from_slice(GREETING);
    // Where the processor begins: jmp 0.
    rom[0xFFF0..0xFFF3].copy_from_slice(&[0xE9, 0x0D, 0x00]);
    rom
}

#[test]
fn an_ordinary_user_runs_a_virtual_machine_within_its_limits() {
    if Command::new(QEMU).arg("--version").output().is_err() {
        return skip("there is no QEMU");
    }
    if !is_on_v1("memory") && !has_v2(ALL) {
        return skip("there are no controllers to delegate");
    }
    let place = Place::delegated("machine", if is_on_v1("memory") { &[] } else { ALL });
    fs::write(place.runtime().join("firmware"), firmware()).unwrap();
    let text = format!(
        "ringfence run $ID --profile qemu --memory 192M --cpus 0.2 --pids 32 --detach -- \
             {QEMU} -accel tcg -machine pc -m 64 -nodefaults -no-user-config -display none \
             -serial file:$PWD/console -bios $PWD/firmware"
    );
    let done = place.script(&text).exits(0);
    let pid: u32 = done.stdout.trim().parse().unwrap();
    until("the guest is up", || {
        fs::read(place.runtime().join("console")).is_ok_and(|said| said == GREETING[..GREETING.len() - 1])
    });

    // It is where it should be in every hierarchy, as the kernel tells root: among the vCPUs where threads are told apart.
    let own = format!(":/{}/ringfence/{}", place.name, place.sandbox.id);
    let seen = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = |line: &&str| line.ends_with(&own) || line.ends_with(&format!("{own}/vcpu"));
    assert_eq!(seen.lines().filter(inside).count(), hierarchies().len(), "{seen}");
    assert!(fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("\nUid:\t1000\t1000"));
    let file = |controller: &str, v1: &str, v2: &str| {
        let dir = hierarchy_of(controller).point.join(&own[2..]);
        let name = if is_on_v1(controller) { v1 } else { v2 };
        fs::read_to_string(dir.join(name)).unwrap().trim().to_owned()
    };
    assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max"), (192 << 20).to_string());
    assert_eq!(file("pids", "pids.max", "pids.max"), "32");
    let quota = file("cpu", "vcpu/cpu.cfs_quota_us", "vcpu/cpu.max");
    assert_eq!(quota.split(' ').next(), Some("20000"));

    // The guest spins, and is stopped at a fifth of a CPU again and again; its memory is charged.
    let stats = || place.script("ringfence stats $ID -o json").exits(0).json()[0].clone();
    until("throttled", || stats()["parts"]["vcpu"]["cpu"]["throttled"].as_u64() > Some(3));
    let now = stats();
    assert!(now["memory"]["current"].as_u64() > Some(1 << 20), "{now}");
    assert!(now["pids"]["current"].as_u64() >= Some(2), "{now}");

    // That its devices are not confined is told, with the reason.
    let shown = place.script("ringfence -o json show $ID").exits(0).json();
    let lines = shown["report"].as_array().unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line["setting"] == "devices"
                && line["why"].as_str().unwrap().contains("CAP_SYS_ADMIN")),
        "{lines:?}"
    );

    place.script("ringfence freeze $ID; ringfence thaw $ID; ringfence rm $ID --kill").exits(0);
    assert!(!is_alive(pid) && directories_named(&place.sandbox.id).is_empty());
    place.is_clean();
}
