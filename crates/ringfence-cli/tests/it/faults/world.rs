//! A sandbox in a known state, and all that can be seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Done, Hierarchy, Sandbox, finish, hierarchies, is_alive, send, until};

/// What the command is told of the machine that [`machine`] is.
pub const VCPUS: [&str; 2] = ["vcpu0", "vcpu1"];
/// For the test that is the machine.
pub const MACHINE: &str = "RINGFENCE_FAULTS_MACHINE";

/// How an operation finds the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// There is none.
    Nothing,
    /// One in which a process runs.
    Ready,
    /// The same without parts.
    Plain,
    /// The same, stopped.
    Frozen,
    /// One in which nothing runs, and a process outside.
    Outside,
    /// One with a process that looks like a virtual machine, all of whose threads are among the vCPUs; each vCPU is to have
    /// limits by itself.
    Machine,
    /// Half of one, of which the record says that its creation was interrupted, beside another one in which a process runs.
    Half,
}

/// The options for which this kernel has the controllers: one for a single CPU has no cpuset.
pub fn possible<'a>(options: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    let has_cpuset = fs::read_to_string("/proc/cgroups").expect("controllers").contains("cpuset");
    options.iter().copied().filter(move |word| has_cpuset || !word.starts_with("--cpuset"))
}

/// All that can be seen: settings, who is where, the record, and which files are kept.
pub type Seen = BTreeMap<String, String>;

pub struct World {
    pub sandbox: Sandbox,
    /// One that no operation is about.
    other: Sandbox,
    hierarchies: Vec<Hierarchy>,
    processes: BTreeMap<&'static str, Child>,
    /// The record as it was brought about, to the letter.
    record: Option<String>,
}

/// Written by the kernel itself, or with nothing to read.
fn is_a_setting(name: &str) -> bool {
    const COUNTERS: &[&str] =
        &["usage", "peak", "failcnt", "pressure", "reclaim", "event_control", "sched_load_balance"];
    const LISTS: &[&str] = &["cgroup.procs", "cgroup.threads", "tasks"];
    !LISTS.contains(&name) && !COUNTERS.iter().any(|counter| name.contains(counter))
}

impl World {
    pub fn new(name: &str) -> Self {
        let (mut sandbox, other) = (Sandbox::named(name), Sandbox::named(&format!("{name}-other")));
        // States are synced with every change: in memory that takes no time.
        sandbox.scratch =
            tempfile::Builder::new().prefix("rf-t-").tempdir_in("/dev/shm").expect("a directory");
        Self { sandbox, other, hierarchies: hierarchies(), processes: BTreeMap::new(), record: None }
    }

    /// A command on the sandbox.
    pub fn does(&self, words: &[&str]) -> Done {
        finish(self.sandbox.ringfence(words))
    }

    fn directories(&self, id: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies
            .iter()
            .map(move |one| one.point.join("ringfence").join(id))
            .filter(|dir| dir.is_dir())
    }

    /// Starts a process outside.
    fn start(&mut self, name: &'static str, command: &mut Command) -> u32 {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("a process");
        let pid = child.id();
        self.processes.insert(name, child);
        pid
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.processes[name].id()
    }

    /// Moves a process into the sandbox as we understand it, without the command.
    fn put_inside(&self, id: &str, part: &str, pid: u32) {
        for dir in self.directories(id).collect::<Vec<_>>() {
            for place in [dir.clone(), dir.join(part)] {
                if place.is_dir() {
                    fs::write(place.join("cgroup.procs"), pid.to_string()).expect("it joins");
                }
            }
        }
    }

    /// Clears everything away, and makes it anew.
    pub fn bring_about(&mut self, start: Start) {
        self.clear();
        let id = self.sandbox.id.clone();
        let create = |options: &[&str]| {
            let base = ["create", &id, "--profile", "qemu", "--memory", "64M", "--cpus", "0.5"];
            let words: Vec<_> = base.into_iter().chain(possible(options)).collect();
            finish(self.sandbox.ringfence(&words)).exits(0);
        };
        match start {
            Start::Nothing => {}
            Start::Ready | Start::Plain | Start::Frozen => {
                create(if start == Start::Plain {
                    &["--overhead", "together"]
                } else {
                    &["--cpuset-cpus=0"]
                });
                let pid = self.start("inside", Command::new("sleep").arg("1000"));
                self.put_inside(&id, "overhead", pid);
                if start == Start::Frozen {
                    self.does(&["freeze", &id]).exits(0);
                }
            }
            Start::Outside => {
                create(&[]);
                self.start("outside", Command::new("sleep").arg("1000"));
            }
            Start::Machine => {
                create(&["--vmm", "cloud-hypervisor", "--vcpus", "2", "--cpus-per-vcpu", "0.3"]);
                let own = std::env::current_exe().expect("own path");
                let mut machine = Command::new(own);
                machine
                    .args(["--exact", "faults::machine", "--nocapture", "--test-threads=1"])
                    .env(MACHINE, "1");
                let pid = self.start("machine", &mut machine);
                until("its threads", || {
                    let names: Vec<_> = threads_of(pid).into_values().collect();
                    VCPUS.iter().all(|name| names.iter().any(|known| known == name))
                });
                self.put_inside(&id, "vcpu", pid);
            }
            Start::Half => {
                create(&["--overhead", "together"]);
                let path = self.sandbox.state_dir().join(format!("{id}.json"));
                let mut state: Value =
                    serde_json::from_str(&fs::read_to_string(&path).expect("a state")).expect("JSON");
                state["phase"] = "creating".into();
                fs::write(&path, state.to_string()).expect("a state");
                let other = self.other.id.clone();
                finish(self.sandbox.ringfence(&["create", &other, "--pids", "10"])).exits(0);
                let pid = self.start("inside", Command::new("sleep").arg("1000"));
                self.put_inside(&other, "", pid);
            }
        }
        self.record = fs::read_to_string(self.sandbox.state_dir().join(format!("{id}.json"))).ok();
    }

    /// Puts back by hand what differs, which is faster than to make everything anew; whether all is as it was then.
    pub fn is_back(&mut self, before: &Seen) -> bool {
        let now = self.seen();
        if now == *before {
            return true;
        }
        let (id, state) = (self.sandbox.id.clone(), self.sandbox.state_dir());
        let Some(record) = self.record.clone().filter(|_| state.is_dir()) else { return false };
        _ = fs::write(state.join(format!("{id}.json")), record);
        _ = fs::remove_file(state.join(format!("{id}.tmp")));
        if now.get("place outside") != before.get("place outside") {
            let place = before.get("place outside").cloned().unwrap_or_default();
            for line in place.lines() {
                let mut words = line.splitn(3, ':').skip(1);
                let (Some(controllers), Some(path)) = (words.next(), words.next()) else { continue };
                let known = |one: &&Hierarchy| {
                    controllers.split(',').all(|name| one.controllers.iter().any(|known| known == name))
                        || one.is_v2 && controllers.is_empty()
                };
                if let Some(hierarchy) = self.hierarchies.iter().find(known) {
                    let procs = format!("{}{path}/cgroup.procs", hierarchy.point.display());
                    _ = fs::write(procs, self.pid("outside").to_string());
                }
            }
        }
        if self.processes.contains_key("machine") {
            for dir in self.directories(&id).map(|dir| dir.join("vcpu")).filter(|dir| dir.is_dir()) {
                let list = dir.join(if dir.join("tasks").exists() { "tasks" } else { "cgroup.threads" });
                for tid in threads_of(self.pid("machine")).into_keys() {
                    _ = fs::write(&list, tid.to_string());
                }
                for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                    _ = fs::remove_dir(entry.path());
                }
            }
        }
        for (key, value) in before.iter().filter(|(key, value)| now.get(*key) != Some(value)) {
            if let Some((point, file)) = key.split_once('|').filter(|(point, _)| point.starts_with('/')) {
                _ = fs::write(format!("{point}/ringfence/{id}/{file}"), value);
            }
        }
        self.seen() == *before
    }

    /// Nothing is left: no process, no directory, no file.
    pub fn clear(&mut self) {
        for id in [self.sandbox.id.clone(), self.other.id.clone()] {
            let recorded = self.sandbox.state_dir().join(format!("{id}.json")).exists();
            if recorded || self.directories(&id).next().is_some() {
                _ = self.does(&["rm", &id, "--kill"]);
            }
            for dir in self.directories(&id).collect::<Vec<_>>() {
                remove(&dir);
            }
        }
        for (_, mut child) in std::mem::take(&mut self.processes) {
            let pid = child.id();
            _ = child.kill();
            _ = child.wait();
            until("it has ended", || !is_alive(pid));
        }
        _ = fs::remove_dir_all(self.sandbox.state_dir());
    }

    /// Lets what may be in between in one place count as the same as in another: which thread is in which part.
    pub fn blurred(seen: &Seen) -> Seen {
        let mut blurred = Seen::new();
        for (key, value) in seen {
            let Some((whole, _)) = key.strip_prefix("who ").and_then(|key| key.split_once('|')) else {
                // Inside, in whatever part.
                if key.starts_with("place ") && value.lines().all(|line| line.contains("/ringfence/")) {
                    continue;
                }
                // The limits of each vCPU come and go with their threads, and so does what is recorded of them.
                if !(key.contains("|vcpu/") || key == "record") {
                    blurred.insert(key.clone(), value.clone());
                }
                continue;
            };
            let all = blurred.entry(format!("who {whole}")).or_default();
            let mut names: Vec<&str> =
                all.split(' ').chain(value.split(' ')).filter(|name| !name.is_empty()).collect();
            names.sort_unstable();
            *all = names.join(" ");
        }
        blurred
    }

    pub fn seen(&self) -> Seen {
        let mut seen = Seen::new();
        let mut names = BTreeMap::new();
        for (name, child) in &self.processes {
            let place = fs::read_to_string(format!("/proc/{}/cgroup", child.id()));
            let place = place.ok().filter(|_| is_alive(child.id())).unwrap_or_else(|| "ended".to_owned());
            seen.insert(format!("place {name}"), place);
            for (tid, comm) in threads_of(child.id()) {
                names.insert(tid, if tid == child.id() { (*name).to_owned() } else { comm });
            }
        }
        for id in [&self.sandbox.id, &self.other.id] {
            for one in &self.hierarchies {
                let dir = one.point.join("ringfence").join(id);
                if dir.is_dir() {
                    look(
                        &dir,
                        &format!(
                            "{}{}|",
                            one.point.display(),
                            if *id == self.other.id { " other" } else { "" }
                        ),
                        "",
                        &names,
                        &mut seen,
                    );
                }
            }
        }
        for entry in fs::read_dir(self.sandbox.state_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().replace(&self.sandbox.id, "ID");
            seen.insert(format!("file {name}"), String::new());
        }
        let record = self.sandbox.state_dir().join(format!("{}.json", self.sandbox.id));
        if let Ok(text) = fs::read_to_string(record) {
            let mut record: Value = serde_json::from_str(&text).expect("a record is whole");
            let fields = record.as_object_mut().expect("a record");
            for numbered in ["device_program", "vcpus", "report", "mark", "inodes"] {
                fields.remove(numbered);
            }
            seen.insert("record".to_owned(), record.to_string());
        }
        seen
    }

    /// What the command finds different from what is recorded.
    pub fn diff(&self) -> String {
        let done = self.does(&["diff", &self.sandbox.id]);
        if done.code == 0 { String::new() } else { format!("{} {}", done.stdout, done.stderr) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The names of the threads of a process.
fn threads_of(pid: u32) -> BTreeMap<u32, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| {
            let tid = task.file_name().to_str()?.parse().ok()?;
            Some((tid, fs::read_to_string(task.path().join("comm")).ok()?.trim_end().to_owned()))
        })
        .collect()
}

/// Looks at a directory and those below.
fn look(dir: &Path, hierarchy: &str, below: &str, names: &BTreeMap<u32, String>, seen: &mut Seen) {
    seen.insert(format!("dir {hierarchy}{below}"), String::new());
    let mut who = BTreeSet::new();
    for list in ["tasks", "cgroup.threads", "cgroup.procs"] {
        let Ok(text) = fs::read_to_string(dir.join(list)) else { continue };
        who.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        break;
    }
    let who: Vec<_> =
        who.iter().map(|tid| names.get(tid).cloned().unwrap_or_else(|| "somebody".to_owned())).collect();
    seen.insert(format!("who {hierarchy}{below}"), who.join(" "));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            look(&entry.path(), hierarchy, &format!("{below}{name}/"), names, seen);
        } else if metadata.permissions().mode() & 0o200 != 0
            && is_a_setting(&name)
            && let Ok(value) = fs::read_to_string(entry.path())
        {
            seen.insert(format!("{hierarchy}{below}{name}"), value.trim_end().to_owned());
        }
    }
}

/// Removes a directory with all that lives in it.
fn remove(dir: &Path) {
    for _ in 0..200 {
        _ = fs::write(dir.join("freezer.state"), "THAWED");
        for list in ["cgroup.procs", "cgroup.threads"] {
            for pid in fs::read_to_string(dir.join(list)).unwrap_or_default().lines() {
                _ = pid.parse().map(|pid| send(pid, rustix::process::Signal::KILL));
            }
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                remove(&entry.path());
            }
        }
        if fs::remove_dir(dir).is_ok() || !dir.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
