//! From the list of mounts to the cgroup mode and its hierarchies: pure.

use std::path::Path;

use super::mountinfo::{Mount, MountKind, is_reachable, mount_of};
use super::{Controller, Hierarchy, Mode, Version};
use crate::{Error, ErrorKind, Result};

/// Where every distribution mounts cgroups.
const USUAL: &str = "/sys/fs/cgroup";

/// The mode and the hierarchies of this machine, or those at or below `root`. The version 2 hierarchy's controllers are
/// not known from the mounts: they are left empty.
///
/// A directory inside a cgroup2 mount is the root of a version 2 hierarchy of its own.
pub(super) fn assemble(mounts: &[Mount<'_>], root: Option<&Path>) -> Result<(Mode, Vec<Hierarchy>)> {
    let place = root.unwrap_or(Path::new(USUAL));
    let top = root.unwrap_or(Path::new("/"));
    let unified = best(mounts, top, |kind| *kind == MountKind::CgroupV2);
    match mount_of(mounts, place) {
        Some(mount) if mount.kind == MountKind::CgroupV2 => {
            // At /sys/fs/cgroup it is the whole machine's mode, whatever old hierarchy someone mounted elsewhere.
            let usual = unified.filter(|_| root.is_none());
            return Ok((Mode::V2, vec![unified_at(usual.map_or(place, |best| &best.point))]));
        }
        Some(mount) if matches!(mount.kind, MountKind::CgroupV1 { .. }) && *mount.point != *place => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the directory lies inside a version 1 hierarchy: \
                 give the directory below which the hierarchies are mounted",
            )
            .with_setting("cgroup-root")
            .with_path(place));
        }
        _ => {}
    }

    let mut hierarchies = version_1(mounts, top);
    let controllers = hierarchies.iter().any(|hierarchy| !hierarchy.controllers.is_empty());
    match (controllers, unified) {
        (true, None) => Ok((Mode::V1, hierarchies)),
        (true, Some(unified)) => {
            hierarchies.push(unified_at(&unified.point));
            Ok((Mode::Hybrid, hierarchies))
        }
        (false, Some(unified)) => Ok((Mode::V2, vec![unified_at(&unified.point)])),
        (false, None) => Err(Error::new(
            ErrorKind::Unsupported,
            "no cgroup controllers are mounted here: mount them, \
             for instance with mount -t cgroup2 none /sys/fs/cgroup",
        )
        .with_path(place)),
    }
}

fn unified_at(root: &Path) -> Hierarchy {
    Hierarchy {
        version: Version::V2,
        root: root.to_owned(),
        controllers: Vec::new(),
        name: None,
        noprefix: false,
    }
}

/// The version 1 hierarchies at or below `top`, each once.
fn version_1(mounts: &[Mount<'_>], top: &Path) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts {
        let Some(options) = Options::of(&mount.kind) else { continue };
        if found.iter().any(|known| options.are_of(known)) {
            continue;
        }
        if let Some(best) = best(mounts, top, |kind| Options::of(kind).as_ref() == Some(&options)) {
            found.push(Hierarchy {
                version: Version::V1,
                root: best.point.to_path_buf(),
                controllers: options.controllers,
                name: options.name.map(str::to_owned),
                noprefix: options.noprefix,
            });
        }
    }
    found
}

/// The mount to use where one hierarchy is mounted several times: first of all one that shows the hierarchy from its
/// root (or from the root of this cgroup namespace: it reads `/` too), last one that shows directories above the
/// namespace's root (`/../..`); then one in the usual place; then the first.
fn best<'a, 'b>(
    mounts: &'b [Mount<'a>],
    top: &Path,
    wanted: impl Fn(&MountKind<'a>) -> bool,
) -> Option<&'b Mount<'a>> {
    mounts
        .iter()
        .filter(|mount| wanted(&mount.kind) && mount.point.starts_with(top) && is_reachable(mounts, mount))
        .min_by_key(|mount| {
            let part = match &*mount.root {
                root if root == Path::new("/") => 0,
                root if root.starts_with("/..") => 2,
                _ => 1,
            };
            (part, !mount.point.starts_with(USUAL))
        })
}

/// What the super block options of a version 1 mount say.
#[derive(PartialEq, Eq)]
struct Options<'a> {
    controllers: Vec<Controller>,
    name: Option<&'a str>,
    noprefix: bool,
}

impl<'a> Options<'a> {
    /// None for version 2, and for hierarchies that have neither a name nor a controller that is known here (`debug`).
    fn of(kind: &MountKind<'a>) -> Option<Self> {
        let MountKind::CgroupV1 { options } = kind else { return None };
        let controllers: Vec<_> = options.split(',').filter_map(Controller::from_v1).collect();
        let name = options.split(',').find_map(|option| option.strip_prefix("name="));
        let noprefix = options.split(',').any(|option| option == "noprefix");
        (!controllers.is_empty() || name.is_some()).then_some(Self { controllers, name, noprefix })
    }

    fn are_of(&self, hierarchy: &Hierarchy) -> bool {
        self.controllers == hierarchy.controllers && self.name == hierarchy.name.as_deref()
    }
}

/// [`assemble`], from the text of mountinfo.
#[cfg(fuzzing)]
pub(crate) fn of_mountinfo(text: &[u8], root: Option<&Path>) -> Result<(Mode, Vec<Hierarchy>)> {
    assemble(&super::mountinfo::parse(text), root)
}

#[cfg(test)]
mod tests;
