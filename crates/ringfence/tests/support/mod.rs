//! Sandboxes of a test's own that leave nothing behind, and the kernel's view of them.

#![allow(dead_code)] // Each of the tests uses its part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // clippy.toml frees #[test] alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringfence::{
    Child, Command, DeviceNumber, Host, Limit, Remaining, Resources, Sandbox, SandboxConfig, null,
};

pub const SOON: Duration = Duration::from_secs(30);
pub const MIB: u64 = 1 << 20;

/// A path of its own for each sandbox.
pub fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("rf-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A sandbox that leaves nothing behind, however its test ends.
pub struct Guarded(pub Sandbox);

impl Drop for Guarded {
    fn drop(&mut self) {
        _ = self.0.destroy(Remaining::Kill, SOON);
    }
}

impl std::ops::Deref for Guarded {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.0
    }
}

impl Guarded {
    pub fn new(host: &Host, what: &str, resources: Resources) -> Self {
        let config = SandboxConfig::new(name(what).parse().unwrap()).resources(resources);
        Self(Sandbox::create(host, &config).unwrap().0)
    }

    /// For a test in which quotas come and go: the kernel patches its code for the first one on the machine and for the
    /// last, and an emulator may hang at that.
    pub fn with_a_quota(host: &Host) -> Self {
        Self::new(host, "quota", Resources::new().cpu_quota(100_000))
    }

    /// The directory of a controller, and whether it is v1's.
    pub fn dir(&self, controller: &str) -> (PathBuf, bool) {
        let paths = self.paths();
        match paths.get(controller) {
            Some(dir) => (dir.clone(), true),
            None => (paths["unified"].clone(), false),
        }
    }

    /// What a file holds; the name is the one of this machine's version of the controller.
    pub fn file(&self, controller: &str, v1: &str, v2: &str) -> Option<String> {
        let (dir, is_v1) = self.dir(controller);
        let text = std::fs::read_to_string(dir.join(if is_v1 { v1 } else { v2 })).ok()?;
        Some(text.trim_end().to_owned())
    }

    pub fn is_on_v1(&self, controller: &str) -> bool {
        self.dir(controller).1
    }

    /// All files that settings are written to, and what they hold.
    pub fn files(&self) -> BTreeMap<PathBuf, String> {
        let dirs: std::collections::BTreeSet<PathBuf> = self.paths().into_values().collect();
        let settings = |name: &str| {
            ["cpu.", "cpuset.", "memory.", "pids.", "io.", "blkio.", "hugetlb.", "net_", "rdma.", "devices."]
                .iter()
                .any(|start| name.starts_with(start))
                && ![
                    "stat",
                    "usage",
                    "current",
                    "peak",
                    "events",
                    "pressure",
                    "effective",
                    "slabinfo",
                    "failcnt",
                    "io_serv",
                    "prioidx",
                ]
                .iter()
                .any(|part| name.contains(part))
        };
        let mut files = BTreeMap::new();
        for dir in dirs {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if settings(&path.file_name().unwrap().to_string_lossy())
                    && let Ok(text) = std::fs::read_to_string(&path)
                {
                    files.insert(path, text);
                }
            }
        }
        files
    }

    pub fn number(&self, controller: &str, v1: &str, v2: &str) -> Limit {
        match self.file(controller, v1, v2).unwrap().parse() {
            Ok(number) if number < i64::MAX.cast_unsigned() - 65_536 => Limit::Value(number),
            _ => Limit::Max,
        }
    }

    /// A process inside that holds this many MiB of memory, and does nothing else any more.
    pub fn holding(&self, mib: u64) -> Child {
        let ready = std::env::temp_dir().join(name("ready"));
        let script = format!(
            "x=$(head -c {} /dev/zero | tr '\\0' x); : > {}; kill -STOP $$",
            mib * MIB,
            ready.display()
        );
        let command = Command::new("sh").args(["-c", &script]).stdin(null().unwrap()).stdout(null().unwrap());
        let child = self.spawn(&command).unwrap();
        let deadline = Instant::now() + 4 * SOON;
        let stopped = |child: &Child| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        while !ready.exists() || !stopped(&child) {
            assert!(Instant::now() < deadline, "it never held {mib} MiB");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::remove_file(ready).unwrap();
        child
    }
}

/// Says that something cannot be tested here, past the test harness's capture of output.
pub fn skip(why: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    _ = std::io::stderr().write_all(format!("SKIPPED: {}: {why}\n", thread.name().unwrap_or("?")).as_bytes());
}

/// Disks of this machine, whatever is on them: nothing is read or written but where a test says so.
pub fn disks() -> Vec<DeviceNumber> {
    let mut disks: Vec<_> =
        std::fs::read_dir("/sys/block").unwrap().map(|disk| disk.unwrap().path()).collect();
    disks.sort();
    let number = |disk: &PathBuf| std::fs::read_to_string(disk.join("dev")).ok()?.trim().parse().ok();
    disks.iter().filter_map(number).collect()
}
