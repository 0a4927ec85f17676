//! Reading this machine.

use std::path::Path;

use rustix::fs::{CWD, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::{
    Controller, Host, HostFacts, Version, delegation, devices, hierarchies, manager, mountinfo, probe,
    topology,
};
use crate::kernel::dir::{CgroupDir, read_file, read_records};
use crate::kernel::probe::page_size;
use crate::kernel::proc;
use crate::{Error, ErrorKind, Result};

/// The inode numbers of the first namespaces, fixed since Linux 3.8 (`include/linux/proc_ns.h`).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

impl Host {
    /// This machine. It costs about a hundred system calls, well below a millisecond: once per process is enough.
    ///
    /// # Errors
    /// No cgroup controllers are mounted, or `/proc` or `/sys` cannot be read.
    pub fn detect() -> Result<Self> {
        detect(None)
    }

    /// This machine, with the hierarchies that are mounted at or below `root` alone; or with `root`, a directory
    /// inside a cgroup2 mount, as the root of the version 2 hierarchy.
    ///
    /// # Errors
    /// As [`Host::detect`]; `root` does not exist, or lies inside a version 1 hierarchy.
    pub fn detect_at(root: &Path) -> Result<Self> {
        let root = root.canonicalize().map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("cannot be used as the root of the cgroups: {error}"))
                .with_setting("cgroup-root")
                .with_path(root)
                .with_source(error)
        })?;
        detect(Some(&root))
    }
}

fn detect(root: Option<&Path>) -> Result<Host> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let text = read_mounts(MOUNTS)
        .map_err(|errno| Error::kernel("cannot read which file systems are mounted", MOUNTS, errno))?;
    let mounts = mountinfo::parse(&text);
    let (mode, mut hierarchies) = hierarchies::assemble(&mounts, root)?;

    let mut unified = None;
    for hierarchy in hierarchies.iter_mut().filter(|hierarchy| hierarchy.version == Version::V2) {
        let refused = |errno| Error::kernel("cannot read the version 2 hierarchy", &hierarchy.root, errno);
        let directory = CgroupDir::open_root(&hierarchy.root).map_err(refused)?;
        let controllers = directory.read("cgroup.controllers").map_err(refused)?;
        hierarchy.controllers = Controller::list_from_v2(&controllers);
        unified = Some(directory);
    }

    let initial_user_namespace = proc::is_in_initial_user_namespace();
    let rootless = !rustix::process::geteuid().is_root() || !initial_user_namespace;
    let delegation = if rootless { delegation::to_this_process(&hierarchies, &mounts) } else { None };
    delegation::narrow(&mut hierarchies, delegation.as_ref());
    if let (Some(root), Some(delegation)) = (&unified, &delegation)
        && let Ok(delegated) = root.open_dir(&delegation.path)
    {
        // What a cgroup of ours will have shows in ours, not in the machine's root.
        unified = Some(delegated);
    }

    let huge_page_sizes = topology::huge_page_sizes();
    let read_only = hierarchies.iter().any(|hierarchy| is_read_only(&hierarchy.root));
    Ok(Host::from(HostFacts {
        mode,
        systemd: Path::new("/run/systemd/system").is_dir(),
        capabilities: probe::capabilities(&hierarchies, unified.as_ref(), &huge_page_sizes)?,
        hierarchies,
        devices: devices::inventory(),
        device_mapper_major: read_file("/proc/devices")
            .ok()
            .and_then(|text| devices::device_mapper_major(&String::from_utf8_lossy(&text))),
        cpus: topology::online_cpus()?,
        mems: topology::online_mems()?,
        page_size: page_size(),
        huge_page_sizes,
        rootless,
        systemd_root: manager::root(rootless),
        delegation,
        read_only,
        namespaced: !proc::is_in_namespace("/proc/self/ns/cgroup", INITIAL_CGROUP_NAMESPACE),
        roots: Default::default(),
        manager: Default::default(),
    }))
}

/// A line may have a page of mount options.
fn read_mounts(path: &str) -> Result<Vec<u8>, Errno> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let mut bytes = Vec::with_capacity(8 * 1024);
    read_records(&file, &mut bytes)?;
    Ok(bytes)
}

/// Whether a file system is mounted read-only.
pub(crate) fn is_read_only(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|mounted| mounted.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod on_a_kernel {
    use super::super::Mode;
    use super::*;
    use crate::skip::skip;

    fn is_cgroup(root: &Path, version: Version) -> bool {
        // CGROUP_SUPER_MAGIC and CGROUP2_SUPER_MAGIC.
        let magic = if version == Version::V1 { 0x0027_e0eb } else { 0x6367_7270 };
        rustix::fs::statfs(root).unwrap().f_type == magic
    }

    #[test]
    fn this_machine_is_detected_as_the_kernel_describes_it() {
        let host = Host::detect().unwrap();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        for hierarchy in &host.hierarchies {
            assert!(is_cgroup(&hierarchy.root, hierarchy.version), "{hierarchy:?}");
            if hierarchy.version == Version::V2 {
                let text = std::fs::read_to_string(hierarchy.root.join("cgroup.controllers")).unwrap();
                assert!(hierarchy.controllers.iter().all(|known| text.contains(known.as_str())), "{text}");
                continue;
            }
            let mut names: Vec<_> =
                hierarchy.controllers.iter().map(|known| known.v1_name().to_owned()).collect();
            names.extend(hierarchy.name.as_ref().map(|name| format!("name={name}")));
            names.sort();
            let described = own.lines().filter_map(|line| line.split(':').nth(1)).any(|controllers| {
                let mut theirs: Vec<_> = controllers.split(',').collect();
                theirs.sort_unstable();
                theirs == names
            });
            assert!(described, "{names:?} is not in\n{own}");
        }
        let versions = |version| host.hierarchies.iter().any(|hierarchy| hierarchy.version == version);
        let mode = match (versions(Version::V1), versions(Version::V2)) {
            (true, true) => Mode::Hybrid,
            (false, _) => Mode::V2,
            (true, false) => Mode::V1,
        };
        assert_eq!(host.mode, mode);
        assert_eq!(host.devices, devices::inventory());
        assert_eq!(Host::from_json(&serde_json::to_string(&host).unwrap()).unwrap(), host);
    }

    #[test]
    fn a_directory_inside_cgroup2_is_a_root_with_the_same_capabilities() {
        let host = Host::detect().unwrap();
        let Some((_, unified)) = host.unified() else {
            return skip("there is no version 2 hierarchy");
        };
        let directory = unified.root.join(format!("rf-test-detect-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&directory) {
            return skip(&format!("cannot make {}: {error}", directory.display()));
        }
        let inside = Host::detect_at(&directory);
        let left: Vec<_> = std::fs::read_dir(&unified.root)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.starts_with(&format!("ringfence-probe-{}-", std::process::id())))
            .collect();
        std::fs::remove_dir(&directory).unwrap();
        let inside = inside.unwrap();
        assert_eq!(inside.mode, Mode::V2);
        assert_eq!((inside.hierarchies.len(), &inside.hierarchies[0].root), (1, &directory));
        assert!(inside.hierarchies[0].controllers.iter().all(|known| unified.controllers.contains(known)));
        assert_eq!(inside.capabilities.cgroup_kill, host.capabilities.cgroup_kill);
        // Other tests of this process may be probing at this moment; a probe lasts less than a millisecond.
        assert!(left.len() <= 2, "{left:?}");
    }

    #[test]
    fn a_root_that_cannot_be_one_is_an_error_that_names_it() {
        for path in ["/proc/there is none", "/proc"] {
            let error = Host::detect_at(Path::new(path)).unwrap_err();
            assert_eq!(error.path(), Some(Path::new(path)));
        }
    }
}
