//! What of the cgroups an unprivileged process was given to manage.
//!
//! A cgroup is delegated to a user by giving them its directory and the files that move processes and enable
//! controllers, never the limits: those are the delegator's. In v1 there is nothing to enable.

use std::path::Path;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::mountinfo::{Mount, mount_of};
use super::{Controller, Hierarchy, Host, Version};
use crate::error::{Error, Result};
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc;
use crate::path::{CgroupPath, Subpath};

/// The cgroup that an unprivileged process may make others below, and the hierarchies in which it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// The path below the root of each hierarchy; `""` for the root itself, as in a container.
    pub path: String,
    /// The hierarchies in which it is delegated, by their places in
    /// [`HostFacts::hierarchies`](crate::HostFacts::hierarchies).
    pub hierarchies: Vec<usize>,
    /// v2: controllers that the root offers and this cgroup has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<Controller>,
}

impl Delegation {
    /// Whether a cgroup lies below the one that is delegated.
    pub(crate) fn covers(&self, path: &str) -> bool {
        match path.strip_prefix(self.path.as_str()) {
            Some(rest) => self.path.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// A path below it.
    fn join(&self, path: &str) -> String {
        if self.path.is_empty() { path.to_owned() } else { format!("{}/{path}", self.path) }
    }
}

impl Host {
    /// Where a relative path goes, here given from the root of the hierarchies: below what is delegated, for a process
    /// without privileges. `None` if nothing is.
    pub(crate) fn place(&self, path: &str) -> Option<String> {
        match &self.delegation {
            _ if !self.rootless => Some(path.to_owned()),
            Some(delegation) => Some(delegation.join(path)),
            None => None,
        }
    }

    /// This path, of a unit for which no slice was named with the slice that the manager gives it here: `system.slice`,
    /// or of a user's manager `user.slice`.
    pub(crate) fn with_slice(&self, path: &CgroupPath) -> CgroupPath {
        match path {
            CgroupPath::Systemd(name) => CgroupPath::Systemd(name.clone().in_slice_of_manager(self.rootless)),
            other => other.clone(),
        }
    }

    /// Where the cgroup of a path is, below the root of each hierarchy; `""` for a relative path where nothing is
    /// delegated. `parent` is that of relative paths, where the caller names one.
    ///
    /// # Errors
    /// As [`CgroupPath::resolve`], and EXDEV for a unit where a cgroup namespace hides those of systemd.
    pub(crate) fn locate(
        &self,
        path: &CgroupPath,
        parent: Option<&CgroupPath>,
        prefix: Option<&str>,
    ) -> Result<String> {
        if let Some(name) = self.with_slice(path).as_systemd() {
            let located = name.below(&self.systemd_root);
            if !Subpath::is_clean(&located) {
                let why = "the cgroups of systemd's units are outside of this cgroup namespace";
                return Err(Error::kernel(why, located, Errno::XDEV));
            }
            return Ok(located);
        }
        let located = match parent {
            Some(parent) => path.resolve(parent, prefix)?,
            None => path.resolve(&CgroupPath::default_parent(), prefix)?,
        };
        let is_absolute = |path: &CgroupPath| matches!(path, CgroupPath::Absolute(_));
        if is_absolute(path) || parent.is_some_and(is_absolute) {
            return Ok(located.as_str().to_owned());
        }
        Ok(self.place(located.as_str()).unwrap_or_default())
    }

    /// The parent of relative paths where the caller names no other, as far as cgroups can be made here at all.
    pub(crate) fn default_parent(&self) -> Option<String> {
        self.place(Subpath::DEFAULT_PARENT)
    }

    /// The cgroup below which directories are ours to make and controllers ours to enable: that which is delegated, or
    /// the root.
    pub(crate) fn base_of(&self, path: &str) -> &str {
        self.delegation_of(path).map_or("", |delegation| &delegation.path)
    }

    /// Whether a cgroup at this path can have a directory in a hierarchy, as far as is known. `""` is no cgroup.
    pub(crate) fn takes(&self, hierarchy: usize, path: &str) -> bool {
        let is_delegated = |delegation: &Delegation| delegation.hierarchies.contains(&hierarchy);
        // Of other paths, the kernel says what is possible.
        !path.is_empty() && self.delegation_of(path).is_none_or(is_delegated)
    }

    /// Why a controller cannot be used for the cgroup at `path`.
    pub(crate) fn why_without(&self, controller: Controller, path: &str) -> String {
        if path.is_empty() {
            return self.why_nothing().to_owned();
        }
        let has = |hierarchy: &Hierarchy| hierarchy.controllers.contains(&controller);
        let is_withheld = self.delegation_of(path).is_some_and(|delegation| {
            delegation.withheld.contains(&controller) || self.hierarchies.iter().any(has)
        });
        if is_withheld {
            format!("the {controller} controller is not delegated to this user")
        } else {
            format!("this host offers no {controller} controller")
        }
    }

    /// Why nothing can be done for a sandbox without a cgroup.
    pub(crate) fn why_nothing(&self) -> &'static str {
        if self.read_only {
            "no cgroup is delegated to this user: the cgroup file system is mounted read-only"
        } else {
            "no cgroup is delegated to this user"
        }
    }

    /// Whether this user was not given a v2 controller that the host has, for the cgroup at `path`.
    pub(crate) fn withholds(&self, controller: Controller, path: &str) -> bool {
        let Some((index, _)) = self.unified() else { return false };
        let is_withheld = |delegation: &Delegation| delegation.withheld.contains(&controller);
        !self.takes(index, path) || self.delegation_of(path).is_some_and(is_withheld)
    }

    fn delegation_of(&self, path: &str) -> Option<&Delegation> {
        self.delegation.as_ref().filter(|delegation| self.rootless && delegation.covers(path))
    }

    /// This host as it is for whoever manages the cgroup at `path`: with what is delegated on the way to it, where that
    /// is not on the way to our own cgroup.
    pub(crate) fn as_seen_at(&self, path: &str) -> Self {
        let mut host = self.clone();
        if !self.rootless || path.is_empty() || self.delegation_of(path).is_some() {
            return host;
        }
        if let Some((index, _)) = self.unified()
            && let Ok(root) = self.root(index)
            && let Some(unified) = host.hierarchies.get_mut(index)
        {
            unified.controllers = controllers_of(&root);
        }
        host.delegation = find(&host.hierarchies, |_| Some(path.to_owned()));
        host.narrow();
        host
    }

    /// Leaves v2 the controllers of what is delegated.
    fn narrow(&mut self) {
        let facts = &mut **self;
        narrow(&mut facts.hierarchies, facts.delegation.as_ref());
    }
}

/// What is delegated on the way to this process's own cgroup.
pub(super) fn to_this_process(hierarchies: &[Hierarchy], mounts: &[Mount<'_>]) -> Option<Delegation> {
    let own = proc::own_cgroups().unwrap_or_default();
    find(hierarchies, |hierarchy| {
        let (_, path) = own.iter().find(|(names, _)| hierarchy.is_called(names))?;
        // From the root of the hierarchy to that of the mount, and to the directory that serves as the root here.
        let mount = mount_of(mounts, &hierarchy.root)?;
        let shown = mount.root.join(hierarchy.root.strip_prefix(&mount.point).ok()?);
        let below = Path::new(path).strip_prefix(&shown).ok()?;
        below.to_str().map(str::to_owned)
    })
}

/// The topmost cgroup on the way to `leaf` that is delegated; where hierarchies differ, that with the most controllers.
fn find(hierarchies: &[Hierarchy], leaf: impl Fn(&Hierarchy) -> Option<String>) -> Option<Delegation> {
    let roots: Vec<_> =
        hierarchies.iter().map(|hierarchy| CgroupDir::open_root(&hierarchy.root).ok()).collect();
    let is_delegated = |index: usize, path: &str| {
        let (root, hierarchy) = (roots.get(index)?.as_ref()?, hierarchies.get(index)?);
        is_writable(root, path, hierarchy.version).then_some(root)
    };
    let found = (0..hierarchies.len()).filter_map(|index| {
        let leaf = leaf(hierarchies.get(index)?).unwrap_or_default();
        let path = levels(&leaf).find(|path| is_delegated(index, path).is_some())?;
        Some(delegation(hierarchies, path.to_owned(), is_delegated))
    });
    // Of equals, the last one: that of v2.
    found.max_by_key(|(_, controllers)| *controllers).map(|(delegation, _)| delegation)
}

/// What is delegated at this path, and how many controllers that is.
fn delegation<'a>(
    hierarchies: &[Hierarchy],
    path: String,
    is_delegated: impl Fn(usize, &str) -> Option<&'a CgroupDir>,
) -> (Delegation, usize) {
    let (mut places, mut withheld, mut count) = (Vec::new(), Vec::new(), 0);
    for (index, hierarchy) in hierarchies.iter().enumerate() {
        let Some(root) = is_delegated(index, &path) else { continue };
        places.push(index);
        count += hierarchy.controllers.len();
        if hierarchy.version == Version::V2 {
            let there = root.open_dir(&path).map(|dir| controllers_of(&dir)).unwrap_or_default();
            withheld.extend(hierarchy.controllers.iter().filter(|controller| !there.contains(controller)));
            count -= withheld.len();
        }
    }
    (Delegation { path, hierarchies: places, withheld }, count)
}

pub(super) fn narrow(hierarchies: &mut [Hierarchy], delegation: Option<&Delegation>) {
    let Some(delegation) = delegation else { return };
    for hierarchy in hierarchies.iter_mut().filter(|hierarchy| hierarchy.version == Version::V2) {
        hierarchy.controllers.retain(|controller| !delegation.withheld.contains(controller));
    }
}

fn controllers_of(dir: &CgroupDir) -> Vec<Controller> {
    Controller::list_from_v2(&dir.read("cgroup.controllers").unwrap_or_default())
}

/// `""`, `a`, `a/b` on the way to `a/b`, as far as that can be the path of a cgroup of ours.
fn levels(leaf: &str) -> impl Iterator<Item = &str> {
    let is_fit = !leaf.is_empty() && Subpath::is_clean(leaf);
    let leaf = if is_fit { leaf } else { "" };
    let ends = leaf.match_indices('/').map(|(at, _)| at);
    let below = is_fit.then_some(leaf.len());
    [0].into_iter().chain(ends).chain(below).filter_map(|end| leaf.get(..end))
}

fn is_writable(root: &CgroupDir, path: &str, version: Version) -> bool {
    let files: &[&str] = match version {
        Version::V1 => &[".", "cgroup.procs", "tasks"],
        Version::V2 => &[".", "cgroup.procs", "cgroup.subtree_control"],
    };
    root.open_dir(path).is_ok_and(|dir| files.iter().all(|file| dir.may_write(file)))
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::*;

    fn rootless(delegation: Option<Delegation>) -> Host {
        let mut host = Host::standard(Mode::V2, false);
        (host.rootless, host.delegation) = (true, delegation);
        host
    }

    fn at(path: &str) -> Delegation {
        Delegation { path: path.to_owned(), hierarchies: vec![0], withheld: vec![Controller::Memory] }
    }

    #[test]
    fn a_unit_without_a_slice_is_in_that_of_the_manager() {
        let path: CgroupPath = ":cri:vm1".parse().unwrap();
        let mut host = Host::standard(Mode::V2, true);
        assert_eq!(host.locate(&path, None, None).unwrap(), "system.slice/cri-vm1.scope");
        assert_eq!(host.with_slice(&path).to_string(), "system.slice:cri:vm1");
        (host.rootless, host.systemd_root) = (true, "user.slice/user@1.service".to_owned());
        let wanted = "user.slice/user@1.service/user.slice/cri-vm1.scope";
        assert_eq!(host.locate(&path, None, None).unwrap(), wanted);
        assert_eq!(host.with_slice(&path).to_string(), "user.slice:cri:vm1");
    }

    #[test]
    fn a_relative_path_goes_below_what_is_delegated() {
        let place = |host: &Host| host.place("ringfence/vm1");
        assert_eq!(place(&Host::standard(Mode::V2, false)).unwrap(), "ringfence/vm1");
        assert_eq!(place(&rootless(Some(at("user.slice/a")))).unwrap(), "user.slice/a/ringfence/vm1");
        assert_eq!(place(&rootless(Some(at("")))).unwrap(), "ringfence/vm1");
        assert_eq!(place(&rootless(None)), None);
    }

    #[test]
    fn what_is_delegated_are_the_cgroups_below_it() {
        let (part, whole) = (at("a/b"), at(""));
        for (path, below) in [("a/b/c", true), ("a/b", false), ("a/bc", false), ("a", false), ("x", false)] {
            assert_eq!((part.covers(path), whole.covers(path)), (below, true), "{path}");
        }
    }

    #[test]
    fn outside_of_what_is_delegated_the_kernel_says_what_is_possible() {
        let mut delegation = at("a");
        delegation.hierarchies = vec![1];
        let host = rootless(Some(delegation));
        assert_eq!((host.takes(0, "a/b"), host.takes(1, "a/b")), (false, true));
        assert!(host.takes(0, "x/y") && !host.takes(0, ""));
        assert_eq!((host.base_of("a/b"), host.base_of("x/y")), ("a", ""));
    }

    #[test]
    fn a_controller_that_is_withheld_is_told_from_one_that_there_is_not() {
        let host = rootless(Some(at("a")));
        assert!(host.why_without(Controller::Memory, "a/b").contains("memory controller is not delegated"));
        assert!(host.why_without(Controller::NetCls, "a/b").contains("offers no net_cls"));
        assert_eq!(
            rootless(None).why_without(Controller::Memory, ""),
            Host::standard(Mode::V2, false).why_nothing()
        );
    }

    #[test]
    fn the_levels_lead_from_the_root_to_the_leaf() {
        let all = |leaf| levels(leaf).collect::<Vec<_>>();
        assert_eq!(all("a/b/c"), ["", "a", "a/b", "a/b/c"]);
        assert_eq!(all(""), [""]);
        // Outside of the cgroup namespace.
        assert_eq!(all("../a"), [""]);
    }
}
