//! What a device needs beside itself before it is of use.
//!
//! | device | needs |
//! | --- | --- |
//! | VFIO group (`/dev/vfio/12`) | `/dev/vfio/vfio`, in which the group is put before it can be used |
//! | VFIO device (`/dev/vfio/devices/vfio0`) | `/dev/iommu`, to which it is bound |
//! | multipath disk (device mapper) | its paths: persistent reservations are sent down each of them; it is the same disk |
//! | any other disk (logical volume, dm-crypt, partition, loop, RAID, NVMe) | nothing: the kernel opened what is below when it was put together, and asks nobody again |
//! | tap (`/dev/net/tun`), macvtap (`/dev/tapN`), and everything else | nothing |
//! | disk image in a file | no rule at all: files are not asked for |
//!
//! What is below a disk is more than the disk: the whole of the disk on which a volume lies, other machines' volumes
//! included. So it is allowed only on request ([`Beneath::All`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Access, DeviceKind, DeviceNumber, DeviceRule, Numbers, RuleKind};
use crate::{DeviceNode, Report};

/// Which of the block devices that lie below a disk are allowed with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Beneath {
    /// The paths of a multipath disk, which are that disk.
    #[default]
    Paths,
    /// All of them, recursively: the targets of the device mapper, the members of a RAID, the device behind a loop device.
    All,
}

/// Where the kernel says what a device is.
struct Machine<'a> {
    dev: &'a Path,
    sys: &'a Path,
}

/// The kernel's VFIO_MINOR, below the major number of miscellaneous devices.
const VFIO: (&str, DeviceNumber) = ("vfio/vfio", DeviceNumber { major: 10, minor: 196 });

impl DeviceRule {
    /// The rule, and behind it those for what else the device at its path needs, with a note in the report for each. A rule
    /// that denies, or has numbers alone, means just what it says.
    ///
    /// Reads `/sys/dev`; what cannot be read is left out.
    pub fn with_needed(&self, beneath: Beneath) -> (Vec<Self>, Report) {
        Machine { dev: Path::new("/dev"), sys: Path::new("/sys") }.needed(self, beneath)
    }
}

impl Machine<'_> {
    fn needed(&self, rule: &DeviceRule, beneath: Beneath) -> (Vec<DeviceRule>, Report) {
        let (mut rules, mut report) = (vec![rule.clone()], Report::default());
        let (true, Some(path), RuleKind::Only(kind)) = (rule.allow, &rule.path, rule.kind) else {
            return (rules, report);
        };
        let Numbers { major: Some(major), minor: Some(minor) } = rule.numbers else { return (rules, report) };
        let number = DeviceNumber { major, minor };
        match kind {
            DeviceKind::Char => self.vfio(path, number, &mut rules, &mut report),
            DeviceKind::Block => self.disks(rule, number, beneath, &mut rules, &mut report),
        }
        (rules, report)
    }

    fn vfio(&self, path: &Path, number: DeviceNumber, rules: &mut Vec<DeviceRule>, report: &mut Report) {
        let (name, node, why) = match self.vfio_kind(path, number) {
            Some(Vfio::Group) => {
                let why = "allowed with it: a VFIO group is put into a container there";
                (VFIO.0, Some(VFIO.1), why)
            }
            Some(Vfio::Device) => {
                let why = "allowed with it: a VFIO device is bound to an I/O address space there";
                ("iommu", self.iommu(), why)
            }
            None => return,
        };
        let needed = self.dev.join(name);
        let Some(number) = node else {
            report.note("devices", needed.display(), "needed by a VFIO device, and not on this host");
            return;
        };
        let access = Access::READ.union(Access::WRITE);
        rules.push(self.rule(&needed, DeviceKind::Char, number, access));
        report.note("devices", needed.display(), why);
    }

    /// By the kernel's class of the device; where it knows none of that number, by the name that udev gives.
    fn vfio_kind(&self, path: &Path, number: DeviceNumber) -> Option<Vfio> {
        let of_number = self.sys.join(format!("dev/char/{number}"));
        if let Ok(class) = fs::read_link(of_number.join("subsystem")) {
            return match class.file_name()?.to_str()? {
                "vfio" => Some(Vfio::Group),
                "vfio-dev" => Some(Vfio::Device),
                _ => None,
            };
        }
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut names = real.iter().rev().map(|name| name.to_str().unwrap_or_default());
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match (names.next()?, names.next()?, names.next()) {
            (group, "vfio", _) => {
                is_number(group.strip_prefix("noiommu-").unwrap_or(group)).then_some(Vfio::Group)
            }
            (device, "devices", Some("vfio")) => {
                device.strip_prefix("vfio").filter(|index| is_number(index)).map(|_| Vfio::Device)
            }
            _ => None,
        }
    }

    /// Its minor number differs from boot to boot.
    fn iommu(&self) -> Option<DeviceNumber> {
        self.number(&self.sys.join("class/misc/iommu/dev")).or_else(|| {
            let node = DeviceNode::at(self.dev.join("iommu")).ok()?;
            (node.kind == DeviceKind::Char).then_some(DeviceNumber { major: node.major, minor: node.minor })
        })
    }

    fn disks(
        &self,
        rule: &DeviceRule,
        number: DeviceNumber,
        beneath: Beneath,
        rules: &mut Vec<DeviceRule>,
        report: &mut Report,
    ) {
        // A node that can only be made is not looked into.
        let Some(access) = rule.access.minus(Access::MKNOD) else { return };
        if beneath == Beneath::Paths && !self.is_multipath(number) {
            return;
        }
        let (mut known, mut next) = (BTreeSet::from([number]), vec![number]);
        while let Some(above) = next.pop() {
            for below in self.below(above) {
                if known.insert(below) {
                    next.push(below);
                    let path = self.name(below);
                    report.note("devices", path.display(), format!("allowed with it: {above} lies on it"));
                    rules.push(self.rule(&path, DeviceKind::Block, below, access));
                }
            }
        }
    }

    fn is_multipath(&self, number: DeviceNumber) -> bool {
        let uuid = fs::read_to_string(self.block(number).join("dm/uuid"));
        uuid.is_ok_and(|uuid| uuid.starts_with("mpath-"))
    }

    /// The devices right below a block device, in order.
    fn below(&self, number: DeviceNumber) -> BTreeSet<DeviceNumber> {
        let block = self.block(number);
        let slaves = fs::read_dir(block.join("slaves")).into_iter().flatten().flatten();
        let mut below: BTreeSet<_> =
            slaves.filter_map(|slave| self.number(&slave.path().join("dev"))).collect();
        // A partition lies on its disk; the disk is the directory above.
        if block.join("partition").exists()
            && let Ok(real) = fs::canonicalize(&block)
            && let Some(disk) = real.parent()
        {
            below.extend(self.number(&disk.join("dev")));
        }
        let behind = fs::read_to_string(block.join("loop/backing_file"));
        if let Some(node) = behind.ok().and_then(|path| DeviceNode::at(path.trim_end_matches('\n')).ok())
            && node.kind == DeviceKind::Block
        {
            below.insert(DeviceNumber { major: node.major, minor: node.minor });
        }
        below
    }

    fn block(&self, number: DeviceNumber) -> PathBuf {
        self.sys.join(format!("dev/block/{number}"))
    }

    /// Where udev puts its node.
    fn name(&self, number: DeviceNumber) -> PathBuf {
        let uevent = fs::read_to_string(self.block(number).join("uevent")).unwrap_or_default();
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        self.dev.join(name.map_or_else(|| format!("block/{number}"), str::to_owned))
    }

    fn number(&self, file: &Path) -> Option<DeviceNumber> {
        DeviceNumber::parse(fs::read_to_string(file).ok()?.trim_end())
    }

    fn rule(&self, path: &Path, kind: DeviceKind, number: DeviceNumber, access: Access) -> DeviceRule {
        let DeviceNumber { major, minor } = number;
        DeviceRule { access, ..DeviceRule::at(path, DeviceNode { kind, major, minor }) }
    }
}

enum Vfio {
    Group,
    Device,
}

#[cfg(test)]
mod tests;
