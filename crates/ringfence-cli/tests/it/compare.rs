//! What is wanted held against what is there (`diff`), and one form of limits against another (`convert`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use crate::support::{self, Sandbox, by_systemd, finish, is_on_v1, mode, until};
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

const DIFFERS: i32 = 4;
const MIB: u64 = 1 << 20;

/// Writes to a file of ours behind the command's back.
fn write(sandbox: &Sandbox, v1: &str, v2: &str, value: &str) -> String {
    let controller = v1.split('.').next().unwrap();
    let file = if is_on_v1(controller) { v1 } else { v2 };
    fs::write(sandbox.dir(controller).join(file), value).unwrap();
    file.to_owned()
}

#[test]
fn a_sandbox_that_nobody_touched_is_as_it_should_be() {
    let sandbox = Sandbox::named("untouched");
    sandbox.create(&[
        "--memory",
        "65M",
        "--memory-swap",
        "96M",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "512",
        "--cpuset-cpus",
        "0,1",
        "--pids",
        "9",
        "--profile",
        "qemu",
    ]);
    assert_eq!(sandbox.json("diff", &[]), json!([]));
    sandbox.does("set", &["--memory", "66M", "--cpus", "0.2", "--pids", "max", "--cpuset-cpus", "0"]);
    sandbox.does("devices allow", &["/dev/kmsg:r"]);
    assert_eq!(sandbox.json("diff", &[]), json!([]));
    assert_eq!(sandbox.does("diff", &[]).stdout.lines().count(), 1, "the heading alone");
}

#[test]
fn what_somebody_else_wrote_is_found_and_can_be_set_right() {
    let sandbox = Sandbox::named("touched");
    sandbox.create(&["--memory", "64M", "--cpus", "0.5", "--cpuset-cpus", "0-1", "--pids", "9"]);
    // The same set in other words is no difference.
    write(&sandbox, "cpuset.cpus", "cpuset.cpus", "0,1");
    sandbox.does("diff", &[]);

    let pids = write(&sandbox, "pids.max", "pids.max", "12");
    let memory = write(&sandbox, "memory.limit_in_bytes", "memory.max", "128M");
    // Linux 5.14.
    let has_burst =
        ["cpu.cfs_burst_us", "cpu.max.burst"].iter().any(|file| sandbox.dir("cpu").join(file).exists());
    let burst = has_burst.then(|| write(&sandbox, "cpu.cfs_burst_us", "cpu.max.burst", "1000"));
    let cpus = write(&sandbox, "cpuset.cpus", "cpuset.cpus", "1");
    let found = sandbox.attempt_json("diff", &[]).exits(DIFFERS).json();
    let mut found: Vec<Value> = found.as_array().unwrap().clone();
    found.sort_by_key(|found| found["key"].to_string());
    let mut expected = vec![
        json!({"key": pids, "want": "9", "have": "12"}),
        json!({"key": memory, "want": (64 * MIB).to_string(), "have": (128 * MIB).to_string()}),
        json!({"key": cpus, "want": "0-1", "have": "1"}),
    ];
    expected.extend(burst.map(|burst| json!({"key": burst, "want": "50000", "have": "1000"})));
    expected.sort_by_key(|expected| expected["key"].to_string());
    assert_eq!(found, expected);
    let table = sandbox.attempt("diff", &[]).exits(DIFFERS).stdout;
    assert!(table.starts_with("KEY") && table.contains("pids.max"), "{table}");

    sandbox.does("set", &["--memory", "64M", "--cpus", "0.5", "--cpuset-cpus", "0-1", "--pids", "9"]);
    assert_eq!(sandbox.json("diff", &[]), json!([]));
}

#[test]
fn a_difference_in_a_file_with_a_line_for_each_device_is_that_line() {
    let disks = fs::read_dir("/sys/block").unwrap().flatten();
    let mut disks: Vec<_> =
        disks.map(|disk| fs::read_to_string(disk.path().join("dev")).unwrap().trim().to_owned()).collect();
    disks.sort();
    let (one, other) = (&disks[0], disks.last().unwrap());
    let sandbox = Sandbox::named("lines");
    let file = sandbox.scratch.path().join("resources.json");
    let device = |numbers: &str, rate: u64| {
        let (major, minor) = numbers.split_once(':').unwrap();
        json!({"major": major.parse::<u32>().unwrap(), "minor": minor.parse::<u32>().unwrap(), "rate": rate})
    };
    let throttles = json!({"blockIO": {"throttleReadBpsDevice": [device(one, 4096), device(other, 8192)]}});
    fs::write(&file, throttles.to_string()).unwrap();
    sandbox.create(&["--resources", file.to_str().unwrap()]);
    sandbox.does("diff", &[]);
    if is_on_v1("blkio") {
        write(&sandbox, "blkio.throttle.read_bps_device", "", &format!("{other} 5"));
    } else {
        write(&sandbox, "blkio.throttle.read_bps_device", "io.max", &format!("{other} rbps=5"));
    }
    let found = sandbox.attempt_json("diff", &[]).exits(DIFFERS).json();
    let expected = if is_on_v1("blkio") {
        json!({"key": "blkio.throttle.read_bps_device", "want": format!("{other} 8192"), "have": format!("{other} 5")})
    } else {
        json!({
            "key": "io.max", "want": format!("{other} rbps=8192 riops=max wbps=max wiops=max"),
            "have": format!("{other} rbps=5 riops=max wbps=max wiops=max")
        })
    };
    assert_eq!(found, json!([expected]));
}

#[test]
fn a_sandbox_that_is_not_there_is_no_difference() {
    let sandbox = Sandbox::named("nobody");
    assert_eq!(sandbox.attempt_json("diff", &[]).exits(3).error()["kind"], "not_found");
    sandbox.create(&["--pids", "5"]);
    if by_systemd() {
        sandbox.does("kill", &[]);
        // Where systemd has no say, on v1, ours stay.
        let systemds = support::hierarchy_of("pids").point;
        until("ended", || !sandbox.directories().iter().any(|dir| dir.starts_with(&systemds)));
    } else {
        sandbox.directories().iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    }
    assert_eq!(sandbox.attempt_json("diff", &[]).exits(3).error()["kind"], "not_found");
}

#[test]
fn limits_of_oci_and_of_v1_are_converted_and_what_is_lost_is_told() {
    let sandbox = Sandbox::named("convert");
    let file = |name: &str, content: &str| {
        let path = sandbox.scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let convert = |output: &str, from: &str, file: &str| {
        finish(sandbox.ringfence(&["-o", output, "convert", "--from", from, "--to", "v2", file]))
    };
    let resources = r#"{"memory": {"limit": 67108864, "swap": 100663296, "swappiness": 10}, "cpu": {"shares": 1024, "quota": 50000},
        "blockIO": {"weight": 200}, "devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}]}"#;
    let unified = json!({
        "cpu.max": "50000 100000", "cpu.weight": "100", "io.weight": "default 1920", "memory.max": "67108864",
        "memory.swap.max": "33554432"
    });
    let whole =
        format!(r#"{{"ociVersion": "1.2.0", "linux": {{"cgroupsPath": "/x", "resources": {resources}}}}}"#);
    for file in [file("resources.json", resources), file("config.json", &whole)] {
        let done = convert("json", "oci", &file).exits(0);
        assert_eq!(done.json()["unified"], unified);
        assert_eq!(done.json()["devices"][0]["major"], 1);
        assert!(done.stderr.contains("memory.swappiness"), "{}", done.stderr);
    }
    let v1 = "/sys/fs/cgroup/memory/vm1/memory.limit_in_bytes:67108864\n/x/memory.memsw.limit_in_bytes:100663296\n\
              /x/memory.swappiness:10\n/x/cpu.shares:1024\n/x/cpu.cfs_quota_us:50000\n/x/blkio.bfq.weight:200\n/x/memory.stat:rss 0\n";
    let done = convert("json", "v1", &file("v1.txt", v1)).exits(0);
    assert_eq!(done.json()["unified"], unified);
    let lines = convert("table", "v1", &file("v1.txt", v1)).exits(0).stdout;
    assert!(
        lines.contains("memory.max = 67108864\n") && lines.contains("cpu.max = 50000 100000\n"),
        "{lines}"
    );

    // What comes out is what a v2 host takes.
    if mode() == "v2" {
        let converted = file("converted.json", &done.stdout);
        sandbox.create(&["--resources", &converted]);
        for (name, value) in unified.as_object().unwrap() {
            let live = sandbox.file(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(live.lines().next().unwrap(), value.as_str().unwrap(), "{name}");
        }
        sandbox.does("diff", &[]);
    }

    // What the kernel of v1 holds, as grep prints it.
    if is_on_v1("memory") {
        sandbox.create(&[
            "--memory",
            "64M",
            "--cpu-shares",
            "1024",
            "--cpus",
            "0.5",
            "--pids",
            "9",
            "--device-allow",
            "c 1:11 r",
        ]);
        let directories = sandbox.directories();
        let files =
            directories.iter().map(|dir| format!("{}/*", dir.display())).collect::<Vec<_>>().join(" ");
        let mut grep = std::process::Command::new("sh");
        grep.args(["-c", &format!("grep -s . {files}")]);
        let done = convert("json", "v1", &file("held.txt", &finish(grep).stdout)).exits(0).json();
        for (name, value) in [
            ("memory.max", "67108864"),
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "9"),
        ] {
            assert_eq!(done["unified"][name], value, "{name} in {done}");
        }
        // Linux 5.14.
        let burst = sandbox.dir("cpu").join("cpu.cfs_burst_us").exists().then_some("50000");
        assert_eq!(done["unified"]["cpu.max.burst"].as_str(), burst, "{done}");
        let rules = done["devices"].as_array().unwrap();
        assert!(
            rules.iter().any(|rule| rule["major"] == 1 && rule["minor"] == 11 && rule["access"] == "r"),
            "{done}"
        );
    }

    let strict = finish(sandbox.ringfence(&[
        "-o",
        "json",
        "--strict",
        "convert",
        "--from",
        "v1",
        "--to",
        "v2",
        &file("v1.txt", v1),
    ]));
    assert_eq!(strict.exits(1).error()["setting"], "memory.swappiness");
    let bad = convert("json", "v1", &file("bad.txt", "cpu.shares=many")).exits(2).error();
    assert_eq!((bad["setting"].as_str(), bad["value"].as_str()), (Some("cpu.shares"), Some("many")));
    assert!(bad["path"].as_str().unwrap().ends_with("bad.txt"));
    convert("json", "oci", &file("bad.json", "{")).exits(2);
    convert("json", "oci", "/nowhere").exits(2);
}

#[test]
fn a_domain_of_libvirt_is_converted_and_what_it_cannot_become_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("domain.xml");
    let convert = |options: &[&str], to: &str, xml: &str| {
        fs::write(&path, xml).unwrap();
        let mut command = support::ringfence();
        command.args(options).args(["convert", "--from", "libvirt", "--to", to]).arg(&path);
        finish(command)
    };
    let domain = "<domain><vcpu cpuset='0-3,^2'>2</vcpu>
        <cputune><shares>1024</shares><quota>25000</quota><emulator_quota>50000</emulator_quota></cputune>
        <memtune><hard_limit>65536</hard_limit><soft_limit unit='M'>32</soft_limit></memtune>
        <blkiotune><weight>200</weight><device><path>/dev/null</path><weight>100</weight></device></blkiotune>
        </domain>";
    let done = convert(&["-o", "json"], "oci", domain).exits(0);
    let cpus = json!({"shares": 1024, "quota": 50000, "cpus": "0-1,3"});
    let memory = json!({"limit": 64 * MIB, "reservation": 32 * MIB});
    assert_eq!(done.json(), json!({"cpu": cpus, "memory": memory, "blockIO": {"weight": 200}}));
    for said in ["cputune.emulator_quota", "--overhead-cpus 0.5", "/dev/null"] {
        assert!(done.stderr.contains(said), "{}", done.stderr);
    }
    let unified = convert(&["-o", "json"], "v2", domain).exits(0).json()["unified"].clone();
    assert_eq!((&unified["memory.high"], &unified["cpu.max"]), (&json!("33554432"), &json!("50000 100000")));
    let lines = convert(&[], "systemd", domain).exits(0).stdout;
    for line in
        ["MemoryHigh=33554432", "MemoryMax=67108864", "CPUQuotaPerSecUSec=500000", "AllowedCPUs=0-1,3"]
    {
        assert!(lines.lines().any(|found| found == line), "{lines}");
    }
    assert_eq!(
        convert(&["-o", "json", "--strict"], "v2", domain).exits(1).error()["setting"],
        "cputune.emulator_quota"
    );
    // The scale of shares is that of the domain's host, which is asked for.
    assert!(convert(&[], "v2", domain).exits(0).stderr.contains("cputune.shares = 1024"));
    let of_v2 = "<domain><vcpu placement='auto'>1</vcpu><cputune><shares>200</shares><quota>-1</quota>
        <global_quota>150000</global_quota></cputune></domain>";
    let on = |host: &str, to: &str, options: &[&str]| {
        fs::write(&path, of_v2).unwrap();
        let mut command = support::ringfence();
        command.args(["-o", "json"]).args(options);
        command.args(["convert", "--from", "libvirt", "--libvirt-host", host, "--to", to]).arg(&path);
        finish(command)
    };
    let done = on("v2", "v2", &[]).exits(0);
    let unified = &done.json()["unified"];
    assert_eq!((&unified["cpu.weight"], &unified["cpu.max"]), (&json!("200"), &json!("150000 100000")));
    assert!(done.stderr.contains("vcpu.placement") && !done.stderr.contains("shares"), "{}", done.stderr);
    assert_eq!(on("v2", "oci", &[]).exits(0).json()["cpu"], json!({"shares": 2048, "quota": 150_000}));
    assert_eq!(on("v1", "oci", &[]).exits(0).json()["cpu"]["shares"], 200);
    assert_eq!(on("v2", "oci", &["--strict"]).exits(1).error()["setting"], "vcpu.placement");
    on("v3", "oci", &[]).exits(2);

    let bad =
        convert(&["-o", "json"], "v2", "<domain><memtune><hard_limit>x</hard_limit></memtune></domain>")
            .exits(2);
    assert_eq!(bad.error()["setting"], "memtune.hard_limit");
    assert!(bad.error()["path"].as_str().unwrap().ends_with("domain.xml"));
    let bomb = convert(&[], "v2", "<!DOCTYPE d [<!ENTITY a 'aa'>]><domain>&a;</domain>").exits(2);
    assert!(bomb.stderr.contains("not the XML of a domain"), "{}", bomb.stderr);
}
