//! Hosts that exist nowhere, and on which plans can be compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Capabilities, Controller, DeviceNode, Hierarchy, Host, HostFacts, Mode, Version};
use crate::devices::DeviceKind;
use crate::resources::{CpuSet, HugePageSize};

impl Host {
    /// The standard host of a mode: all controllers, on v1 each mounted singly at `/sys/fs/cgroup/NAME`; on hybrid the
    /// same, and version 2 without controllers at `/sys/fs/cgroup/unified`; on v2 at `/sys/fs/cgroup`. With systemd,
    /// v1 and hybrid have its named hierarchy too.
    ///
    /// The kernel can do everything but `io.bfq.weight` and what its version of cgroups has not. 2 CPUs, 1 node,
    /// pages of 4 KiB, huge pages of 2 MB and 1 GB, the devices that a hypervisor needs, device mapper 253; root.
    pub fn standard(mode: Mode, systemd: bool) -> Self {
        let v1 = mode != Mode::V2;
        let v2 = mode != Mode::V1;
        Self::from(HostFacts {
            mode,
            systemd,
            hierarchies: hierarchies(mode, systemd),
            capabilities: Capabilities {
                cgroup_kill: v2,
                psi: true,
                memory_peak: !v1,
                swap: true,
                cpu_burst: true,
                cpu_idle: true,
                cpu_quota: true,
                cpu_rt: v1,
                hugetlb_rsvd: true,
                bfq_weight: false,
                io_weight: true,
                clone_into_cgroup: true,
                bpf_devices: true,
                bpf_replace: true,
            },
            devices: devices(),
            device_mapper_major: Some(253),
            cpus: first(2),
            mems: first(1),
            page_size: 4096,
            huge_page_sizes: [2 << 10, 1 << 20]
                .into_iter()
                .filter_map(HugePageSize::from_kilobytes)
                .collect(),
            rootless: false,
            delegation: None,
            read_only: false,
            namespaced: false,
            systemd_root: String::new(),
            roots: Default::default(),
            manager: Default::default(),
        })
    }
}

fn hierarchies(mode: Mode, systemd: bool) -> Vec<Hierarchy> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchy = |version, root: PathBuf, controllers: Vec<Controller>| Hierarchy {
        version,
        root,
        controllers,
        name: None,
        noprefix: false,
    };
    if mode == Mode::V2 {
        let all = Controller::ALL.into_iter().filter(|controller| controller.v2_name().is_some());
        return vec![hierarchy(Version::V2, top.to_owned(), all.collect())];
    }
    let mut all: Vec<Hierarchy> = Controller::ALL
        .into_iter()
        .map(|controller| hierarchy(Version::V1, top.join(controller.v1_name()), vec![controller]))
        .collect();
    if systemd {
        let mut named = hierarchy(Version::V1, top.join("systemd"), Vec::new());
        named.name = Some("systemd".to_owned());
        all.push(named);
    }
    if mode == Mode::Hybrid {
        all.push(hierarchy(Version::V2, top.join("unified"), Vec::new()));
    }
    all
}

fn devices() -> BTreeMap<PathBuf, DeviceNode> {
    [
        ("/dev/kvm", 10, 232),
        ("/dev/vhost-net", 10, 238),
        ("/dev/vhost-vsock", 10, 241),
        ("/dev/vfio/vfio", 10, 196),
        ("/dev/net/tun", 10, 200),
    ]
    .into_iter()
    .map(|(path, major, minor)| (path.into(), DeviceNode { kind: DeviceKind::Char, major, minor }))
    .collect()
}

/// The first `count` CPUs or nodes.
fn first(count: u32) -> CpuSet {
    // A list this plain always parses.
    (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",").parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_hosts_are_mounted_as_documented() {
        let roots = |mode, systemd| -> Vec<String> {
            let host = Host::standard(mode, systemd);
            host.hierarchies.iter().map(|hierarchy| hierarchy.root.display().to_string()).collect()
        };
        let v1 = roots(Mode::V1, false);
        assert_eq!(v1.len(), 14);
        assert!(
            v1.contains(&"/sys/fs/cgroup/blkio".to_owned()) && !v1.iter().any(|root| root.ends_with("/io"))
        );
        assert_eq!(
            roots(Mode::Hybrid, false),
            [v1.clone(), vec!["/sys/fs/cgroup/unified".to_owned()]].concat()
        );
        assert_eq!(roots(Mode::V1, true), [v1, vec!["/sys/fs/cgroup/systemd".to_owned()]].concat());
        assert_eq!(roots(Mode::V2, false), ["/sys/fs/cgroup"]);
        let v2 = Host::standard(Mode::V2, false);
        let names: Vec<_> =
            v2.hierarchies[0].controllers.iter().map(|controller| controller.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc"]);
        assert_eq!(v2.devices[Path::new("/dev/kvm")].minor, 232);
        assert!(!v2.capabilities.bfq_weight && v2.capabilities.swap);
    }
}
