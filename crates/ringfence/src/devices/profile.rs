//! What a hypervisor opens: the devices without which no virtual machine starts in a device cgroup.
//!
//! The lists are what the programs really open. QEMU 10.0 was traced (`-accel kvm` and `tcg`, tap with and without
//! vhost, vsock, VFIO, pty): it opens each device read-write and makes no node itself. The others cannot be installed
//! from a package archive, and are listed by their published sources; see [`Profile`]. Every other device (a VFIO
//! group, a loop device, `/dev/userfaultfd` to be opened, `/dev/sev`, SGX, vhost-vdpa, vhost-scsi) is the caller's to allow.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Access, DeviceKind, DeviceRule};
use crate::{Error, ErrorKind, Host, Report, Result};

/// A virtual machine monitor, by the devices that it opens.
///
/// Beside the [runtime defaults](runtime_defaults), which all of them need (`/dev/null`, `/dev/urandom`, pseudo-terminals):
///
/// | device | `default`, `qemu` | `cloud-hypervisor` | `firecracker` | `kata` | why |
/// | --- | --- | --- | --- | --- | --- |
/// | `/dev/kvm` or `/dev/mshv` | rw | rw | rwm | rw | virtual machines and their vCPUs |
/// | `/dev/net/tun` | rw | rw | rwm | rw | tap network devices |
/// | `/dev/vhost-net` | rw | | | rw | tap with the data path in the kernel |
/// | `/dev/vhost-vsock` | rw | | | rw | sockets between host and guest |
/// | `/dev/vfio/vfio` | rw | rw | | rw | passing devices through, by group |
/// | `/dev/iommu` | rw | rw | | rw | passing devices through, by iommufd |
/// | `/dev/userfaultfd` | | | m | | its jailer ends where it may not make the node |
/// | device mapper, `b MAJOR:*` | rw | rw | rw | rw | logical volumes and snapshots as disks |
/// | `c *:*`, `b *:*` | | | | m | the shim makes nodes for containers |
///
/// Where from:
/// - `qemu`: traced, and booted under just this list by this project's tests.
/// - `cloud-hypervisor`: its `hypervisor/src/kvm` and `mshv`, `net_util/src/open_tap.rs`; rust-vmm's
///   `vfio-ioctls/src/vfio_device.rs` opens `/dev/vfio/vfio`. Network by vhost-user and vsock are Unix sockets.
/// - `firecracker`: its `src/jailer/src/env.rs` makes kvm, net/tun, urandom and, wherever `/proc/misc` has it, userfaultfd.
///   To restore a snapshot by page faults, allow `/dev/userfaultfd` beside.
/// - `kata`: `src/runtime/pkg/resourcecontrol/cgroups.go`, function `sandboxDevices`, less `/dev/console`, which a VMM
///   does not open, and with the device mapper's number of this host instead of 253.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Profile {
    /// No hypervisor: the runtime defaults alone.
    None,
    /// Any hypervisor: what every common one opens.
    #[default]
    Default,
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker, with or without its jailer.
    Firecracker,
    /// A Kata Containers shim and the hypervisor that it starts.
    Kata,
}

/// What an entry of a profile is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The hypervisor interface: `/dev/kvm` or `/dev/mshv`, whichever the host has.
    Hypervisor,
    /// The device node with this path.
    Node(&'static str),
    /// Block devices of the device mapper, whose major number differs from host to host.
    DeviceMapper,
    /// Every device of a type.
    Every(DeviceKind),
}

/// One entry of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Which devices.
    pub subject: Subject,
    /// What is allowed.
    pub access: Access,
    /// What for.
    pub why: &'static str,
}

/// The hypervisor interfaces of the kernel: KVM's, and Hyper-V's root partition's.
const HYPERVISORS: [&str; 2] = ["/dev/kvm", "/dev/mshv"];

const READ_WRITE: Access = Access::READ.union(Access::WRITE);

const fn entry(subject: Subject, access: Access, why: &'static str) -> Entry {
    Entry { subject, access, why }
}

const HYPERVISOR: Entry =
    entry(Subject::Hypervisor, READ_WRITE, "virtual machines and their vCPUs (QEMU: -accel kvm)");
const TUN: Entry =
    entry(Subject::Node("/dev/net/tun"), READ_WRITE, "tap network devices (QEMU: -netdev tap)");
const VHOST_NET: Entry = entry(
    Subject::Node("/dev/vhost-net"),
    READ_WRITE,
    "tap with the data path in the kernel (QEMU: vhost=on)",
);
const VSOCK: Entry = entry(
    Subject::Node("/dev/vhost-vsock"),
    READ_WRITE,
    "sockets between host and guest (QEMU: vhost-vsock-pci)",
);
const VFIO: Entry =
    entry(Subject::Node("/dev/vfio/vfio"), READ_WRITE, "passing devices through, by group (QEMU: vfio-pci)");
const IOMMU: Entry = entry(
    Subject::Node("/dev/iommu"),
    READ_WRITE,
    "passing devices through (QEMU: -object iommufd, with its first device)",
);
const DEVICE_MAPPER: Entry =
    entry(Subject::DeviceMapper, READ_WRITE, "logical volumes and snapshots as disks");

/// Whatever QEMU can be told to open without naming a device of its own: also what any hypervisor may need.
const QEMU: &[Entry] = &[HYPERVISOR, TUN, VHOST_NET, VSOCK, VFIO, IOMMU, DEVICE_MAPPER];

/// Its vsock is a Unix socket on the host, its network is in the process.
const CLOUD_HYPERVISOR: &[Entry] = &[HYPERVISOR, TUN, VFIO, IOMMU, DEVICE_MAPPER];

/// No passing through, vsock over a Unix socket. The jailer makes the nodes again in its root directory.
const FIRECRACKER: &[Entry] = &[
    entry(Subject::Hypervisor, Access::ALL, "virtual machines and their vCPUs; the jailer makes the node"),
    entry(Subject::Node("/dev/net/tun"), Access::ALL, "tap network devices; the jailer makes the node"),
    entry(Subject::Node("/dev/userfaultfd"), Access::MKNOD, "the jailer, which makes the node or ends"),
    DEVICE_MAPPER,
];

const KATA: &[Entry] = &[
    HYPERVISOR,
    TUN,
    VHOST_NET,
    VSOCK,
    VFIO,
    IOMMU,
    DEVICE_MAPPER,
    entry(Subject::Every(DeviceKind::Char), Access::MKNOD, "the shim makes nodes for the containers"),
    entry(Subject::Every(DeviceKind::Block), Access::MKNOD, "the shim makes nodes for the containers"),
];

impl Profile {
    /// Every profile, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Default, Self::Qemu, Self::CloudHypervisor, Self::Firecracker, Self::Kata];

    /// The name, as `--profile` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Default => "default",
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Kata => "kata",
        }
    }

    /// What the profile allows.
    pub fn entries(self) -> &'static [Entry] {
        match self {
            Self::None => &[],
            Self::Default | Self::Qemu => QEMU,
            Self::CloudHypervisor => CLOUD_HYPERVISOR,
            Self::Firecracker => FIRECRACKER,
            Self::Kata => KATA,
        }
    }

    /// Every path that a profile names: what [`Host::devices`](crate::Host) has to know.
    pub fn paths() -> impl Iterator<Item = &'static Path> {
        let alone =
            FIRECRACKER.iter().filter(|entry| !QEMU.iter().any(|known| known.subject == entry.subject));
        let nodes = QEMU.iter().chain(alone).filter_map(|entry| match entry.subject {
            Subject::Node(path) => Some(path),
            _ => None,
        });
        HYPERVISORS.into_iter().chain(nodes).map(Path::new)
    }

    /// The rules of the profile on this host, without the runtime defaults. What the host does not have is left out,
    /// with a line in the report.
    ///
    /// Errors: the host has no hypervisor interface, and the profile's hypervisor cannot do without ([`Profile::Qemu`]
    /// can, and so can [`Profile::Default`]: a line in the report).
    pub fn rules(&self, host: &Host) -> Result<(Vec<DeviceRule>, Report)> {
        let (mut rules, mut report) = (Vec::new(), Report::default());
        for entry in self.entries() {
            let mut found = entry.rules(host);
            if found.is_empty() {
                match entry.subject {
                    Subject::Hypervisor if !self.can_emulate() => {
                        return Err(Error::new(
                            ErrorKind::Unsupported,
                            "this host has neither /dev/kvm nor /dev/mshv, and this hypervisor cannot emulate",
                        )
                        .with_setting("profile")
                        .with_value(self));
                    }
                    Subject::Hypervisor => report.note(
                        "devices",
                        HYPERVISORS.join(" or "),
                        "this host has neither: virtual machines can only be emulated",
                    ),
                    subject => report.note(
                        "devices",
                        subject,
                        format!("not on this host, left out; it is for {}", entry.why),
                    ),
                }
            }
            rules.append(&mut found);
        }
        Ok((rules, report))
    }

    /// Those of the rules without which the hypervisor does not start at all: the `required` of
    /// [`DevicePolicy::with_base`](super::DevicePolicy::with_base).
    pub fn required(&self, host: &Host) -> Vec<DeviceRule> {
        let hypervisor = self.entries().iter().filter(|entry| entry.subject == Subject::Hypervisor);
        hypervisor.flat_map(|entry| entry.rules(host)).collect()
    }

    fn can_emulate(self) -> bool {
        matches!(self, Self::None | Self::Default | Self::Qemu)
    }
}

impl Entry {
    fn rules(&self, host: &Host) -> Vec<DeviceRule> {
        let node = |path| {
            let path = Path::new(path);
            let node = host.devices.get(path)?;
            Some(DeviceRule { access: self.access, ..DeviceRule::at(path, *node) })
        };
        match self.subject {
            Subject::Hypervisor => HYPERVISORS.into_iter().filter_map(node).collect(),
            Subject::Node(path) => node(path).into_iter().collect(),
            Subject::DeviceMapper => host
                .device_mapper_major
                .map(|major| DeviceRule::allow(DeviceKind::Block, Some(major), None, self.access))
                .into_iter()
                .collect(),
            Subject::Every(kind) => vec![DeviceRule::allow(kind, None, None, self.access)],
        }
    }
}

/// What every process may open, virtual machine or not: null, zero, full, random, urandom, tty, ptmx and
/// pseudo-terminals. The numbers are the same on every Linux (kernel documentation: admin-guide/devices).
pub fn runtime_defaults() -> Vec<DeviceRule> {
    [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(2)),
        (136, None),
    ]
    .into_iter()
    .map(|(major, minor)| DeviceRule::allow(DeviceKind::Char, Some(major), minor, Access::ALL))
    .collect()
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypervisor => f.write_str(&HYPERVISORS.join(" or ")),
            Self::Node(path) => f.write_str(path),
            Self::DeviceMapper => f.write_str("device mapper"),
            Self::Every(kind) => write!(f, "{kind} *:*"),
        }
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or_else(|| {
            Error::invalid("profile", name, format!("one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::DevicePolicy;
    use super::*;
    use crate::{Capabilities, DeviceNode, Mode};

    /// A host with some of the character devices that profiles name.
    fn host(nodes: &[(&str, u32)], device_mapper_major: Option<u32>) -> Host {
        let node = |minor| DeviceNode { kind: DeviceKind::Char, major: 10, minor };
        let mut host = Host::standard(Mode::V2, false);
        host.hierarchies.clear();
        host.capabilities = Capabilities::default();
        host.devices = nodes.iter().map(|(path, minor)| (path.into(), node(*minor))).collect();
        host.device_mapper_major = device_mapper_major;
        host
    }

    const EVERY_NODE: [(&str, u32); 7] = [
        ("/dev/kvm", 232),
        ("/dev/net/tun", 200),
        ("/dev/vhost-net", 238),
        ("/dev/vhost-vsock", 241),
        ("/dev/vfio/vfio", 196),
        ("/dev/iommu", 250),
        ("/dev/userfaultfd", 257),
    ];

    fn lines(profile: Profile, host: &Host) -> (Vec<String>, Report) {
        let (rules, report) = profile.rules(host).unwrap();
        assert!(rules.iter().all(|rule| rule.allow));
        (rules.iter().map(DeviceRule::to_string).collect(), report)
    }

    #[test]
    fn a_profile_is_its_list_and_no_more() {
        let host = host(&EVERY_NODE, Some(253));
        let qemu = ["c 10:232 rw", "c 10:200 rw", "c 10:238 rw", "c 10:241 rw", "c 10:196 rw", "c 10:250 rw"];
        let with = |more: &[&'static str]| [&qemu[..], &["b 253:* rw"], more].concat();
        for (profile, expected) in [
            (Profile::None, vec![]),
            (Profile::Default, with(&[])),
            (Profile::Qemu, with(&[])),
            (Profile::Kata, with(&["c *:* m", "b *:* m"])),
            (
                Profile::CloudHypervisor,
                vec!["c 10:232 rw", "c 10:200 rw", "c 10:196 rw", "c 10:250 rw", "b 253:* rw"],
            ),
            (Profile::Firecracker, vec!["c 10:232 rwm", "c 10:200 rwm", "c 10:257 m", "b 253:* rw"]),
        ] {
            let (rules, report) = lines(profile, &host);
            assert_eq!(rules, expected, "{profile}");
            assert!(report.is_empty(), "{profile}: {report}");
            assert!(profile.entries().iter().all(|entry| !entry.why.is_empty()));
        }
    }

    #[test]
    fn what_the_host_does_not_have_is_left_out_with_a_line_that_names_it() {
        let (rules, report) = lines(Profile::Qemu, &host(&EVERY_NODE[..2], None));
        assert_eq!(rules, ["c 10:232 rw", "c 10:200 rw"]);
        let named: Vec<&str> = report.lines().iter().map(|line| line.value.as_str()).collect();
        assert_eq!(
            named,
            ["/dev/vhost-net", "/dev/vhost-vsock", "/dev/vfio/vfio", "/dev/iommu", "device mapper"]
        );
    }

    #[test]
    fn without_kvm_and_mshv_only_those_that_emulate_go_on() {
        let without = host(&EVERY_NODE[1..], Some(253));
        let hyper_v = host(&[("/dev/mshv", 30)], Some(253));
        for profile in Profile::ALL {
            if profile != Profile::None {
                assert_eq!(
                    lines(profile, &hyper_v).0.first().unwrap().rsplit_once(' ').unwrap().0,
                    "c 10:30"
                );
                assert_eq!(profile.required(&hyper_v).len(), 1);
            }
            match (profile, profile.rules(&without)) {
                (Profile::None, Ok((rules, report))) => assert!(rules.is_empty() && report.is_empty()),
                (Profile::Default | Profile::Qemu, Ok((_, report))) => {
                    assert_eq!(report.lines().first().unwrap().value, "/dev/kvm or /dev/mshv");
                }
                (_, refused) => {
                    let error = refused.expect_err(profile.name());
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(error.to_string().contains("/dev/kvm"), "{error}");
                }
            }
        }
    }

    #[test]
    fn the_host_is_asked_for_every_path_that_any_profile_names() {
        let paths: Vec<&Path> = Profile::paths().collect();
        for entry in Profile::ALL.into_iter().flat_map(Profile::entries) {
            if let Subject::Node(path) = entry.subject {
                assert!(paths.contains(&Path::new(path)), "{path}");
            }
        }
        assert!(HYPERVISORS.iter().all(|path| paths.contains(&Path::new(path))));
        assert_eq!(paths.len(), 8);
    }

    #[test]
    fn a_profile_has_the_same_name_in_text_and_json() {
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse::<Profile>().unwrap(), profile);
            assert_eq!(serde_json::to_value(profile).unwrap(), profile.name());
        }
        assert!("vmware".parse::<Profile>().unwrap_err().to_string().contains("cloud-hypervisor"));
    }

    #[test]
    fn the_runtime_defaults_are_eight_and_no_more() {
        let (policy, _) = DevicePolicy::from_rules(&runtime_defaults()).unwrap();
        let lines: Vec<String> = policy.exceptions().map(|exception| exception.to_string()).collect();
        assert_eq!(
            lines,
            [
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:2 rwm",
                "c 136:* rwm"
            ]
        );
    }
}
