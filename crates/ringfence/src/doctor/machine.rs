//! What the kernel and the devices of this host mean for virtual machines.

use super::{Facts, Finding, Hypervisor, Node, Pressure};
use crate::host::{Capabilities, Controller, Mode};

/// What programs for devices and their maps need, with room to spare.
const MEMORY_FOR_BPF: u64 = 1 << 20;

impl Facts {
    pub(super) fn about_the_machine(&self, found: &mut Vec<Finding>) {
        found.push(self.locked_memory());
        found.push(self.pressure());
        found.push(self.swap());
        found.push(self.huge_pages());
        found.push(self.virtualization());
        let serving = [
            ("vhost-net", "/dev/vhost-net", "modprobe vhost_net", "virtio-net in the kernel"),
            ("vhost-vsock", "/dev/vhost-vsock", "modprobe vhost_vsock", "vsock"),
            ("tun", "/dev/net/tun", "modprobe tun", "tap interfaces"),
        ];
        for (check, path, module, purpose) in serving {
            found.push(self.node(check, path, module, purpose));
        }
        found.push(self.passthrough());
    }

    /// The kernel's version, and what it cannot do that newer ones can.
    pub(super) fn kernel(&self) -> Finding {
        const CHECK: &str = "kernel";
        let release = match self.release.as_str() {
            "" => "of an unknown version",
            release => release,
        };
        if self.is_older_than(4, 15) {
            return Finding::limited(CHECK, format!("{release}: older than what is supported"))
                .advise("use Linux 5.10 or newer");
        }
        let Ok(host) = &self.host else { return Finding::good(CHECK, release) };
        let lacking = lacking(&host.capabilities, host.mode);
        if lacking.is_empty() {
            return Finding::good(CHECK, release);
        }
        let newest = lacking.iter().map(|(_, since)| *since).max().unwrap_or_default();
        let names: Vec<_> = lacking.iter().map(|(name, _)| *name).collect();
        let finding = Finding::note(CHECK, format!("{release}: without {}", names.join(", ")));
        let (major, minor) = newest;
        if self.is_older_than(major, minor) {
            finding.advise(format!("use Linux {major}.{minor} or newer"))
        } else {
            finding.advise("see whether the kernel's configuration or a seccomp filter keeps it away")
        }
    }

    /// Whether the programs that filter devices are counted, and the limit is too small for them.
    pub(super) fn memory_for_bpf_is_short(&self) -> bool {
        self.is_older_than(5, 11) && self.locked_memory.is_some_and(|limit| limit < MEMORY_FOR_BPF)
    }

    fn locked_memory(&self) -> Finding {
        const CHECK: &str = "memlock";
        let limit = self.locked_memory.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
        let filters = self.host.as_ref().is_ok_and(|host| host.hierarchy_of(Controller::Devices).is_none());
        if filters && self.memory_for_bpf_is_short() {
            return Finding::limited(CHECK, format!("{limit}: too little for programs that filter devices"))
                .advise("ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit that starts ringfence");
        }
        let why = if self.is_older_than(5, 11) { "" } else { "; no limit for eBPF since Linux 5.11" };
        Finding::good(CHECK, format!("{limit}{why}"))
    }

    fn pressure(&self) -> Finding {
        const CHECK: &str = "pressure";
        let v1 = self.host.as_ref().is_ok_and(|host| host.mode == Mode::V1);
        match self.pressure {
            Pressure::Works if v1 => Finding::note(CHECK, "works, for the machine as a whole")
                .advise("mount -t cgroup2 none DIR shows it for each cgroup"),
            Pressure::Works => Finding::good(CHECK, "works"),
            Pressure::Off | Pressure::Missing if self.has_parameter("psi=0") => {
                Finding::limited(CHECK, "switched off by psi=0").advise("boot without psi=0")
            }
            Pressure::Off => Finding::limited(CHECK, "switched off").advise("boot with psi=1"),
            Pressure::Missing => Finding::limited(CHECK, "there is no /proc/pressure")
                .advise("boot with psi=1; the kernel needs CONFIG_PSI (Linux 4.20)"),
        }
    }

    fn swap(&self) -> Finding {
        const CHECK: &str = "swap";
        let accounted = self.host.as_ref().is_ok_and(|host| host.capabilities.swap);
        match (accounted, self.swap_is_on) {
            (true, true) => Finding::good(CHECK, "on, and can be limited"),
            (true, false) => Finding::good(CHECK, "off; it could be limited"),
            (false, false) => Finding::note(CHECK, "off; it could not be limited").advise(self.way_to_swap()),
            (false, true) => Finding::limited(CHECK, "on, and cannot be limited").advise(self.way_to_swap()),
        }
    }

    fn way_to_swap(&self) -> &'static str {
        if self.has_parameter("swapaccount=0") {
            "boot without swapaccount=0"
        } else {
            "boot with swapaccount=1; the kernel needs the memory controller and CONFIG_SWAP"
        }
    }

    fn huge_pages(&self) -> Finding {
        const CHECK: &str = "huge-pages";
        const ADVICE: &str =
            "for virtual machines that are backed by huge pages: sysctl vm.nr_hugepages=512 reserves 1 GiB";
        if self.huge_pages.is_empty() {
            return Finding::note(CHECK, "the kernel has none").advise("use a kernel with CONFIG_HUGETLBFS");
        }
        let sizes: Vec<_> = self
            .huge_pages
            .iter()
            .map(|(size, reserved, free)| format!("{size}: {free} of {reserved} free"))
            .collect();
        let finding = Finding::good(CHECK, sizes.join(", "));
        if self.huge_pages.iter().all(|(_, reserved, _)| *reserved == 0) {
            return Finding::note(CHECK, "none are reserved").advise(ADVICE);
        }
        finding
    }

    fn virtualization(&self) -> Finding {
        const CHECK: &str = "virtualization";
        let user = self.user.argument();
        let group = format!("usermod -aG kvm {user}, and log in again; in a container, pass the device in");
        match (&self.kvm, &self.mshv) {
            (Hypervisor::Works, _) => Finding::good(CHECK, "/dev/kvm made a virtual machine (KVM_CREATE_VM)"),
            (_, Hypervisor::Opens | Hypervisor::Works) => {
                Finding::good(CHECK, "/dev/mshv opens for reading and writing; no virtual machine was tried")
            }
            (Hypervisor::Opens, _) => {
                Finding::good(CHECK, "/dev/kvm opens for reading and writing; no virtual machine was tried")
            }
            (Hypervisor::Fails(why), _) => {
                Finding::limited(CHECK, format!("/dev/kvm opens, and makes no virtual machine: {why}")).advise(
                    "switch virtualization (VT-x, AMD-V) on in the firmware, or nested virtualization in the host \
                     of this machine",
                )
            }
            (Hypervisor::Refused(why), _) => {
                Finding::limited(CHECK, format!("/dev/kvm cannot be opened for reading and writing: {why}"))
                    .advise(group)
            }
            (Hypervisor::Missing, Hypervisor::Refused(why)) => {
                Finding::limited(CHECK, format!("/dev/mshv cannot be opened for reading and writing: {why}"))
                    .advise("run as root; in a container, pass the device in")
            }
            (Hypervisor::Missing, _) => Finding::limited(
                CHECK,
                "neither /dev/kvm nor /dev/mshv: only QEMU runs, and emulates",
            )
            .advise(
                "modprobe kvm_intel or kvm_amd; virtualization must be on in the firmware, or nested in the host \
                 of this machine",
            ),
        }
    }

    fn state_of(&self, path: &str) -> Node {
        let node = self.nodes.iter().find(|(known, _)| *known == path);
        node.map_or(Node::Missing, |(_, node)| *node)
    }

    fn node(&self, check: &'static str, path: &str, module: &str, purpose: &str) -> Finding {
        match self.state_of(path) {
            Node::Usable => Finding::good(check, format!("{path} may be read and written")),
            Node::Refused => Finding::note(check, format!("{path} is not for this user"))
                .advise(format!("for {purpose}: let user {} read and write {path}", self.user.argument())),
            Node::Missing => {
                Finding::note(check, format!("there is no {path}")).advise(format!("for {purpose}: {module}"))
            }
        }
    }

    /// Devices of the host in a virtual machine: VFIO, and an IOMMU to keep them in.
    fn passthrough(&self) -> Finding {
        const CHECK: &str = "vfio";
        let usable = ["/dev/vfio/vfio", "/dev/iommu"]
            .into_iter()
            .filter(|path| self.state_of(path) != Node::Missing)
            .collect::<Vec<_>>();
        let groups = match self.iommu_groups {
            0 => "no IOMMU groups".to_owned(),
            1 => "1 IOMMU group".to_owned(),
            many => format!("{many} IOMMU groups"),
        };
        if self.iommu_groups == 0 {
            return Finding::note(CHECK, groups).advise(
                "to pass devices through: switch the IOMMU on in the firmware, and boot with intel_iommu=on",
            );
        }
        if usable.is_empty() {
            return Finding::note(CHECK, format!("{groups}; no /dev/vfio/vfio, no /dev/iommu"))
                .advise("to pass devices through: modprobe vfio-pci");
        }
        Finding::good(CHECK, format!("{groups}; {}", usable.join(", ")))
    }
}

/// What is missing, with the version of Linux that has it.
fn lacking(can: &Capabilities, mode: Mode) -> Vec<(&'static str, (u32, u32))> {
    let unified = mode != Mode::V1;
    [
        ("clone3 into a cgroup", (5, 7), unified && !can.clone_into_cgroup),
        ("cgroup.kill", (5, 14), unified && !can.cgroup_kill),
        ("CPU bandwidth control", (3, 2), !can.cpu_quota),
        ("bursts", (5, 14), can.cpu_quota && !can.cpu_burst),
        ("cpu.idle", (5, 15), !can.cpu_idle),
        ("memory.peak", (5, 19), mode == Mode::V2 && !can.memory_peak),
    ]
    .into_iter()
    .filter(|(.., missing)| *missing)
    .map(|(name, since, _)| (name, since))
    .collect()
}
