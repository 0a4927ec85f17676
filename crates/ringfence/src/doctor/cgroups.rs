//! What the cgroups of this host mean for sandboxes.

use std::path::{Path, PathBuf};

use super::{Base, Facts, Finding, names};
use crate::host::{Controller, Host, Mode, Version};

/// What limits of a virtual machine are made with.
const NEEDED: [Controller; 5] =
    [Controller::Cpu, Controller::Cpuset, Controller::Memory, Controller::Io, Controller::Pids];

/// Removed cgroups of which so many are left cost memory that one notices.
const MANY_DYING: u64 = 1000;

/// Levels that a sandbox needs below its parent: `ringfence/ID/PART/NUMBER`.
const LEVELS: u64 = 4;

impl Facts {
    pub(super) fn about_cgroups(&self, found: &mut Vec<Finding>) {
        let host = match &self.host {
            Ok(host) => host,
            Err(why) => {
                let advice = "mount -t cgroup2 none /sys/fs/cgroup";
                found.push(Finding::unusable("cgroups", why.clone()).advise(advice));
                return;
            }
        };
        found.push(mode(host));
        found.push(self.writable(host));
        found.push(self.controllers(host));
        if let Some(base) = self.base.as_ref().filter(|base| base.is_delegated || !host.rootless) {
            found.push(enabled(base));
        }
        if host.rootless {
            found.push(self.delegation(host));
        }
        if let Some((_, unified)) = host.unified() {
            found.push(self.mount_options(host.mode, &unified.root));
        }
        if let Some(base) = &self.base {
            found.push(ceilings(base));
            found.push(dying(base));
        }
        found.push(self.device_filters(host));
    }

    fn writable(&self, host: &Host) -> Finding {
        const CHECK: &str = "writable";
        if !self.read_only.is_empty() {
            let found = format!("mounted read-only: {}", paths(&self.read_only));
            let all: Vec<_> = self.read_only.iter().map(|path| path.display().to_string()).collect();
            // With `bind` it is this mount's own flag that is changed: v1 takes no other change of a mount.
            let command = match all.as_slice() {
                [only] => format!("mount -o remount,bind,rw {only}"),
                all => format!("for d in {}; do mount -o remount,bind,rw $d; done", all.join(" ")),
            };
            return Finding::unusable(CHECK, found)
                .advise(format!("{command} (in a container: have its engine mount cgroups read-write)"));
        }
        if host.rootless {
            // Where directories may be made is another finding.
            return Finding::good(CHECK, "no hierarchy is mounted read-only");
        }
        if self.refused.is_empty() {
            return Finding::good(CHECK, "cgroups can be made in every hierarchy");
        }
        Finding::unusable(CHECK, format!("directories may not be made in {}", paths(&self.refused)))
            .advise("run as root with CAP_DAC_OVERRIDE")
    }

    fn controllers(&self, host: &Host) -> Finding {
        const CHECK: &str = "controllers";
        let has = |controller: &Controller| host.hierarchy_of(*controller).is_some();
        let there: Vec<_> = Controller::ALL.into_iter().filter(has).collect();
        let missing: Vec<_> = NEEDED.into_iter().filter(|controller| !has(controller)).collect();
        if !missing.is_empty() {
            let found = match there.is_empty() {
                true => format!("none; {} missing", names(&missing)),
                false => format!("{}; {} missing", names(&there), names(&missing)),
            };
            let advice: Vec<_> = missing.iter().map(|controller| self.way_to(*controller, host)).collect();
            return Finding::limited(CHECK, found).advise(advice.join("; "));
        }
        let found = Finding::good(CHECK, names(&there));
        if host.mode == Mode::V1 && !has(&Controller::Devices) {
            return Finding::limited(CHECK, format!("{}; devices missing", names(&there)))
                .advise(self.way_to(Controller::Devices, host));
        }
        if host.mode == Mode::V1 && !has(&Controller::Freezer) {
            return Finding::limited(CHECK, format!("{}; freezer missing", names(&there)))
                .advise(self.way_to(Controller::Freezer, host));
        }
        if !has(&Controller::Hugetlb) {
            return Finding::note(CHECK, format!("{}; hugetlb missing", names(&there)))
                .advise(self.way_to(Controller::Hugetlb, host));
        }
        found
    }

    /// How to come by a controller that is missing.
    fn way_to(&self, controller: Controller, host: &Host) -> String {
        let v1_name = controller.v1_name();
        for disabled in [v1_name, controller.as_str()].map(|name| format!("cgroup_disable={name}")) {
            if self.has_parameter(&disabled) {
                return match controller {
                    Controller::Memory => {
                        format!("boot without {disabled}, or with cgroup_enable=memory behind it")
                    }
                    _ => format!("boot without {disabled}"),
                };
            }
        }
        let is_inside = self.base.as_ref().is_some_and(|base| !base.is_top);
        match host.mode {
            Mode::V2 if is_inside => {
                format!("outside, in each cgroup above: echo +{controller} > cgroup.subtree_control")
            }
            Mode::V2 => format!(
                "use a kernel with the {controller} controller, and unmount v1 hierarchies that hold it"
            ),
            Mode::V1 | Mode::Hybrid => {
                let directory = usual_place(host, v1_name);
                format!("mkdir {directory} && mount -t cgroup -o {v1_name} {v1_name} {directory}")
            }
        }
    }

    fn delegation(&self, host: &Host) -> Finding {
        const CHECK: &str = "delegation";
        let user = self.user.argument();
        let base = self.base.as_ref().filter(|base| base.is_delegated);
        if let Some(base) = base {
            let offered =
                host.unified().map(|(_, unified)| unified.controllers.as_slice()).unwrap_or_default();
            let withheld = |controller: &Controller| {
                offered.contains(controller) && !base.controllers.contains(controller)
            };
            let withheld: Vec<_> = NEEDED.into_iter().filter(withheld).collect();
            let found = format!("{}: {}", base.directory.display(), names(&base.controllers));
            if withheld.is_empty() {
                return Finding::good(CHECK, found);
            }
            return Finding::limited(CHECK, format!("{found}; {} withheld", names(&withheld))).advise(
                format!(
                    "as root, put [Service] and Delegate={} into \
                 /etc/systemd/system/user@.service.d/delegate.conf, then systemctl daemon-reload and \
                 systemctl restart user@{}.service",
                    names(&NEEDED),
                    self.user.id
                ),
            );
        }
        let advice = match (host.mode, host.systemd) {
            (Mode::V1 | Mode::Hybrid, true) => {
                "run as root, or boot with systemd.unified_cgroup_hierarchy=1: \
                 systemd delegates v2 alone to users"
                    .to_owned()
            }
            (Mode::V2, true) => format!(
                "systemd-run --user --scope -p Delegate=yes $SHELL (before that, as root: \
                 loginctl enable-linger {user})"
            ),
            (_, false) => format!(
                "as root, give {user} a cgroup that they are in: its directory, and the files that \
                 /sys/kernel/cgroup/delegate names"
            ),
        };
        Finding::limited(CHECK, format!("no cgroup is delegated to {user}: sandboxes have no limits"))
            .advise(advice)
    }

    fn mount_options(&self, mode: Mode, root: &Path) -> Finding {
        const CHECK: &str = "mount-options";
        let has = |option: &str| self.mount_options.iter().any(|given| given == option);
        let can = |option: &str| self.mount_features.iter().any(|feature| feature == option);
        let found = match self.mount_options.join(",") {
            options if options.is_empty() => "none".to_owned(),
            options => options,
        };
        // Only version 2 alone has the memory controller there.
        let wanted = [
            ("nsdelegate", true, "so that containers with a cgroup namespace cannot lift their own limits"),
            (
                "memory_recursiveprot",
                mode == Mode::V2,
                "so that memory.low and memory.min of a parent protect what is below",
            ),
        ];
        let lacking: Vec<_> =
            wanted.into_iter().filter(|(option, wanted, _)| *wanted && can(option) && !has(option)).collect();
        let remount = |options: &str| format!("mount -o remount,{options} {}", root.display());
        if !lacking.is_empty() {
            let options: Vec<_> = lacking.iter().map(|(option, ..)| *option).collect();
            let why: Vec<_> = lacking.iter().map(|(_, _, why)| *why).collect();
            return Finding::note(CHECK, format!("{found}; without {}", options.join(" and ")))
                .advise(format!("{}: {}", remount(&options.join(",")), why.join(" and ")));
        }
        let finding = Finding::good(CHECK, found);
        if !has("favordynmods") && can("favordynmods") {
            return finding.advise(format!(
                "only where joining cgroups and enabling controllers is slow with many sandboxes: {}; \
                 forks become slower",
                remount("favordynmods")
            ));
        }
        finding
    }

    fn device_filters(&self, host: &Host) -> Finding {
        const CHECK: &str = "devices";
        if host.hierarchy_of(Controller::Devices).is_some() {
            return match host.rootless {
                true => Finding::limited(CHECK, "v1: only root may write to devices.allow and devices.deny")
                    .advise("run as root"),
                false => Finding::good(CHECK, "v1: devices.allow and devices.deny"),
            };
        }
        let abilities = &host.capabilities;
        if abilities.bpf_devices {
            return match abilities.bpf_replace {
                true => Finding::good(CHECK, "eBPF: a program was loaded, and is replaced at once"),
                false => Finding::note(
                    CHECK,
                    "eBPF: a program was loaded; a change is attached beside the old one",
                )
                .advise("use Linux 5.6 or newer"),
            };
        }
        let found = "eBPF: no program of type CGROUP_DEVICE can be loaded: devices cannot be denied";
        let advice = if host.rootless && self.user.id == 0 {
            "run as root of the machine: this is root of a user namespace"
        } else if host.rootless {
            "give CAP_BPF and CAP_NET_ADMIN, or run as root"
        } else if self.memory_for_bpf_is_short() {
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit: before Linux 5.11 programs count"
        } else {
            "give CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN; the kernel needs CONFIG_CGROUP_BPF"
        };
        Finding::limited(CHECK, found).advise(advice)
    }
}

fn mode(host: &Host) -> Finding {
    let of = |version| host.hierarchies.iter().filter(move |hierarchy| hierarchy.version == version);
    let roots: Vec<_> = of(Version::V1).map(|hierarchy| hierarchy.root.clone()).collect();
    let unified = of(Version::V2).next().map(|hierarchy| hierarchy.root.display().to_string());
    let mut found = match (host.mode, unified) {
        (Mode::V2, Some(unified)) => format!("v2 at {unified}"),
        (Mode::Hybrid, Some(unified)) => format!("hybrid: v2 at {unified}, v1 at {}", paths(&roots)),
        _ => format!("v1 at {}", paths(&roots)),
    };
    if host.namespaced {
        found.push_str(", as a cgroup namespace shows them");
    }
    if host.mode == Mode::V2 {
        return Finding::good("cgroups", found);
    }
    let advice = if host.systemd {
        "v2 has more limits and statistics for each cgroup: boot with systemd.unified_cgroup_hierarchy=1"
    } else {
        "v2 has more limits and statistics for each cgroup: boot without v1 and mount -t cgroup2 none /sys/fs/cgroup"
    };
    Finding::note("cgroups", found).advise(advice)
}

fn enabled(base: &Base) -> Finding {
    const CHECK: &str = "enabled-controllers";
    let directory = base.directory.display();
    let waiting: Vec<_> =
        base.controllers.iter().copied().filter(|controller| !base.enabled.contains(controller)).collect();
    let found = match base.enabled.is_empty() {
        true => format!("none below {directory}"),
        false => format!("{} below {directory}", names(&base.enabled)),
    };
    if waiting.is_empty() {
        return Finding::good(CHECK, found);
    }
    if base.has_processes && !base.is_top {
        return Finding::limited(
            CHECK,
            format!("{found}; {} cannot be: processes are in it, not below it", names(&waiting)),
        )
        .advise(format!(
            "cd {directory} && mkdir init && for p in $(cat cgroup.procs); do echo $p > init/cgroup.procs; done"
        ));
    }
    Finding::good(CHECK, format!("{found}; {} when needed", names(&waiting)))
}

fn ceilings(base: &Base) -> Finding {
    const CHECK: &str = "cgroup-limits";
    let mut found = Vec::new();
    for ceiling in &base.ceilings {
        let directory = ceiling.directory.display();
        if let Some(max) = ceiling.max_descendants {
            let used = format!("{} of {max} cgroups below {directory}", ceiling.descendants);
            // A tenth is left, or less.
            if ceiling.descendants.saturating_mul(10) >= max.saturating_mul(9) {
                return Finding::limited(CHECK, used)
                    .advise(format!("echo max > {directory}/cgroup.max.descendants"));
            }
            found.push(used);
        }
        if let Some(max) = ceiling.max_depth {
            let used = format!("{} of {max} levels below {directory}", ceiling.levels);
            if max < ceiling.levels.saturating_add(LEVELS) {
                return Finding::limited(CHECK, format!("{used}; a sandbox needs up to {LEVELS}"))
                    .advise(format!("echo max > {directory}/cgroup.max.depth"));
            }
            found.push(used);
        }
    }
    if found.is_empty() {
        found.push(format!("none; {} cgroups", base.descendants));
    }
    Finding::good(CHECK, found.join(", "))
}

fn dying(base: &Base) -> Finding {
    const CHECK: &str = "dying-cgroups";
    let found =
        format!("{} cgroups, and {} that were removed and are not gone", base.descendants, base.dying);
    if base.dying < MANY_DYING {
        return Finding::good(CHECK, found);
    }
    Finding::limited(CHECK, format!("{found}: they cost memory and slow statistics down"))
        .advise("echo 3 > /proc/sys/vm/drop_caches lets go of the cached pages that keep them")
}

/// Where a v1 hierarchy of this name would be mounted.
fn usual_place(host: &Host, name: &str) -> String {
    let beside = host.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V1);
    let parent = beside.and_then(|hierarchy| hierarchy.root.parent());
    parent.unwrap_or(Path::new("/sys/fs/cgroup")).join(name).display().to_string()
}

/// `/sys/fs/cgroup/{cpu,memory}`: paths in one directory are named together.
fn paths(paths: &[PathBuf]) -> String {
    let parent = paths.first().and_then(|path| path.parent());
    let names: Vec<_> = paths
        .iter()
        .filter(|path| path.parent() == parent)
        .filter_map(|path| path.file_name()?.to_str())
        .collect();
    match (parent, paths) {
        (Some(parent), [_, _, ..]) if names.len() == paths.len() => {
            format!("{}/{{{}}}", parent.display(), names.join(","))
        }
        _ => paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}
