//! The device nodes that hypervisors open, and the device mapper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::DeviceNode;
use crate::devices::{DeviceKind, Profile};
use crate::{Error, Result};

/// Those of the nodes that profiles name and that exist here.
pub(super) fn inventory() -> BTreeMap<PathBuf, DeviceNode> {
    Profile::paths().filter_map(|path| Some((path.to_owned(), DeviceNode::at(path).ok()?))).collect()
}

impl DeviceNode {
    /// Looks at the device node at `path`, through symbolic links.
    ///
    /// # Errors
    /// There is nothing at `path`, or no device node.
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refused = || Error::invalid("devices", path.display(), "the path of a device node is needed");
        let stat = rustix::fs::stat(path).map_err(|errno| refused().with_errno(errno))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => DeviceKind::Block,
            FileType::CharacterDevice => DeviceKind::Char,
            FileType::RegularFile => {
                return Err(refused().with_message(
                    "the path of a device node is needed; a file, such as a disk image, needs no rule",
                ));
            }
            _ => return Err(refused()),
        };
        Ok(Self { kind, major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) })
    }
}

/// The device mapper's major number, which the kernel gives out dynamically, from the text of `/proc/devices`.
pub(crate) fn device_mapper_major(proc_devices: &str) -> Option<u32> {
    let (_, block) = proc_devices.split_once("Block devices:")?;
    block.lines().find_map(|line| {
        let (major, name) = line.trim().split_once(' ')?;
        if name == "device-mapper" { major.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_node_is_known_by_type_and_numbers() {
        let null = DeviceNode { kind: DeviceKind::Char, major: 1, minor: 3 };
        assert_eq!(DeviceNode::at("/dev/null").unwrap(), null);
        for path in ["/etc/passwd", "/dev/there is none"] {
            let error = DeviceNode::at(path).unwrap_err();
            assert_eq!((error.kind(), error.value()), (ErrorKind::InvalidInput, Some(path)));
        }
    }

    #[test]
    fn the_inventory_holds_what_profiles_name_and_this_machine_has() {
        let known = inventory();
        for path in Profile::paths() {
            assert_eq!(known.contains_key(path), path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn the_device_mapper_is_looked_for_among_block_devices() {
        let text = "Character devices:\n  1 mem\n 10 misc\n\nBlock devices:\n  7 loop\n253 device-mapper\n259 blkext\n";
        assert_eq!(device_mapper_major(text), Some(253));
        assert_eq!(
            device_mapper_major("Character devices:\n253 device-mapper\n\nBlock devices:\n  7 loop\n"),
            None
        );
        for broken in ["", "Block devices:", "Block devices:\nx device-mapper\n", "Block devices:\n253\n"] {
            assert_eq!(device_mapper_major(broken), None);
        }
    }
}
