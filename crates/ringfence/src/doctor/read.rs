//! Looking at this machine.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::process::Resource;

use super::{Base, Bus, Ceiling, Facts, Hypervisor, Node, Pressure, User};
use crate::host::{Controller, Host, is_read_only, runtime_directory};
use crate::kernel::dir::CgroupDir;
use crate::kernel::{hypervisor, proc};
use crate::resources::HugePageSize;

/// Device nodes that virtual machines are served by, besides the hypervisor's.
const NODES: [&str; 5] =
    ["/dev/vhost-net", "/dev/vhost-vsock", "/dev/net/tun", "/dev/vfio/vfio", "/dev/iommu"];

/// How long a bus may take to accept a connection.
const SOON: Duration = Duration::from_secs(2);

impl Facts {
    /// Looks at this machine; `root` as in [`Host::detect_at`].
    ///
    /// It changes nothing. What it makes is gone again: a virtual machine without CPU and memory (so that `/dev/kvm` is
    /// known to work), an empty cgroup where there is none to look at, a connection to the bus.
    pub fn read(root: Option<&Path>) -> Self {
        let host = match root {
            Some(root) => Host::detect_at(root),
            None => Host::detect(),
        };
        let host = host.map_err(|error| error.to_string());
        let roots = || host.iter().flat_map(|host| &host.hierarchies).map(|hierarchy| &hierarchy.root);
        let (read_only, writable): (Vec<_>, Vec<_>) = roots().cloned().partition(|root| is_read_only(root));
        let user = user();
        Self {
            read_only,
            refused: writable.into_iter().filter(|root| !may(root, Access::WRITE_OK)).collect(),
            base: host.as_ref().ok().and_then(base),
            mount_options: mount_options(&text("/proc/self/mountinfo")),
            mount_features: words(&text("/sys/kernel/cgroup/features")),
            release: text("/proc/sys/kernel/osrelease"),
            parameters: text("/proc/cmdline"),
            pressure: pressure(),
            swap_is_on: text("/proc/swaps").lines().count() > 1,
            huge_pages: host.as_ref().map(huge_pages).unwrap_or_default(),
            locked_memory: rustix::process::getrlimit(Resource::Memlock).current,
            kvm: kvm(),
            mshv: mshv(),
            nodes: NODES.map(|path| (path, node(path))).to_vec(),
            iommu_groups: fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count),
            process_1: Some(text("/proc/1/comm")).filter(|name| !name.is_empty()),
            systemd_version: host.as_ref().ok().filter(|host| host.systemd).and_then(systemd_version),
            bus: bus(host.as_ref().is_ok_and(|host| host.rootless)),
            user,
            host,
        }
    }
}

/// A small file, without the newline at its end; nothing where it cannot be read.
fn text(path: impl AsRef<Path>) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Whether this process may, with the privileges it has now.
fn may(path: impl AsRef<Path>, access: Access) -> bool {
    rustix::fs::accessat(CWD, path.as_ref(), access, AtFlags::EACCESS).is_ok()
}

fn node(path: &str) -> Node {
    if !Path::new(path).exists() {
        Node::Missing
    } else if may(path, Access::READ_OK | Access::WRITE_OK) {
        Node::Usable
    } else {
        Node::Refused
    }
}

/// What the version 2 tree is mounted with besides `rw`: behind its type and source in mountinfo.
fn mount_options(mountinfo: &str) -> Vec<String> {
    let line = mountinfo.lines().filter_map(|line| line.split_once(" - cgroup2 "));
    let options = line.filter_map(|(_, rest)| rest.split(' ').nth(1)).next().unwrap_or_default();
    options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "")).map(str::to_owned).collect()
}

fn base(host: &Host) -> Option<Base> {
    let (_, unified) = host.unified()?;
    let root = CgroupDir::open_root(&unified.root).ok()?;
    let own = proc::cgroups(std::process::id()).unwrap_or_default();
    let own = own.iter().find(|(names, _)| names.is_empty()).map(|(_, path)| path.trim_matches('/'));
    let delegated = own.filter(|_| host.rootless).and_then(|own| {
        let parts: Vec<_> = own.split('/').filter(|part| !part.is_empty()).collect();
        (0..=parts.len()).map(|depth| parts.iter().take(depth).copied().collect::<Vec<_>>().join("/")).find(
            |path| {
                let directory = below(&unified.root, path);
                let needed = [".", "cgroup.procs", "cgroup.subtree_control"];
                needed.iter().all(|file| may(directory.join(file), Access::WRITE_OK))
            },
        )
    });
    let path = delegated.clone().unwrap_or_default();
    let at = root.open_dir(&path).ok()?;
    let controllers = |file: &str| Controller::list_from_v2(&at.read(file).unwrap_or_default());
    let (descendants, dying) = descendants(&root);
    Some(Base {
        is_top: !at.has("cgroup.events"),
        is_delegated: delegated.is_some(),
        controllers: controllers("cgroup.controllers"),
        enabled: controllers("cgroup.subtree_control"),
        has_processes: at.read("cgroup.procs").is_ok_and(|list| !list.is_empty()),
        dying,
        descendants,
        ceilings: ceilings(&root, &unified.root, &path),
        directory: below(&unified.root, &path),
    })
}

/// A path below a directory, which `""` is itself.
fn below(directory: &Path, path: &str) -> PathBuf {
    if path.is_empty() { directory.to_owned() } else { directory.join(path) }
}

/// `nr_descendants` and `nr_dying_descendants` of `cgroup.stat`.
fn descendants(directory: &CgroupDir) -> (u64, u64) {
    let stat = directory.read("cgroup.stat").unwrap_or_default();
    let value = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    (value("nr_descendants"), value("nr_dying_descendants"))
}

/// The limits of the cgroups from the root down to `path`, as far as there are any.
fn ceilings(root: &CgroupDir, directory: &Path, path: &str) -> Vec<Ceiling> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let of = |depth: usize| {
        let path = parts.iter().take(depth).copied().collect::<Vec<_>>().join("/");
        let at = root.open_dir(&path).ok()?;
        // `max` is no number.
        let limit = |file: &str| at.read(file).ok()?.parse().ok();
        let (max_descendants, max_depth) = (limit("cgroup.max.descendants"), limit("cgroup.max.depth"));
        (max_descendants.is_some() || max_depth.is_some()).then(|| Ceiling {
            directory: below(directory, &path),
            max_descendants,
            descendants: descendants(&at).0,
            max_depth,
            levels: (parts.len() - depth) as u64,
        })
    };
    (0..=parts.len()).filter_map(of).collect()
}

fn pressure() -> Pressure {
    match fs::File::open("/proc/pressure/cpu") {
        Ok(_) => Pressure::Works,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Pressure::Missing,
        Err(_) => Pressure::Off,
    }
}

fn huge_pages(host: &Host) -> Vec<(HugePageSize, u64, u64)> {
    let count = |size: HugePageSize, file: &str| {
        let directory = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size.bytes() >> 10);
        text(Path::new(&directory).join(file)).parse().unwrap_or(0)
    };
    let sizes = host.huge_page_sizes.iter().copied();
    sizes.map(|size| (size, count(size, "nr_hugepages"), count(size, "free_hugepages"))).collect()
}

/// Opens a hypervisor's device, and asks more of it.
fn hypervisor_at(path: &str, more: impl Fn(&fs::File) -> Hypervisor) -> Hypervisor {
    match fs::File::options().read(true).write(true).open(path) {
        Ok(device) => more(&device),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Hypervisor::Missing,
        // The node is there, and nothing behind it.
        Err(error) => Hypervisor::Refused(sentence(&error)),
    }
}

fn kvm() -> Hypervisor {
    hypervisor_at("/dev/kvm", |device| {
        let made = hypervisor::api_version(device).and_then(|version| match version {
            12 => hypervisor::create_vm(device).map(drop),
            _ => Err(Errno::NOSYS),
        });
        match made {
            Ok(()) => Hypervisor::Works,
            Err(errno) => Hypervisor::Fails(sentence(&errno.into())),
        }
    })
}

fn mshv() -> Hypervisor {
    hypervisor_at("/dev/mshv", |_| Hypervisor::Opens)
}

/// The error without its number in parentheses.
fn sentence(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The version that systemd says it is; if it cannot be asked, that of the library that process 1 runs with, at which root
/// alone may look.
fn systemd_version(host: &Host) -> Option<u32> {
    let (said, maps) = (host.systemd_version().ok(), text("/proc/1/maps"));
    let version = said.as_deref().or_else(|| Some(maps.split_once("/libsystemd-shared-")?.1))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The bus of the system, or of the user.
fn bus(rootless: bool) -> Bus {
    let socket = if rootless {
        PathBuf::from(runtime_directory()).join("bus")
    } else {
        "/run/dbus/system_bus_socket".into()
    };
    let (sender, receiver) = mpsc::channel();
    let path = socket.clone();
    // A bus that does not accept connections blocks connect(2) for ever, once its queue is full.
    std::thread::spawn(move || sender.send(UnixStream::connect(path).map(drop)));
    let failure = match receiver.recv_timeout(SOON) {
        Ok(connected) => connected.err().map(|error| sentence(&error)),
        Err(_) => Some("accepts no connection".to_owned()),
    };
    Bus { socket, failure }
}

fn user() -> User {
    let id = rustix::process::geteuid().as_raw();
    let passwd = text("/etc/passwd");
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    let lingers = name.as_ref().is_some_and(|name| Path::new("/var/lib/systemd/linger").join(name).exists());
    User { id, name, lingers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_version_2_tree_stand_behind_its_source() {
        let line = |tags, options| {
            format!("31 25 0:26 / /sys/fs/cgroup rw,nosuid {tags}- cgroup2 cgroup2 {options}")
        };
        for (options, expected) in
            [("rw", &[][..]), ("rw,nsdelegate,memory_recursiveprot", &["nsdelegate", "memory_recursiveprot"])]
        {
            for tags in ["", "shared:8 ", "shared:8 master:1 "] {
                let text = format!("1 0 8:1 / / rw - ext4 /dev/vda rw\n{}\n", line(tags, options));
                assert_eq!(mount_options(&text), expected);
            }
        }
        for none in ["", "31 25 0:26 / /x rw - cgroup cgroup rw,cpu", "31 25 0:26 / /x rw - cgroup2 x"] {
            assert!(mount_options(none).is_empty());
        }
    }
}
