//! Plans for other hosts, which are the same on every machine.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees only #[test] functions.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::planned::{plan_as_nobody, public, resources, steps, writes};
use crate::support::{self, Sandbox, finish};
use serde_json::{Value, json};

testbed! {
    // The same on every machine.
    modes: "host plain-v2";
    gate: "host";
}

/// Where in the plan something is written to a file of this name below the sandbox.
#[track_caller]
fn position(sandbox: &Sandbox, plan: &Value, name: &str) -> usize {
    let wanted = format!("{}/{name}", sandbox.id);
    let found = steps(plan).iter().position(|step| step["path"].as_str().unwrap().ends_with(&wanted));
    found.unwrap_or_else(|| panic!("no {name} in {plan:#}"))
}

#[test]
fn a_quota_brings_a_burst_that_the_plan_shows_and_an_option_switches_off() {
    let sandbox = Sandbox::named("burst");
    for (host, file) in [("v1", "cpu.cfs_burst_us"), ("v2", "cpu.max.burst")] {
        let burst = |options: &[&str]| -> Option<String> {
            let plan = sandbox.json("plan", &[&["--host", host], options].concat());
            let written = steps(&plan).iter().find(|step| step["path"].as_str().unwrap().ends_with(file));
            written.map(|step| {
                assert_eq!(step["setting"], "cpu.burst");
                step["value"].as_str().unwrap().to_owned()
            })
        };
        assert_eq!(burst(&["--cpus", "2"]).as_deref(), Some("200000"));
        assert_eq!(burst(&["--cpus", "2", "--profile", "qemu"]).as_deref(), Some("200000"));
        assert_eq!(burst(&["--cpus", "2", "--cpu-burst", "0"]).as_deref(), Some("0"));
        assert_eq!(burst(&["--cpus", "2", "--cpu-burst", "7"]).as_deref(), Some("7"));
        assert_eq!(burst(&["--cpus", "2", "--profile", "none"]), None);
        assert_eq!(burst(&["--cpus", "max"]), None);
        assert_eq!(burst(&[]), None);
    }
}

#[test]
fn an_empty_slice_is_that_of_the_manager_and_a_dash_is_the_root_slice() {
    let sandbox = Sandbox::named("slices");
    let spec = sandbox.scratch.path().join("config.json");
    let unit = format!("p-{}.scope", sandbox.id);
    for (host, slice, found, directory) in [
        ("v2+systemd", "", "system.slice", "system.slice/"),
        ("v1+systemd", "", "system.slice", "system.slice/"),
        ("v2+systemd", "-", "-.slice", ""),
        ("v2+systemd", "-.slice", "-.slice", ""),
    ] {
        let path = format!("{slice}:p:{}", sandbox.id);
        fs::write(&spec, json!({"linux": {"cgroupsPath": path}}).to_string()).unwrap();
        let given = [format!("--path={path}"), format!("--spec={}", spec.display())];
        for option in &given {
            let plan = sandbox.json("plan", &["--driver", "systemd", "--host", host, option]);
            let start = steps(&plan).iter().find(|step| step["op"] == "start_unit").unwrap();
            assert_eq!((&start["unit"], &start["slice"]), (&json!(unit), &json!(found)), "{host} {path}");
            // What has no property is written below the unit's cgroup.
            let end = format!("/{directory}{unit}");
            let inside = steps(&plan).iter().filter_map(|step| step["path"].as_str());
            assert!(inside.filter(|path| path.contains(&unit)).all(|path| path.contains(&end)), "{plan:#}");
        }
    }
}

#[test]
fn every_resource_of_a_document_is_a_step_or_a_line_of_the_report() {
    let sandbox = Sandbox::named("document");
    let document = json!({
        "blockIO": {
            "weight": 100, "leafWeight": 20, "weightDevice": [{"major": 8, "minor": 0, "weight": 200}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 100}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
    });
    let file = public(&sandbox, "document.json", document.to_string());
    let planned = |host: &str| {
        sandbox.json("plan", &["--host", host, "--resources", file.to_str().unwrap(), "--profile", "none"])
    };
    let written = |plan: &Value| -> BTreeSet<String> {
        let own = format!("/{}/", sandbox.id);
        let all = writes(plan).into_iter().filter(|(path, _)| path.to_str().unwrap().contains(&own));
        let named = all.map(|(path, value)| (path.file_name().unwrap().to_str().unwrap().to_owned(), value));
        let others = named.filter(|(name, _)| !name.starts_with("devices.") && !name.starts_with("cpuset."));
        others.map(|(name, value)| format!("{name} {value}")).collect()
    };
    let reported = |plan: &Value| -> Vec<String> {
        let lines = plan["report"].as_array().unwrap().iter();
        lines.map(|line| line["setting"].as_str().unwrap().to_owned()).collect()
    };
    let set = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect::<BTreeSet<_>>();
    let v1 = set(&[
        "blkio.weight 100",
        "blkio.leaf_weight 20",
        "blkio.weight_device 8:0 200",
        "blkio.throttle.read_bps_device 8:0 1048576",
        "blkio.throttle.write_iops_device 8:0 100",
        "hugetlb.2MB.limit_in_bytes 4194304",
        "hugetlb.2MB.rsvd.limit_in_bytes 4194304",
        "net_cls.classid 1048577",
        "net_prio.ifpriomap eth0 5",
        "rdma.max mlx5_1 hca_handle=3 hca_object=10000",
    ]);
    for host in ["v1", "hybrid"] {
        let plan = planned(host);
        assert_eq!((written(&plan), reported(&plan)), (v1.clone(), Vec::new()), "{host}");
    }
    let plan = planned("v2");
    let v2 = set(&[
        "io.weight 910",
        "io.weight 8:0 1920",
        "io.max 8:0 rbps=1048576 wbps=max riops=max wiops=100",
        "hugetlb.2MB.max 4194304",
        "hugetlb.2MB.rsvd.max 4194304",
        "rdma.max mlx5_1 hca_handle=3 hca_object=10000",
    ]);
    assert_eq!(written(&plan), v2);
    assert_eq!(reported(&plan), ["blockIO.leafWeight", "network.classID", "network.priorities.eth0"]);
    let strict = sandbox.attempt_json(
        "plan",
        &["--strict", "--host", "v2", "--resources", file.to_str().unwrap(), "--profile", "none"],
    );
    let error = strict.exits(1).error();
    assert_eq!(
        (error["kind"].as_str(), error["setting"].as_str()),
        (Some("unsupported"), Some("blockIO.leafWeight"))
    );
}

#[test]
fn every_kind_of_host_can_be_planned_for_by_a_user_without_rights() {
    let sandbox = Sandbox::named("hosts");
    for host in ["v1", "hybrid", "v2"] {
        let plan = plan_as_nobody(&sandbox, host, &resources());
        assert_eq!(plan["host"]["mode"], host);
        assert_eq!(plan["report"], json!([]), "{host}");
        for step in steps(&plan) {
            let path = step["path"].as_str().unwrap();
            assert!(path.starts_with("/sys/fs/cgroup"), "{host}: {step}");
            assert!(!path.contains("//"), "{host}: {step}");
        }
        sandbox.is_gone();
    }
}

#[test]
fn v1_steps_come_in_the_order_that_the_kernel_needs() {
    let sandbox = Sandbox::named("v1");
    let mut wanted = resources();
    wanted["memory"] = json!({"limit": 64 << 20, "swap": 64 << 20});
    for host in ["v1", "hybrid"] {
        let plan = plan_as_nobody(&sandbox, host, &wanted);
        let at = |name| position(&sandbox, &plan, name);
        // Memory and swap start without limits: what is smaller goes first.
        assert!(at("memory.limit_in_bytes") < at("memory.memsw.limit_in_bytes"), "{host}: {plan:#}");
        assert!(at("cpuset.cpus") < at("memory.limit_in_bytes"), "{host}");
        // The parent's cpuset is filled before ours can be.
        let parent = steps(&plan)
            .iter()
            .position(|step| step["path"] == "/sys/fs/cgroup/cpuset/ringfence/cpuset.cpus");
        assert!(parent.unwrap() < at("cpuset.cpus"), "{host}: {plan:#}");
        // One rule per write: the kernel drops what is behind the first.
        for (path, value) in writes(&plan) {
            assert_eq!(value.trim_end().lines().count(), 1, "{path:?}");
        }
        let denied = position(&sandbox, &plan, "devices.deny");
        assert!(denied < at("devices.allow"), "{host}: {plan:#}");
        assert_eq!(steps(&plan)[denied]["value"].as_str().unwrap().trim().chars().next(), Some('a'));
        // Each directory is made before anything is written into it.
        let mut made = BTreeSet::new();
        for step in steps(&plan) {
            let path = Path::new(step["path"].as_str().unwrap());
            match step["op"].as_str().unwrap() {
                "make_dir" => _ = made.insert(path.to_owned()),
                "write" => assert!(made.contains(path.parent().unwrap()), "{host}: {step}"),
                _ => {}
            }
        }
        let has_v2 = steps(&plan)
            .iter()
            .any(|step| step["path"].as_str().unwrap().starts_with("/sys/fs/cgroup/unified/"));
        assert_eq!(has_v2, host == "hybrid");
    }
}

#[test]
fn v2_steps_enable_the_controllers_that_are_needed_and_no_others() {
    let sandbox = Sandbox::named("v2");
    let mut wanted = resources();
    wanted["memory"] = json!({"limit": 64 << 20, "swap": 96 << 20});
    let plan = plan_as_nobody(&sandbox, "v2", &wanted);
    let enabled: Vec<(&str, BTreeSet<&str>)> = steps(&plan)
        .iter()
        .filter(|step| step["op"] == "enable_controllers")
        .map(|step| {
            let controllers = step["controllers"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
            (step["path"].as_str().unwrap(), controllers.collect())
        })
        .collect();
    let expected = BTreeSet::from(["cpu", "cpuset", "io", "memory", "pids"]);
    assert_eq!(
        enabled,
        [
            ("/sys/fs/cgroup/cgroup.subtree_control", expected.clone()),
            ("/sys/fs/cgroup/ringfence/cgroup.subtree_control", expected),
        ]
    );
    let at = |name| position(&sandbox, &plan, name);
    let made = steps(&plan).iter().rposition(|step| step["op"] == "make_dir").unwrap();
    for (name, value) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "33554432"),
        ("cpu.weight", "59"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "100"),
    ] {
        assert_eq!(steps(&plan)[at(name)]["value"], value, "{name}");
        assert!(at(name) > made, "{name} before its directory");
    }
    let filter = steps(&plan).iter().find(|step| step["op"] == "device_filter").unwrap();
    assert_eq!(filter["default"], "deny");
    let exceptions = filter["exceptions"].as_array().unwrap();
    let of = |minor| {
        exceptions.iter().find(|one| one["major"] == 1 && one["minor"] == minor).map(|one| &one["access"])
    };
    assert_eq!(of(11), Some(&json!("rw")));
    assert_eq!(of(5), None, "the caller took /dev/zero away");
    assert_eq!(of(3), Some(&json!("rwm")));

    wanted["cpu"] = json!({});
    let plan = plan_as_nobody(&sandbox, "v2", &wanted);
    let enabled = steps(&plan).iter().find(|step| step["op"] == "enable_controllers").unwrap();
    assert!(
        !enabled["controllers"].as_array().unwrap().contains(&json!("cpuset")),
        "nobody asked for it: {enabled}"
    );
}

#[test]
fn what_a_host_cannot_do_is_in_the_report() {
    let sandbox = Sandbox::named("report");
    let wanted =
        json!({"memory": {"limit": 64 << 20, "swappiness": 60}, "unified": {"memory.high": "1048576"}});
    let plan = plan_as_nobody(&sandbox, "v2", &wanted);
    let lines = plan["report"].as_array().unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["setting"], &lines[0]["value"]), (&json!("memory.swappiness"), &json!("60")));
    assert!(!lines[0]["why"].as_str().unwrap().is_empty());

    // Strict: an error instead.
    let file = public(&sandbox, "resources.json", wanted.to_string());
    let strict = |options: &[&str]| {
        let plan = ["--strict", "-o", "json", "plan", &sandbox.id, "--host", "v2"];
        finish(sandbox.ringfence(&[&plan, options].concat()))
    };
    let error = strict(&["--profile", "none", "--resources", file.to_str().unwrap()]).exits(1).error();
    assert_eq!((&error["kind"], &error["setting"]), (&json!("unsupported"), &json!("memory.swappiness")));
    // A device that the profile would have, and that the host has not, is only worth knowing.
    strict(&["--profile", "default"]).exits(0);
}

#[test]
fn a_host_that_is_none_is_named_with_those_that_there_are() {
    let sandbox = Sandbox::named("no-host");
    let error = sandbox.attempt_json("plan", &["--host", "v3"]).exits(2).error();
    assert_eq!(error["setting"], "host");
    assert!(error["message"].as_str().unwrap().contains("hybrid"), "{error}");
}

#[test]
fn a_plan_for_another_host_takes_no_numbers_from_this_machine() {
    let planned = |rule: &str| {
        let mut command = support::ringfence();
        command.args(["-o", "json", "plan", "x", "--host", "v2", "--device-allow", rule]);
        finish(command)
    };
    // Known of the standard host, and the same on every Linux.
    planned("/dev/kvm").exits(0);
    planned("/dev/null:r").exits(0);
    // There is one here, with other numbers elsewhere.
    let error = planned("/dev/kmsg").exits(2).error();
    assert_eq!((&error["setting"], &error["value"]), (&"devices".into(), &"/dev/kmsg".into()), "{error}");
}

#[test]
fn on_a_host_with_systemd_everything_is_in_the_call_that_starts_the_unit() {
    let sandbox = Sandbox::named("unit");
    let planned = |host: &str| {
        sandbox.json("plan", &["--driver", "auto", "--memory", "256M", "--pids", "10", "--host", host])
    };
    for (host, operations) in
        // A VM is killed as a whole when it runs out of memory: OOMPolicy would have systemd kill what holds the scope, too.
        [
            ("v2+systemd", &["start_unit", "device_filter", "write"][..]),
            ("v1+systemd", &["start_unit"]),
        ]
    {
        let plan = planned(host);
        assert_eq!(plan["driver"], "systemd");
        let steps = plan["steps"].as_array().unwrap();
        let first = steps.iter().position(|step| step["op"] == "start_unit").unwrap();
        let told: Vec<_> = steps[first..].iter().map(|step| step["op"].as_str().unwrap()).collect();
        assert_eq!(told, operations, "{plan}");
        if let Some(write) = steps[first..].iter().find(|step| step["op"] == "write") {
            assert_eq!(write["setting"], "unified.memory.oom.group", "{write}");
        }
        let start = &steps[first];
        assert_eq!(start["unit"], format!("ringfence-{}.scope", sandbox.id));
        assert_eq!(start["slice"], "ringfence.slice");
        let properties = &start["properties"];
        assert_eq!((&properties["MemoryMax"], &properties["TasksMax"]), (&json!(256 << 20), &json!(10)));
        assert_eq!(properties["Delegate"], true);
        // Before it, what systemd does not make: on v1, the other hierarchies.
        let own = steps[..first].iter().map(|step| step["path"].as_str().unwrap());
        let managed = ["/cpu/", "/cpuacct/", "/memory/", "/pids/", "/blkio/", "/devices/", "/systemd/"];
        assert!(own.into_iter().all(|path| !managed.iter().any(|name| path.contains(name))), "{plan}");
    }
    assert_eq!(planned("v2")["driver"], "cgroupfs");
}
