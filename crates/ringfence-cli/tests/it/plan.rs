//! The plan is what happens, step by step.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::planned::{plan_as_nobody_by, public, resources, steps, writes};
use crate::support::{Sandbox, by_systemd, driver, finish, hold, is_on_v1, mode, systemd};
use serde_json::{Value, json};

testbed! {
    drivers: "cgroupfs systemd";
}

/// A property as a plan shows it, out of what busctl prints of one.
fn as_planned(found: &Value) -> Value {
    let data = &found["data"];
    let entries = || data.as_array().unwrap().iter();
    match found["type"].as_str().unwrap() {
        "t" if *data == u64::MAX => json!("max"),
        "ay" => {
            let bytes = entries().enumerate();
            let set: BTreeSet<u64> = bytes
                .flat_map(|(position, byte)| {
                    let byte = byte.as_u64().unwrap();
                    (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| position as u64 * 8 + bit)
                })
                .collect();
            json!(format!("{set:?}"))
        }
        "a(st)" | "a(ss)" => {
            entries().map(|entry| (entry[0].as_str().unwrap().to_owned(), entry[1].clone())).collect()
        }
        _ => data.clone(),
    }
}

/// A property that `GetAll` leaves out and `Get` returns. systemd >= 258 hides deprecated properties in this way:
/// `CPUAccounting`, which it accepts, and which is always on.
#[track_caller]
fn hidden_property(object: &str, name: &str) -> Value {
    let mut call = Command::new("busctl");
    call.args(["--json=short", "get-property", "org.freedesktop.systemd1"]);
    call.arg(format!("/org/freedesktop/systemd1/unit/{object}"));
    call.args(["org.freedesktop.systemd1.Scope", name]);
    finish(call).exits(0).json()
}

/// Whether the unit has every property that a step gives it.
#[track_caller]
fn assert_told(sandbox: &Sandbox, step: &Value) {
    let unit = systemd::unit(sandbox);
    assert_eq!(step["unit"], unit);
    let object = unit.replace('-', "_2d").replace('.', "_2e");
    let mut call = Command::new("busctl");
    call.args(["--json=short", "call", "org.freedesktop.systemd1"]);
    call.arg(format!("/org/freedesktop/systemd1/unit/{object}"));
    call.args(["org.freedesktop.DBus.Properties", "GetAll", "s", ""]);
    let unit = finish(call).exits(0).json();
    for (name, planned) in step["properties"].as_object().unwrap() {
        let found = match &unit["data"][0][name] {
            Value::Null => as_planned(&hidden_property(&object, name)),
            found => as_planned(found),
        };
        let planned = match name.as_str() {
            "AllowedCPUs" | "AllowedMemoryNodes" => json!(normal("cpuset.", planned.as_str().unwrap())),
            // Behind it stands the mark of this creation.
            "Description" => {
                let (found, planned) = (found.as_str().unwrap(), planned.as_str().unwrap());
                assert!(found.starts_with(&format!("{planned} (")), "{found}");
                continue;
            }
            _ => planned.clone(),
        };
        assert_eq!(found, planned, "{name} of {step}");
    }
}

/// A value as the kernel reads it back: without rounding, names for "none", and ways to write a set.
fn normal(file: &str, value: &str) -> String {
    let value = value.trim();
    if file.starts_with("cpuset.") {
        let numbers = value.split(',').filter(|part| !part.is_empty()).flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<u32>().unwrap()..=last.parse().unwrap()
        });
        return format!("{:?}", numbers.collect::<BTreeSet<_>>());
    }
    match value.parse::<i64>() {
        Ok(-1) => "max".to_owned(),
        // v1's "no limit" is the greatest number of pages.
        Ok(bytes) if file.starts_with("memory.") && bytes >= i64::MAX - 0xffff => "max".to_owned(),
        Ok(bytes) if file.starts_with("memory.") => (bytes / 4096 * 4096).to_string(),
        _ => value.to_owned(),
    }
}

#[test]
fn what_is_planned_for_this_host_is_what_create_writes() {
    let sandbox = Sandbox::named("live");
    let file = public(&sandbox, "resources.json", resources().to_string());
    let options = ["--profile", "none", "--resources", file.to_str().unwrap()];
    let plan = sandbox.json("plan", &options);
    assert_eq!(plan["host"]["mode"], mode());
    assert_eq!(plan["driver"], driver());
    assert!(sandbox.directories().is_empty(), "planning does nothing");
    assert!(!sandbox.state_dir().exists());

    let created = sandbox.json("create", &[hold(), &options].concat());
    assert_eq!(created["report"], plan["report"]);
    let starts: Vec<_> = steps(&plan).iter().filter(|step| step["op"] == "start_unit").collect();
    assert_eq!(starts.len(), usize::from(by_systemd()), "{plan:#}");
    let limit = if is_on_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    for start in &starts {
        assert_told(&sandbox, start);
        assert_eq!(fs::read_to_string(sandbox.dir("memory").join(limit)).unwrap().trim(), "67108864");
    }
    let mut last = BTreeMap::new();
    for (path, value) in writes(&plan) {
        assert!(path.exists(), "{path:?} was not created");
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("devices.") && path.parent().unwrap().ends_with(&sandbox.directory) {
            last.insert(path, normal(&name, &value));
        }
    }
    // What a unit's properties have no word for is little.
    assert!(by_systemd() || last.len() >= 6, "{last:?}");
    for (path, planned) in last {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(normal(name, &fs::read_to_string(&path).unwrap()), planned, "{path:?}");
    }
    for step in steps(&plan).iter().filter(|step| step["op"] == "make_dir") {
        assert!(Path::new(step["path"].as_str().unwrap()).is_dir(), "{step}");
    }
    for step in steps(&plan).iter().filter(|step| step["op"] == "enable_controllers") {
        let enabled = fs::read_to_string(step["path"].as_str().unwrap()).unwrap();
        for controller in step["controllers"].as_array().unwrap() {
            assert!(
                enabled.split_whitespace().any(|one| one == controller),
                "{controller} in {enabled}: {step}"
            );
        }
    }

    let live = sandbox.json("devices ls", &[]);
    if let Some(filter) = steps(&plan).iter().find(|step| step["op"] == "device_filter") {
        assert_eq!((&live["default"], &live["exceptions"]), (&filter["default"], &filter["exceptions"]));
    } else {
        // v1: the kernel's list is what the steps allow, in its own order.
        let allowed = writes(&plan).into_iter().filter(|(path, _)| path.ends_with("devices.allow"));
        let mut planned: BTreeSet<String> = allowed.map(|(_, rule)| rule.trim().to_owned()).collect();
        let told = starts.iter().flat_map(|start| start["properties"]["DeviceAllow"].as_object().unwrap());
        planned.extend(told.map(|(device, access)| {
            let major = device.strip_prefix("char-").map(|major| format!("{major}:*"));
            let number = major.unwrap_or_else(|| device.strip_prefix("/dev/char/").unwrap().to_owned());
            format!("c {number} {}", access.as_str().unwrap())
        }));
        let kernel: BTreeSet<String> =
            sandbox.file("devices.list").unwrap().lines().map(str::to_owned).collect();
        assert_eq!(kernel, planned);
    }
}

#[test]
fn a_change_of_a_live_sandbox_is_planned_against_what_is_there() {
    let sandbox = Sandbox::named("change");
    sandbox.create(&["--memory", "64M", "--cpus", "0.5", "--pids", "10"]);
    let plan = sandbox.json("plan", &["--memory", "128M", "--pids", "20"]);
    let files: Vec<_> = writes(&plan).into_iter().map(|(path, _)| path).collect();
    assert!(files.iter().all(|path| path.exists()), "{files:?}");
    assert!(
        !files.iter().any(|path| path.file_name().unwrap().to_str().unwrap().starts_with("cpu.")),
        "{files:?}"
    );
    let told: Vec<_> = steps(&plan).iter().filter(|step| step["op"] == "set_properties").collect();
    if by_systemd() {
        assert_eq!(
            (told.len(), &told[0]["properties"]),
            (1, &json!({"MemoryMax": 128 << 20, "TasksMax": 20}))
        );
    } else {
        assert!(!files.is_empty() && told.is_empty(), "{plan:#}");
    }
    assert_eq!(sandbox.file("pids.max").unwrap(), "10", "only planned");
    sandbox.does("set", &["--memory", "128M", "--pids", "20"]);
    assert_eq!(sandbox.file("pids.max").unwrap(), "20");
    told.iter().for_each(|step| assert_told(&sandbox, step));
    for (path, value) in writes(&plan) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(normal(name, &fs::read_to_string(&path).unwrap()), normal(name, &value), "{path:?}");
    }
}

#[test]
fn the_features_of_one_machine_are_the_host_of_a_plan_on_another() {
    let sandbox = Sandbox::named("features");
    let features = finish(sandbox.ringfence(&["-o", "json", "features"])).exits(0).stdout;
    let host = public(&sandbox, "host.json", features);
    let file = public(&sandbox, "resources.json", resources().to_string());
    let here = sandbox.json("plan", &["--profile", "none", "--resources", file.to_str().unwrap()]);
    let there = plan_as_nobody_by(driver(), &sandbox, host.to_str().unwrap(), &resources());
    assert_eq!(here["steps"], there["steps"]);
    assert_eq!(here["report"], there["report"]);
}
