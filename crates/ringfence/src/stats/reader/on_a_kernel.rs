//! The reader on this machine's kernel: needs root, and says so where it cannot run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BUFFER, Share, Source, Stats, StatsReader, Whereabouts, files};
use crate::allocations;
use crate::error::ErrorKind;
use crate::host::Controller::{self, Cpu, Cpuacct, Cpuset, Hugetlb, Io, Memory, Misc, Pids, Rdma};
use crate::host::Version::{self, V1, V2};
use crate::kernel::dir::CgroupDir;
use crate::skip::skip;

/// A cgroup made for one test, in one hierarchy; removed with it.
struct TestCgroup {
    version: Version,
    controllers: Vec<Controller>,
    path: PathBuf,
    dir: CgroupDir,
    root: Arc<CgroupDir>,
    name: String,
}

impl TestCgroup {
    fn make(version: Version, controllers: &[Controller], root: &Path, test: &str) -> Option<Self> {
        let name = format!("rf-test-{test}-{}", std::process::id());
        let path = root.join(&name);
        if let Err(error) = fs::create_dir(&path) {
            skip(&format!("cannot make {}: {error}", path.display()));
            return None;
        }
        let dir = CgroupDir::open_root(&path).unwrap();
        let root = Arc::new(CgroupDir::open_root(root).unwrap());
        Some(Self { version, controllers: controllers.to_vec(), path, dir, root, name })
    }

    /// In this machine's v1 hierarchies, of which some may be mounted together.
    fn v1(test: &str) -> Vec<Self> {
        const CONTROLLERS: [Controller; 9] = [Cpu, Cpuacct, Memory, Pids, Cpuset, Io, Hugetlb, Rdma, Misc];
        let mut hierarchies = BTreeMap::<PathBuf, Vec<Controller>>::new();
        for controller in CONTROLLERS {
            let root = Path::new("/sys/fs/cgroup").join(controller.v1_name());
            match root.join("cgroup.procs").canonicalize() {
                Ok(procs) => {
                    hierarchies.entry(procs.parent().unwrap().to_owned()).or_default().push(controller)
                }
                Err(_) if ![Cpu, Cpuacct, Memory, Pids].contains(&controller) => {}
                Err(_) => return Vec::new(),
            }
        }
        let made = hierarchies.iter().filter_map(|(root, controllers)| {
            let made = Self::make(V1, controllers, root, test)?;
            for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| controllers.contains(&Cpuset)) {
                fs::write(made.path.join(file), fs::read(root.join(file)).unwrap()).unwrap();
            }
            Some(made)
        });
        made.collect()
    }

    /// In this machine's v2 tree, with the controllers that its root enables.
    fn v2(test: &str) -> Vec<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists());
        let controllers = [Cpu, Cpuset, Memory, Io, Pids, Hugetlb, Rdma, Misc];
        root.and_then(|root| Self::make(V2, &controllers, root, test)).into_iter().collect()
    }

    fn everywhere(test: &str) -> Vec<Self> {
        Self::v1(test).into_iter().chain(Self::v2(test)).collect()
    }

    fn source(&self) -> Source<'_> {
        Source {
            version: self.version,
            controllers: self.controllers.clone(),
            noprefix: false,
            dir: &self.dir,
            root: Arc::clone(&self.root),
            path: &self.name,
        }
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && self.path.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn none(cgroups: &[TestCgroup]) -> bool {
    if cgroups.is_empty() {
        skip("there are no such cgroups here");
    }
    cgroups.is_empty()
}

fn reader(cgroups: &[TestCgroup]) -> StatsReader {
    StatsReader::open(&cgroups.iter().map(TestCgroup::source).collect::<Vec<_>>()).unwrap()
}

/// A shell in the cgroups that fills 8 MB of memory, says so, and burns CPU time.
struct Load(Child);

impl Load {
    fn start(cgroups: &[TestCgroup]) -> Self {
        const SCRIPT: &str = r"for dir; do echo $$ > $dir/cgroup.procs || exit 1; done
            x=$(head -c 8000000 /dev/zero | tr '\0' x); echo ready; while :; do :; done";
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .args(cgroups.iter().map(|cgroup| &cgroup.path))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut said).expect("the shell is ready");
        Self(child)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn two_samples_under_load(cgroups: &[TestCgroup]) -> (Stats, Stats) {
    let mut reader = reader(cgroups);
    let load = Load::start(cgroups);
    let before = reader.sample().unwrap().clone();
    std::thread::sleep(Duration::from_millis(300));
    let after = reader.sample().unwrap().clone();
    drop(load);
    assert!(after.at_us - before.at_us >= 300_000, "{} {}", before.at_us, after.at_us);
    assert!(after.cpu.usage_us > before.cpu.usage_us, "{before:?} {after:?}");
    (before, after)
}

#[test]
fn a_process_that_burns_cpu_and_fills_memory_shows_in_all_v1_hierarchies() {
    let cgroups = TestCgroup::v1("stats-v1");
    if none(&cgroups) {
        return;
    }
    let (_, after) = two_samples_under_load(&cgroups);
    assert!(after.cpu.user_us.is_some() && after.cpu.system_us.is_some() && after.cpu.periods == Some(0));
    let memory = &after.memory;
    assert!(memory.current > Some(8_000_000), "{memory:?}");
    assert!(memory.peak >= memory.current && memory.current >= memory.working_set, "{memory:?}");
    assert!(memory.stat.get("total_rss") > Some(&8_000_000), "{memory:?}");
    assert_eq!(memory.limit, Some(crate::Limit::Max));
    assert_eq!(memory.events.oom_kill, Some(0));
    assert_eq!((after.pids.current, after.pids.limit), (Some(1), Some(crate::Limit::Max)));
    let is_full = |set: &Option<crate::CpuSet>| set.as_ref().is_some_and(|set| !set.is_empty());
    let cpuset = &after.cpuset;
    assert!(
        !Path::new("/sys/fs/cgroup/cpuset").exists() || is_full(&cpuset.cpus) && is_full(&cpuset.mems),
        "{cpuset:?}"
    );
}

#[test]
fn a_process_that_burns_cpu_shows_on_v2_with_or_without_controllers() {
    let cgroups = TestCgroup::v2("stats-v2");
    if none(&cgroups) {
        return;
    }
    let cgroup = &cgroups[0];
    let enabled = fs::read_to_string(cgroup.path.join("cgroup.controllers")).unwrap();
    let enabled = |controller| enabled.split_whitespace().any(|name| name == controller);
    let (_, after) = two_samples_under_load(&cgroups);

    assert!(after.cpu.user_us.is_some() && after.cpu.system_us.is_some());
    assert_eq!(after.cpu.periods.is_some(), enabled("cpu"));
    assert_eq!(after.memory.current > Some(8_000_000), enabled("memory"));
    assert_eq!(after.memory.stat.get("anon") > Some(&8_000_000), enabled("memory"));
    assert_eq!(after.memory.limit, enabled("memory").then_some(crate::Limit::Max));
    assert!(after.memory.working_set <= after.memory.current);
    assert_eq!(after.pids.current, enabled("pids").then_some(1));
    assert_eq!(after.cpuset.cpus.is_some_and(|cpus| !cpus.is_empty()), enabled("cpuset"));
    assert_eq!(
        after.hugetlb.is_empty(),
        !(enabled("hugetlb") && Path::new("/sys/kernel/mm/hugepages").exists())
    );
    if cgroup.path.join("memory.pressure").exists() {
        assert!(after.pressure.memory.some.unwrap().total_us.is_some());
    }
}

/// How many reads this thread has made. Reading that is one more, which the next call sees.
fn reads_of_this_thread() -> u64 {
    let mut text = [0; 1024];
    let length = fs::File::open("/proc/thread-self/io").unwrap().read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..length]);
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

#[test]
fn a_sample_is_one_read_per_file_and_allocates_nothing() {
    let cgroups = TestCgroup::everywhere("stats-reads");
    if none(&cgroups) {
        return;
    }
    let mut reader = reader(&cgroups);
    let _load = Load::start(&cgroups);
    let first = reader.sample().unwrap().clone();
    let known = |cgroup: &TestCgroup, name: &str| {
        let mut rows = files().filter(|file| file.version == cgroup.version);
        rows.any(|file| {
            file.key_in(name).is_some() && file.controller.is_none_or(|it| cgroup.controllers.contains(&it))
        })
    };
    let names =
        |cgroup: &TestCgroup| fs::read_dir(&cgroup.path).unwrap().map(|entry| entry.unwrap().file_name());
    let there: usize = cgroups
        .iter()
        .map(|cgroup| names(cgroup).filter(|name| known(cgroup, name.to_str().unwrap())).count())
        .sum();
    assert_eq!(reader.files.len(), there);

    let before = reads_of_this_thread();
    reader.sample().unwrap();
    let reads = reads_of_this_thread() - before - 1;
    assert_eq!(reads, reader.files.len() as u64);

    let allocations = |reader: &mut StatsReader| {
        allocations::count(|| {
            for _ in 0..10 {
                reader.sample().unwrap();
            }
        })
    };
    assert_eq!(allocations(&mut reader), 0);

    // Where no more may be kept; other tests may let go of theirs at this moment.
    let opened_anew = (0..100).find_map(|_| {
        reader.share = None;
        let _all: Vec<_> = (0..31).rev().filter_map(|power| Share::of(1 << power)).collect();
        reader.close();
        let place = |source: Source<'_>| Whereabouts::of(source.dir, &source.root, source.path).unwrap();
        reader.places = cgroups.iter().map(|cgroup| place(cgroup.source())).collect();
        let allocations = allocations(&mut reader);
        reader.files.iter().all(|file| file.kept.is_none()).then_some(allocations)
    });
    assert_eq!(opened_anew, Some(0));

    let later = reader.sample().unwrap();
    assert!(
        later.memory.stat.iter().map(|(name, _)| name).eq(first.memory.stat.iter().map(|(name, _)| name))
    );
}

#[test]
fn a_cpuset_without_the_prefix_is_read_too() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("effective_cpus"), "0-2\n").unwrap();
    fs::write(root.path().join("cpuset.effective_mems"), "0\n").unwrap();
    let dir = CgroupDir::open_root(root.path()).unwrap();
    let again = Arc::new(CgroupDir::open_root(root.path()).unwrap());
    let source =
        Source { version: V1, controllers: vec![Cpuset], noprefix: true, dir: &dir, root: again, path: "" };
    let mut reader = StatsReader::open(&[source]).unwrap();
    let cpuset = &reader.sample().unwrap().cpuset;
    assert_eq!((cpuset.cpus.clone(), cpuset.mems.clone()), (Some("0-2".parse().unwrap()), None));
}

#[test]
fn a_file_longer_than_the_buffer_is_read_whole() {
    let cgroups = TestCgroup::v2("stats-buffer");
    if none(&cgroups) {
        return;
    }
    let mut reader = reader(&cgroups);
    BUFFER.set(vec![0; 2]);
    let short = reader.sample().unwrap().clone();
    assert!(short.cpu.usage_us.is_some() && short.cpu.system_us.is_some(), "{short:?}");
    let length = fs::read(cgroups[0].path.join("cpu.stat")).unwrap().len();
    assert!(BUFFER.with_borrow(Vec::len) > length);
}

#[test]
fn removal_of_one_hierarchys_cgroup_leaves_the_others_and_of_all_is_not_found() {
    let mut cgroups = TestCgroup::everywhere("stats-removed");
    if none(&cgroups) {
        return;
    }
    let mut reader = reader(&cgroups);
    assert!(reader.sample().unwrap().cpu.usage_us.is_some());
    while let Some(removed) = cgroups.pop() {
        let source = [Source { dir: &CgroupDir::open_root(&removed.path).unwrap(), ..removed.source() }];
        fs::remove_dir(&removed.path).unwrap();
        assert_eq!(StatsReader::open(&source).unwrap_err().kind(), ErrorKind::NotFound);
        if cgroups.is_empty() {
            break;
        }
        let stats = reader.sample().expect("the others are still there");
        if removed.version == V2 {
            assert_eq!(stats.pressure, Default::default());
        }
    }
    let error = reader.sample().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NotFound, Some(19)));
}

#[test]
fn every_v1_and_v2_file_here_is_understood() {
    let cgroups = TestCgroup::everywhere("stats-all");
    if none(&cgroups) {
        return;
    }
    for cgroup in &cgroups {
        for file in files().filter(|file| file.version == cgroup.version) {
            // Those of v1 that count per device list none in a new cgroup.
            let path = cgroup.path.join(file.name);
            let Ok(contents) = fs::read(&path) else { continue };
            let mut stats = Stats::default();
            assert!(stats.record(cgroup.version, file.name, &contents));
            let derived = file.name.contains("memsw") || contents.is_empty() || contents == b"Total 0\n";
            assert!(
                derived || stats != Stats::default(),
                "{}: {:?}",
                path.display(),
                String::from_utf8_lossy(&contents)
            );
        }
    }
}
