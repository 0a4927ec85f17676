//! What holds for every plan, seen from its JSON alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use ringfence::{
    Controller, Host, Plan, Profile, Report, Resources, Sandbox, SandboxConfig, Unsupported, Version,
};
use serde_json::Value;

use crate::settings;

/// Plans the sandbox `vm1` with these resources on a host, strictly and not.
pub fn are_sound(host: &Host, resources: &Resources, profile: Profile, unread: Report) {
    let path = "vm1".parse().expect("a path");
    let config = SandboxConfig::new(path).resources(resources.clone()).profile(profile).unread(unread);
    let strict = Sandbox::plan(host, &config.clone().unsupported(Unsupported::Refuse));
    let plan = match Sandbox::plan(host, &config) {
        Ok(plan) => plan,
        Err(error) => {
            let strictly = strict.expect_err("what is refused is refused strictly too");
            assert!(!error.message().is_empty() && !strictly.message().is_empty());
            return;
        }
    };
    let unsupported = plan.report().unsupported().next();
    match (strict, unsupported) {
        (Ok(strict), None) => assert_eq!(json(&strict), json(&plan)),
        (Err(error), Some(_)) => {
            let named = |line: &ringfence::ReportLine| {
                error.setting() == Some(&*line.setting) && error.value() == Some(&*line.value)
            };
            assert!(plan.report().unsupported().any(named), "{error} is none of\n{}", plan.report());
        }
        (Ok(_), Some(line)) => panic!("strict mode minds not: {line:?}"),
        (Err(error), None) => panic!("only strict mode minds: {error}"),
    }
    let again = Sandbox::plan(host, &config).expect("as before");
    assert_eq!(json(&again), json(&plan), "the same twice");
    assert!(!plan.to_string().is_empty());
    steps_are_sound(host, &plan);
    nothing_is_dropped(resources, &plan);
}

/// What was converted to v2's files comes to the same files, and has nothing that v2 lacks.
pub fn is_its_own_conversion(v2: &Resources) {
    let (mut again, report) = v2.to_v2().unwrap_or_else(|error| panic!("{v2:?}: {error}"));
    // The greatest numbers of bytes become `max`, which lifts swap too when it is read.
    if v2.unified.get("memory.max").is_some_and(|limit| limit == "max")
        && !v2.unified.contains_key("memory.swap.max")
    {
        again.unified.remove("memory.swap.max");
    }
    assert!(again == *v2 && report.unsupported().count() == 0, "{v2:?} is not {again:?}\n{report}");
}

fn json(plan: &Plan) -> Value {
    serde_json::to_value(plan).expect("JSON")
}

/// The path of each step is below the root of a hierarchy, and says so plainly.
pub fn steps_are_below_the_hierarchies(host: &Host, plan: &Plan) {
    for step in json(plan)["steps"].as_array().expect("a list of steps") {
        let path = Path::new(step["path"].as_str().expect("a path"));
        let mut roots = host.hierarchies.iter().map(|hierarchy| &hierarchy.root);
        let below = roots.find_map(|root| path.strip_prefix(root).ok());
        let below = below.unwrap_or_else(|| panic!("{path:?} is in no hierarchy"));
        assert!(below.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    }
}

/// Each step is below a hierarchy, in a directory that was made, and has its controller enabled.
fn steps_are_sound(host: &Host, plan: &Plan) {
    let json = json(plan);
    let steps = json["steps"].as_array().expect("a list of steps");
    assert_eq!(steps.len(), plan.steps().len());
    let mut made = BTreeSet::new();
    let mut enabled: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    for step in steps {
        let path = Path::new(step["path"].as_str().expect("a path"));
        let hierarchies: Vec<_> =
            host.hierarchies.iter().filter(|hierarchy| path.starts_with(&hierarchy.root)).collect();
        assert!(!hierarchies.is_empty(), "{path:?} is in no hierarchy");
        let below = hierarchies.iter().filter_map(|hierarchy| path.strip_prefix(&hierarchy.root).ok());
        for below in below {
            assert!(below.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
        }
        let directory = path.parent().expect("a file or directory below the root").to_owned();
        let known =
            made.contains(&directory) || hierarchies.iter().any(|hierarchy| hierarchy.root == directory);
        assert!(known, "{path:?}: the directory was not made");
        match step["op"].as_str().expect("an operation") {
            "make_dir" => {
                assert!(made.insert(path.to_owned()) || hierarchies.len() > 1, "{path:?} is made twice");
            }
            "enable_controllers" => {
                let names = step["controllers"].as_array().expect("a list").iter();
                enabled.entry(directory).or_default().extend(names.filter_map(Value::as_str));
            }
            "write" => {
                let file = path.file_name().and_then(|name| name.to_str()).expect("a file");
                let owner = file.split('.').next().and_then(Controller::from_v2);
                let only_v2 = hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V2);
                if let Some(controller) = owner.filter(|_| only_v2) {
                    let above = directory.parent().expect("a cgroup below the root");
                    let there = enabled.get(above).is_some_and(|names| names.contains(controller.as_str()));
                    assert!(there, "{path:?}: the controller is not enabled");
                }
            }
            _ => {}
        }
    }
}

/// Each setting that is given is in a step or in the report.
pub fn nothing_is_dropped(resources: &Resources, plan: &Plan) {
    let json = json(plan);
    let steps = json["steps"].as_array().expect("a list").iter().filter_map(|step| step["setting"].as_str());
    let said: Vec<&str> =
        steps.chain(plan.report().lines().iter().map(|line| line.setting.as_ref())).collect();
    // A step can be about all of a device.
    let is_said = |setting: &str| {
        let about = |said: &&str| {
            setting.strip_prefix(*said).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        said.iter().any(about)
    };
    let is_zero = |file: &str| resources.unified.get(file).is_some_and(|value| value.trim().parse() == Ok(0));
    for setting in settings(resources).into_keys() {
        let beside: &[&str] = match setting.as_str() {
            // How to write, or what is so anyway.
            "memory.checkBeforeUpdate" => continue,
            "memory.useHierarchy" if resources.memory.use_hierarchy == Some(true) => continue,
            "memory.disableOOMKiller" if resources.memory.disable_oom_killer == Some(false) => continue,
            "memory.swap" if resources.memory.swap == Some(ringfence::Limit::Max) => continue,
            "memory.kernel" if resources.memory.kernel == Some(ringfence::Limit::Max) => continue,
            "memory.kernelTCP" if resources.memory.kernel_tcp == Some(ringfence::Limit::Max) => continue,
            "cpu.realtimeRuntime" | "cpu.realtimePeriod" if resources.cpu.realtime_runtime == Some(0) => {
                continue;
            }
            "network.classID" if resources.network.class_id == Some(0) => continue,
            "cpu.burst" if resources.cpu.burst == Some(0) => continue,
            "cpu.idle" if resources.cpu.idle == Some(0) => continue,
            "unified.cpu.idle" if is_zero("cpu.idle") => continue,
            "unified.cpu.max.burst" if is_zero("cpu.max.burst") => continue,
            // Where the host lacks what they are about, the report names OCI's fields.
            "unified.cpu.idle" => &["cpu.idle"],
            "unified.cpu.max" => &["cpu.quota"],
            "unified.cpu.max.burst" => &["cpu.burst"],
            // Two settings of one file.
            "cpu.shares" => &["cpu.weight"],
            "cpu.weight" => &["cpu.shares"],
            "cpu.period" => &["cpu.quota"],
            _ => &[],
        };
        let derived_file_is_given = || {
            let controllers: &[&str] = match setting.split('.').next() {
                Some("memory") => &["memory"],
                Some("cpu") => &["cpu", "cpuset"],
                Some("pids") => &["pids"],
                Some("blockIO") => &["io"],
                Some("hugepageLimits") => &["hugetlb"],
                Some("rdma") => &["rdma"],
                _ => &[],
            };
            let owner = |key: &String| controllers.contains(&key.split('.').next().unwrap_or_default());
            resources.unified.keys().any(owner)
        };
        // v2 writes all throttles of a device at once.
        let throttle = setting.strip_prefix("blockIO.throttle").and_then(|rest| rest.split_once('.'));
        let same_device = throttle.is_some_and(|(_, device)| {
            let end = format!(".{device}");
            said.iter().any(|said| said.starts_with("blockIO.throttle") && said.ends_with(&end))
        });
        let is_kept = is_said(&setting) || beside.iter().any(|other| is_said(other));
        let is_kept = is_kept || same_device || derived_file_is_given();
        assert!(is_kept, "{setting} is neither in a step nor in the report:\n{plan}");
    }
}
