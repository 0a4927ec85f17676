//! One cgroup, in all hierarchies of the host.

mod caller;
mod command;
mod destroy;
mod freeze;
mod leaf;
pub(crate) mod mark;
pub(crate) mod ownership;
mod signal;
mod slice;
mod tasks;
mod tree;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

pub use command::{Child, Command, null};
pub use destroy::{Failures, Outcome, Remaining};
pub(crate) use signal::signal_all;
pub(crate) use slice::stop_default_slice;
pub use tasks::Task;
pub(crate) use tree::{descend, members, unless_removed};

use crate::devices::filter::{DeviceFilter, Earlier, Override};
use crate::devices::{DevicePolicy, runtime_defaults};
use crate::driver::cgroupfs::carry_out_and;
use crate::driver::dirs::Dirs;
use crate::driver::observe::plan_on;
use crate::driver::systemd::Processes;
use crate::driver::undo::Origin;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Hierarchy, Host, Version};
use crate::kernel::descriptors::Share;
use crate::kernel::dir::CgroupDir;
use crate::kernel::proc::ProcessIdentity;
use crate::kernel::spawn::{Inside, Stage, join_self};
use crate::kernel::{probe, proc, spawn};
use crate::path::{CgroupPath, EVACUATED, SystemdName};
use crate::plan::{self, Action, DeviceWant, Dir, UnitWant, Unsupported, Want};
use crate::report::Report;
use crate::resources::{CpuSet, Resources};
use crate::sandbox::begun::{Ahead, UNRECORDED};
use crate::stats::{Source, StatsReader};

/// The controllers that statistics need, where nothing else is configured.
pub const STATISTICS: &[Controller] =
    &[Controller::Cpu, Controller::Memory, Controller::Io, Controller::Pids];

/// A creation meets a vanishing parent more than once only under a storm of other creations and removals.
const CREATE_RETRIES: u32 = 8;

/// How long freezing may take before systemd changes the unit.
const FREEZE_FOR_SYSTEMD: Duration = Duration::from_secs(5);

/// The report line, after the reason, for a cgroup that is not frozen while systemd changes its unit.
const NOT_FROZEN: &str = ", so that it is not frozen while systemd resets the list of devices: for a moment, devices that \
                          are allowed before and after are refused";

/// One cgroup: a directory of the same path in every v1 hierarchy, or the one directory of v2, or both.
///
/// Holds an open descriptor for each directory and for v2's device program, as long as all that the process holds of
/// sandboxes and their statistics is no more than half of the descriptors that it may have (`RLIMIT_NOFILE`). One that is
/// beyond that opens them with each use, and knows by the inodes that the directories are the same. All methods take `&self`
/// and block.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) host: Host,
    /// Below the root of each hierarchy.
    pub(crate) path: Arc<str>,
    pub(crate) dirs: Vec<(Dir, Arc<CgroupDir>)>,
    /// With it, the directories and the device program stay open.
    share: Option<Share>,
    /// Made by us, or restored: processes inside are ours.
    pub(crate) ours: bool,
    /// The mark that its directories carry; none if it was opened by its path alone, whoever made it.
    pub(crate) mark: Option<Arc<str>>,
    /// Its directories when they were made: hierarchy and inode.
    pub(crate) inodes: Vec<(usize, u64)>,
    /// The unit of systemd that carries it.
    pub(crate) unit: Option<SystemdName>,
    /// Our device program (v2), as far as this process knows of one.
    pub(crate) filter: Mutex<Filter>,
    /// Where there is no directory: what was started.
    pub(crate) started: Mutex<Vec<ProcessIdentity>>,
}

/// What a process may join that it is not to join in passing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JoinOptions {
    /// A frozen cgroup: the process stops there until it is thawed.
    pub frozen: bool,
    /// A cgroup that was not made here and in which processes live.
    pub foreign: bool,
    /// Process 1, a kernel thread, or the first process of another PID namespace: moving it harms the machine, or a container.
    pub system: bool,
}

/// Our device program on v2. A process that attached it can replace it without CAP_SYS_ADMIN; another one cannot.
#[derive(Debug, Default)]
pub(crate) enum Filter {
    #[default]
    Unknown,
    /// Its number, from a state.
    Id(u32),
    Held(DeviceFilter),
}

impl Filter {
    pub(crate) fn as_earlier(&self) -> Earlier<'_> {
        match self {
            Self::Unknown => Earlier::Unknown,
            Self::Id(id) => Earlier::Id(*id),
            Self::Held(filter) => Earlier::Held(filter),
        }
    }

    pub(crate) fn id(&self) -> Option<u32> {
        match self {
            Self::Unknown => None,
            Self::Id(id) => Some(*id),
            Self::Held(filter) => Some(filter.id()),
        }
    }
}

/// Keeps none of the directories open that can be found again.
fn let_go(host: &Host, dirs: &mut [(Dir, Arc<CgroupDir>)]) {
    for (dir, open) in dirs {
        let let_go = host.root(dir.hierarchy).and_then(|root| open.let_go(&root, &dir.path));
        if let Ok(let_go) = let_go {
            *open = Arc::new(let_go);
        }
    }
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy and writes the limits; nothing is left behind on failure.
    ///
    /// Device rules are taken on top of the runtime defaults; without any rule everything else is denied.
    ///
    /// A relative path goes below `/ringfence`, or, for a process without privileges, below `ringfence` in what is
    /// delegated to it. If nothing is, there is no directory, and all of it is in the report.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if there is such a cgroup in any hierarchy; otherwise the setting that failed.
    ///
    /// With systemd, a scope does not live without a process: [`Cgroup::start`] makes one. A slice does.
    pub fn create(host: &Host, path: &CgroupPath, resources: &Resources) -> Result<(Self, Report)> {
        Self::start(host, path, resources, &[])
    }

    /// [`Cgroup::create`], and these processes join it; with systemd they are in it from the start.
    ///
    /// # Errors
    /// Those of [`Cgroup::create`] and of [`Cgroup::join`]: the processes are then where they were.
    pub fn start(
        host: &Host,
        path: &CgroupPath,
        resources: &Resources,
        pids: &[u32],
    ) -> Result<(Self, Report)> {
        let (policy, mut report) = DevicePolicy::with_base(&resources.devices, &runtime_defaults(), &[])?;
        refuse_system(pids)?;
        let path = &host.with_slice(path);
        let resolved = host.locate(path, None, None)?;
        let host = &host.as_seen_at(&resolved);
        let mark = mark::new_cgroup_mark()?;
        let description = mark::describe(&format!("Ringfence cgroup {path}"), &mark);
        let unit = path.as_systemd().map(|name| UnitWant { name, description: &description });
        let devices = DeviceWant { before: None, policy: &policy, overriding: Override::Refuse };
        let nothing = Resources::default();
        let want = Want {
            create: true,
            devices: Some(devices),
            statistics: STATISTICS,
            unit,
            mark: Some(&mark),
            ..Want::change(&resolved, &nothing, resources)
        };
        let (cgroup, created) = Self::create_as(host, &want, Processes::Running(pids))?;
        report.append(created);
        if !path.is_systemd()
            && let Err(error) = cgroup.join_all(pids)
        {
            _ = cgroup.remove_where_empty();
            return Err(error);
        }
        Ok((cgroup, report))
    }

    /// Plans and makes what is wanted. Begins again where a parent vanished meanwhile, which the last other sandbox in it
    /// takes along, or came back empty.
    pub(crate) fn create_as(
        host: &Host,
        want: &Want<'_>,
        processes: Processes<'_>,
    ) -> Result<(Self, Report)> {
        Self::create_and(host, want, processes, &mut || Ok(()))
    }

    /// The same, and then does `also`, whose failure undoes it.
    pub(crate) fn create_and(
        host: &Host,
        want: &Want<'_>,
        processes: Processes<'_>,
        also: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Self, Report)> {
        if let Some(unit) = want.unit.filter(|unit| unit.name.is_slice() != processes.pids().is_empty()) {
            return Err(wrong_for_unit(unit.name));
        }
        let in_default = want.unit.filter(|unit| unit.name.is_in_default_slice());
        let _kept = in_default.and_then(|_| slice::keep(host, want.path));
        let slice = in_default.and_then(|_| slice::to_be_made(host, want.path));
        let created = Self::create_again(host, want, processes, also)?;
        slice.iter().for_each(|slice| slice::mark_made(host, slice));
        Ok(created)
    }

    fn create_again(
        host: &Host,
        want: &Want<'_>,
        processes: Processes<'_>,
        also: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Self, Report)> {
        // Those that wait are killed where a unit that had started for them could not be had.
        let are_there = || processes.pids().iter().all(|pid| proc::is_running(*pid));
        for _ in 0..CREATE_RETRIES {
            match Self::try_create(host, want, processes, also) {
                Err(error)
                    if error.is_one_of(&[Errno::NOENT, Errno::NODEV, Errno::ACCESS]) && are_there() => {}
                done => return done,
            }
        }
        Self::try_create(host, want, processes, also)
    }

    fn try_create(
        host: &Host,
        want: &Want<'_>,
        processes: Processes<'_>,
        also: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Self, Report)> {
        let mut dirs = Dirs::new(host, Vec::new());
        let plan = plan_on(host, &mut dirs, want)?;
        let mut report = plan.report().clone();
        let mut opened = Vec::new();
        let mut also = |dirs: &mut Dirs<'_>| {
            opened = Self::open_all(host, want.path, dirs)?;
            also()
        };
        let done = carry_out_and(&plan, &mut dirs, Earlier::Unknown, processes, UNRECORDED, &mut also)?;
        report.append(done.report);
        let mut cgroup = Self::with(host.clone(), want.path, opened);
        cgroup.ours = true;
        cgroup.unit = want.unit.map(|unit| unit.name.clone());
        cgroup.filter = Mutex::new(cgroup.kept(done.filter));
        cgroup.mark = want.mark.map(Arc::from);
        let whole = done.made.iter().filter(|(dir, _)| *dir.path == *want.path);
        cgroup.inodes = whole.map(|(dir, inode)| (dir.hierarchy, *inode)).collect();
        cgroup.mark_unit();
        Ok((cgroup, report))
    }

    /// Opens a cgroup that exists in at least one hierarchy, by its path alone.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it exists in none.
    pub fn open(host: &Host, path: &CgroupPath) -> Result<Self> {
        let path = &host.with_slice(path);
        let resolved = host.locate(path, None, None)?;
        if resolved.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, host.why_nothing()).with_value(path));
        }
        let mut cgroup = Self::open_at(host, &resolved)?;
        cgroup.unit = path.as_systemd().cloned();
        Ok(cgroup)
    }

    /// `""` is the path of what has no cgroup.
    pub(crate) fn open_at(host: &Host, path: &str) -> Result<Self> {
        let dirs = Self::open_all(host, path, &mut Dirs::new(host, Vec::new()))?;
        if dirs.is_empty() && !path.is_empty() {
            return Err(
                Error::new(ErrorKind::NotFound, "there is no such cgroup in any hierarchy").with_value(path)
            );
        }
        Ok(Self::with(host.as_seen_at(path), path, dirs))
    }

    fn with(host: Host, path: &str, mut dirs: Vec<(Dir, Arc<CgroupDir>)>) -> Self {
        let is_v2 = |(dir, _): &(Dir, _)| host.version_of(dir.hierarchy) == Version::V2;
        let has_filter = host.hierarchy_of(Controller::Devices).is_none() && dirs.iter().any(is_v2);
        let share = Share::of(dirs.len() + usize::from(has_filter));
        if share.is_none() {
            let_go(&host, &mut dirs);
        }
        Self { share, ..Self::for_now(host, path.into(), dirs) }
    }

    /// One that is not kept: it needs no share.
    fn for_now(host: Host, path: Arc<str>, dirs: Vec<(Dir, Arc<CgroupDir>)>) -> Self {
        Self {
            host,
            path,
            dirs,
            share: None,
            ours: false,
            mark: None,
            inodes: Vec::new(),
            unit: None,
            filter: Mutex::default(),
            started: Mutex::default(),
        }
    }

    /// What is kept of a device program: without a share its number alone, where that is enough for this process.
    fn kept(&self, filter: Option<DeviceFilter>) -> Filter {
        match filter {
            Some(filter) if self.share.is_none() && filter.is_found_by_its_number() => {
                Filter::Id(filter.id())
            }
            filter => filter.map_or(Filter::Unknown, Filter::Held),
        }
    }

    /// Whether it has a directory; all that is known of one without is what was [`started`](Self::started).
    pub(crate) fn exists(&self) -> bool {
        !self.dirs.is_empty()
    }

    /// Whether it has a directory in the hierarchy of a controller.
    pub(crate) fn has_place_of(&self, controller: Controller) -> bool {
        let hierarchy = self.host.hierarchy_of(controller).map(|(index, _)| index);
        self.dirs.iter().any(|(dir, _)| Some(dir.hierarchy) == hierarchy)
    }

    /// The processes that were started where no cgroup tells which they are, and still run.
    pub(crate) fn started(&self) -> Vec<ProcessIdentity> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.retain(ProcessIdentity::is_alive);
        started.clone()
    }

    /// The directories of the path that exist. `""` is no cgroup, and never the root.
    fn open_all(host: &Host, path: &str, open: &mut Dirs<'_>) -> Result<Vec<(Dir, Arc<CgroupDir>)>> {
        let (path, mut dirs) = (Arc::<str>::from(path), Vec::with_capacity(host.hierarchies.len()));
        let hierarchies = if path.is_empty() { 0 } else { host.hierarchies.len() };
        for hierarchy in 0..hierarchies {
            let dir = Dir::new(hierarchy, Arc::clone(&path));
            match open.take(&dir) {
                Ok(opened) => dirs.push((dir, opened)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(dir.not_opened(host, errno)),
            }
        }
        Ok(dirs)
    }

    /// Changes limits of a cgroup: all of them or none.
    ///
    /// Device rules are not changed here, and reported: what a cgroup may open is known to its [`Sandbox`](crate::Sandbox).
    ///
    /// # Errors
    /// The setting that failed; everything is then as it was. [`ErrorKind::NotFound`] where its unit has ended, though another
    /// may have the name by now.
    pub fn change(&self, change: &Resources) -> Result<Report> {
        if self.unit.is_some() && !self.is_there() {
            return Err(Error::new(ErrorKind::NotFound, "the cgroup was removed").with_value(&self.path));
        }
        let unit = self.unit.as_ref().map(|name| UnitWant { name, description: "" });
        let nothing = Resources::default();
        let (mut report, _) = self.change_as(&Want { unit, ..Want::change(&self.path, &nothing, change) })?;
        if !change.devices.is_empty() {
            let rules = format!("{} rules", change.devices.len());
            report.add("devices", rules, "what this cgroup may open is not known here: change its sandbox");
        }
        Ok(report)
    }

    /// Makes a change; what could not be done, and the settings that were tried.
    pub(crate) fn change_as(&self, want: &Want<'_>) -> Result<(Report, BTreeSet<Cow<'static, str>>)> {
        self.change_and(want, UNRECORDED, &mut || Ok(()))
    }

    /// The same, and then does `also`, whose failure undoes it; what takes it back goes `ahead`.
    pub(crate) fn change_and(
        &self,
        want: &Want<'_>,
        ahead: Ahead<'_>,
        also: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Report, BTreeSet<Cow<'static, str>>)> {
        let mut dirs = Dirs::of(self);
        let plan = plan_on(&self.host, &mut dirs, want)?;
        let mut report = plan.report().clone();
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let tells_systemd =
            plan.steps().iter().any(|step| matches!(step.action, Action::SetProperties { .. }));
        let stopped = match tells_systemd {
            true => self.stop_for_systemd(plan.unsupported, &mut report)?,
            false => None,
        };
        let mut also = |_: &mut Dirs<'_>| also();
        let done = carry_out_and(&plan, &mut dirs, filter.as_earlier(), Processes::NONE, ahead, &mut also);
        drop(stopped);
        let done = done?;
        if done.filter.is_some() {
            *filter = self.kept(done.filter);
        }
        report.append(done.report);
        Ok((report, plan.writes().filter_map(|step| step.setting.clone()).collect()))
    }

    /// Freezes the cgroup (v1) until the guard is dropped, unless it is frozen already: while systemd changes the unit, it resets
    /// the device list, and allowed devices would be refused for a moment. Where the cgroup cannot be frozen, the report says so.
    pub(crate) fn stop_for_systemd(
        &self,
        unsupported: Unsupported,
        report: &mut Report,
    ) -> Result<Option<Stopped<'_>>> {
        if !plan::resets_devices(&self.host) || self.is_frozen()? {
            return Ok(None);
        }
        let why = if self.freezes_caller()? {
            "the calling process is inside"
        } else {
            match self.freeze(FREEZE_FOR_SYSTEMD) {
                Ok(()) => return Ok(Some(Stopped(self))),
                Err(error) if error.kind() == ErrorKind::TimedOut => "what runs inside does not stop",
                Err(error) => return Err(error),
            }
        };
        let mut unfrozen = Report::default();
        unfrozen.add("devices", &self.path, format!("{why}{NOT_FROZEN}"));
        unsupported.mind(&unfrozen)?;
        report.append(unfrozen);
        Ok(None)
    }

    /// The number of our device program (v2).
    pub(crate) fn filter_id(&self) -> Option<u32> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Controller → directory; the v2 tree is `unified`, a v1 hierarchy without controllers `name=NAME`.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let mut paths = BTreeMap::new();
        for (dir, _) in &self.dirs {
            let Some(hierarchy) = self.host.hierarchies.get(dir.hierarchy) else { continue };
            let full = dir.full(&self.host);
            match (hierarchy.version, &hierarchy.name) {
                (Version::V2, _) => drop(paths.insert("unified".to_owned(), full)),
                (Version::V1, Some(name)) => drop(paths.insert(format!("name={name}"), full)),
                (Version::V1, None) => {
                    let names =
                        hierarchy.controllers.iter().map(|controller| controller.v1_name().to_owned());
                    paths.extend(names.map(|name| (name, full.clone())));
                }
            }
        }
        paths
    }

    pub(crate) fn version(&self, dir: &Dir) -> Version {
        self.host.version_of(dir.hierarchy)
    }

    /// A directory of the cgroup, if it was there when the cgroup was opened.
    pub(crate) fn opened(&self, dir: &Dir) -> Option<&Arc<CgroupDir>> {
        self.dirs.iter().find(|(known, _)| known == dir).map(|(_, open)| open)
    }

    /// The directory in the v2 tree.
    pub(crate) fn unified(&self) -> Option<&Arc<CgroupDir>> {
        self.dirs.iter().find(|(dir, _)| self.version(dir) == Version::V2).map(|(_, open)| open)
    }

    /// The directory in the hierarchy of a controller.
    pub(crate) fn dir_of(&self, controller: Controller) -> Option<(Version, &Arc<CgroupDir>)> {
        let (index, hierarchy) = self.host.hierarchy_of(controller)?;
        let (_, open) = self.dirs.iter().find(|(dir, _)| dir.hierarchy == index)?;
        Some((hierarchy.version, open))
    }

    /// The directories of a cgroup below this one.
    pub(crate) fn directories_of(&self, path: &str) -> Result<Vec<(Dir, Arc<CgroupDir>)>> {
        Self::open_all(&self.host, path, &mut Dirs::new(&self.host, Vec::new()))
    }

    /// The place of a part, for whoever goes there: its directory in each hierarchy that has one, else that of the whole.
    pub(crate) fn seat(&self, part: &str) -> Result<Self> {
        self.refuse_damaged()?;
        let mut seat = Self::for_now(self.host.clone(), Arc::clone(&self.path), self.dirs.clone());
        (seat.ours, seat.unit) = (true, self.unit.clone());
        for (dir, open) in &mut seat.dirs {
            if !self.host.has_parts(dir.hierarchy) {
                continue;
            }
            let place = Dir::new(dir.hierarchy, part);
            match open.open_dir(self.below(part).unwrap_or_default()) {
                Ok(opened) => (*dir, *open) = (place, Arc::new(opened)),
                Err(Errno::NOENT) => return Err(ownership::damaged(&place, &self.host)),
                Err(errno) => return Err(place.not_opened(&self.host, errno)),
            }
        }
        Ok(seat)
    }

    /// Joins the parts alone: the process is in the whole already.
    pub(crate) fn take_seat(&self, pid: u32) -> Result<()> {
        let mut parts = self.dirs.iter().filter(|(dir, _)| dir.path != self.path);
        parts.try_for_each(|place| self.enter(place, pid))
    }

    /// The processes that are inside with all their threads: as listed in the hierarchies in which threads are not placed
    /// singly (v1).
    pub(crate) fn whole_processes(&self) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        let is_of_processes = |(dir, _): &&(Dir, Arc<CgroupDir>)| {
            self.version(dir) == Version::V2 || !self.host.has_parts(dir.hierarchy)
        };
        for (dir, open) in self.dirs.iter().filter(is_of_processes) {
            members(open, self.version(dir), &mut pids)
                .map_err(|errno| Error::kernel("cannot list the processes", dir.full(&self.host), errno))?;
        }
        Ok(pids)
    }

    /// The processes in the cgroup and in cgroups below it.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut pids: BTreeSet<u32> = self.started().iter().map(|process| process.pid).collect();
        for (dir, open) in &self.dirs {
            members(open, self.version(dir), &mut pids)
                .map_err(|errno| Error::kernel("cannot list the processes", dir.full(&self.host), errno))?;
        }
        Ok(pids)
    }

    /// Joins a running process with all its threads, in every hierarchy; on failure it is put back where it was.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] where the cgroup is frozen, or holds processes and is not ours: see [`Cgroup::join_with`].
    pub fn join(&self, pid: u32) -> Result<()> {
        self.join_with(pid, JoinOptions::default())
    }

    /// Joins running processes: all of them, or none.
    pub(crate) fn join_all(&self, pids: &[u32]) -> Result<()> {
        if let Some(first) = pids.first() {
            // Who may be moved at all was seen to before.
            self.admits(*first, JoinOptions { system: true, ..JoinOptions::default() })?;
        }
        let origins = pids.iter().map(|pid| Origin::of(*pid)).collect::<Result<Vec<_>>>()?;
        for (position, origin) in origins.iter().enumerate() {
            if let Err(error) = self.move_in(origin) {
                origins.iter().take(position).for_each(|origin| _ = origin.put_back(&self.host));
                return Err(error);
            }
        }
        Ok(())
    }

    /// [`Cgroup::join`], also where it would be refused.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] for what the options do not allow.
    pub fn join_with(&self, pid: u32, options: JoinOptions) -> Result<()> {
        self.admits(pid, options)?;
        self.move_in(&Origin::of(pid)?)
    }

    /// Whether a process may join it in passing.
    fn admits(&self, pid: u32, options: JoinOptions) -> Result<()> {
        if !options.system {
            refuse_system(&[pid])?;
        }
        self.refuse_slice()?;
        self.refuse_damaged()?;
        if !self.exists() {
            let error = Error::new(ErrorKind::Unsupported, self.host.why_nothing());
            return Err(error.with_setting("pid").with_value(pid));
        }
        if !options.frozen {
            self.refuse_frozen()?;
        }
        if !options.foreign && !self.ours && !self.processes()?.is_empty() {
            let why = "the cgroup holds processes and was not made here: joining it is refused";
            return Err(Error::new(ErrorKind::Busy, why).with_value(&self.path));
        }
        Ok(())
    }

    /// Joins a process; on failure it is put back where it was.
    fn move_in(&self, origin: &Origin) -> Result<()> {
        self.take_in(origin.pid).inspect_err(|_| _ = origin.put_back(&self.host))
    }

    fn take_in(&self, pid: u32) -> Result<()> {
        let attach = |unit: &SystemdName| self.host.manager()?.attach(&unit.unit(), &[pid]);
        if let Some(unit) = self.unit_of_user() {
            let attached = match self.leaf()? {
                None => attach(unit),
                Some(_) => {
                    self.host.manager()?.attach_below(&unit.unit(), &format!("/{}", EVACUATED), &[pid])
                }
            };
            attached.map_err(|error| error.with_setting("pid").with_value(pid))?;
            return self.take_seat(pid);
        }
        // It may be the last of another unit.
        let Some(unit) = self.unit_with_v1() else {
            return self.in_order_of_leaving().try_for_each(|place| self.enter(place, pid));
        };
        let (managed, own): (Vec<_>, Vec<_>) =
            self.in_order_of_leaving().partition(|(dir, _)| self.is_managed(dir.hierarchy));
        own.into_iter().try_for_each(|place| self.enter(place, pid))?;
        // It refuses kernel threads and units that are not delegated, and says yes where a v1 controller refuses.
        _ = attach(unit);
        let now = Origin::of(pid)?;
        let mut missed = managed.into_iter().filter(|(dir, _)| !now.is_in(&self.host, dir));
        missed.try_for_each(|place| self.enter(place, pid))
    }

    fn enter(&self, (dir, open): &(Dir, Arc<CgroupDir>), pid: u32) -> Result<()> {
        let joined = match open.join(pid) {
            Err(Errno::BUSY) if self.version(dir) == Version::V2 => match self.leaf()? {
                Some(leaf) => leaf.join(pid),
                None => Err(Errno::BUSY),
            },
            joined => joined,
        };
        joined.map_err(|errno| join_error(errno, pid).with_path(dir.full(&self.host).join("cgroup.procs")))
    }

    fn in_order_of_leaving(&self) -> impl Iterator<Item = &(Dir, Arc<CgroupDir>)> {
        let order = plan::in_order_of_leaving(&self.host);
        order.filter_map(|index| self.dirs.iter().find(|(dir, _)| dir.hierarchy == index))
    }

    /// Starts a command inside: born there on v2, joined by itself before exec on v1; where systemd is to move it in, it waits
    /// for that before exec. It never runs outside.
    ///
    /// # Errors
    /// What could not be done, with the errno; a program that cannot be found or executed has a path and ENOENT or EACCES.
    pub fn spawn(&self, command: &Command) -> Result<Child> {
        self.refuse_slice()?;
        self.refuse_damaged()?;
        self.refuse_frozen()?;
        // What is born inside was never among those that systemd may move.
        let born_inside = self.can_be_born_inside();
        let may_be_born = born_inside && self.unified().is_some();
        let is_moved_about = self.unit_with_v1().is_some();
        if self.unit_of_user().is_some() || is_moved_about && !may_be_born {
            return self.spawn_held(command);
        }
        let image = command.image()?;
        let start = |born_inside: bool, leaf: Option<&CgroupDir>| {
            let unified = self.unified().map(|open| leaf.unwrap_or(open)).filter(|_| born_inside);
            let unified = unified.map(CgroupDir::descriptor).transpose();
            let unified =
                unified.map_err(|errno| Error::kernel("cannot open the cgroup", &*self.path, errno))?;
            let join = self.join_files(born_inside, leaf)?;
            let inside = Inside { unified: unified.as_ref().map(AsFd::as_fd), join: &join };
            Ok(spawn::spawn(&image, &inside))
        };
        // `None` where only systemd may move it in.
        let attempt = |leaf: Option<&CgroupDir>| match start(born_inside, leaf)? {
            // A seccomp filter that came after the host was looked at denies clone3.
            Err((Stage::Born, _) | (Stage::Fork, Errno::NOSYS | Errno::PERM)) if born_inside => {
                // It can still join by itself.
                if is_moved_about { Ok(None) } else { start(false, leaf).map(Some) }
            }
            started => Ok(Some(started)),
        };
        let mut started = attempt(None)?;
        if let Some(Err((Stage::Fork | Stage::Join, Errno::BUSY))) = &started
            && let Some(leaf) = self.leaf()?
        {
            started = attempt(Some(&leaf))?;
        }
        let Some(started) = started else { return self.spawn_held(command) };
        let (pid, pidfd) = started.map_err(|(stage, errno)| command.failed(stage, errno))?;
        let child = Child::new(pid, pidfd);
        if !self.exists() {
            // One that has ended already is none.
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            started.extend(ProcessIdentity::of(child.pid()));
        }
        Ok(child)
    }

    /// Whether clone3(2) can make a child inside that is confined to the CPUs and memory nodes of this cgroup. On kernels
    /// that do not apply them, only if the caller has no others; else the child has to join, which applies them.
    fn can_be_born_inside(&self) -> bool {
        if !self.host.capabilities.clone_into_cgroup {
            return false;
        }
        let unified = self.dirs.iter().find(|(dir, _)| self.version(dir) == Version::V2);
        let Some((dir, _)) = unified.filter(|_| !probe::clone_applies_cpuset()) else { return true };
        let sets = [
            ("cpuset.cpus.effective", proc::own_list("Cpus_allowed_list")),
            ("cpuset.mems.effective", proc::own_list("Mems_allowed_list")),
        ];
        sets.iter().all(|(file, own)| {
            // A cgroup for which the controller is not enabled has what its nearest ancestor has.
            let mut levels = std::iter::successors(Some(dir.clone()), Dir::parent);
            let found = levels.find_map(|dir| self.host.open(dir.hierarchy, &dir.path).ok()?.read(file).ok());
            let Some(found) = found else { return true };
            let Ok(set) = found.trim().parse::<CpuSet>() else { return false };
            own.as_ref().is_some_and(|own| own.is_subset(&set))
        })
    }

    /// The same, by a process that waits until it has been moved in.
    fn spawn_held(&self, command: &Command) -> Result<Child> {
        let waiting = command.hold()?;
        self.take_in(waiting.pid())?;
        command.go(waiting)
    }

    /// `cgroup.procs` of each hierarchy, open for writing; without v2's where a process is born into it, and with that of a
    /// `leaf` where the v2 cgroup takes no processes.
    fn join_files(&self, skip_unified: bool, leaf: Option<&CgroupDir>) -> Result<Vec<OwnedFd>> {
        let wanted = self.dirs.iter().filter(|(dir, _)| !(skip_unified && self.version(dir) == Version::V2));
        wanted
            .map(|(dir, open)| {
                let place = leaf.filter(|_| self.version(dir) == Version::V2).unwrap_or(open);
                place.open("cgroup.procs", OFlags::WRONLY).map_err(|errno| {
                    let why = match errno {
                        Errno::ACCESS | Errno::PERM => NOT_WITHIN_DELEGATED,
                        _ => "cannot open for joining",
                    };
                    Error::kernel(why, dir.full(&self.host).join("cgroup.procs"), errno)
                })
            })
            .collect()
    }

    /// A closure for `pre_exec` of std's and tokio's `Command`: the child joins the cgroup by itself before exec.
    ///
    /// It only writes to descriptors that are opened here, so that it is async-signal-safe.
    ///
    /// Not as sure as [`Cgroup::spawn`] where systemd has v1 hierarchies: should it happen to move the processes of the caller's
    /// own unit about at this moment, it may take the child along. What it has begun is waited for here.
    pub fn join_hook(&self) -> Result<impl FnMut() -> std::io::Result<()> + Send + Sync + 'static + use<>> {
        self.refuse_damaged()?;
        self.refuse_frozen()?;
        if self.unit_with_v1().is_some() {
            self.host.manager()?.settle()?;
        }
        let files = self.join_files(false, self.leaf()?.as_deref())?;
        Ok(move || files.iter().try_for_each(|file| join_self(file.as_fd()).map_err(std::io::Error::from)))
    }

    /// A reader of statistics that keeps its descriptors between samples.
    pub fn stats_reader(&self) -> Result<StatsReader> {
        let mut sources = Vec::with_capacity(self.dirs.len());
        for (dir, open) in &self.dirs {
            let Some(hierarchy) = self.host.hierarchies.get(dir.hierarchy) else { continue };
            let Hierarchy { version, noprefix, .. } = *hierarchy;
            let root = self.host.root(dir.hierarchy);
            let root = root.map_err(|errno| {
                Error::kernel("cannot open the root of the hierarchy", &hierarchy.root, errno)
            })?;
            let controllers = self.counted_in(hierarchy);
            sources.push(Source { version, controllers, noprefix, dir: open, root, path: &dir.path });
        }
        StatsReader::open(&sources)
    }

    /// The controllers whose statistics are in a hierarchy. The v2 tree accounts for CPU time also where it has no
    /// controller `cpu`, as in a part of it that was delegated without.
    fn counted_in(&self, hierarchy: &Hierarchy) -> Vec<Controller> {
        let mut controllers = hierarchy.controllers.clone();
        if hierarchy.version == Version::V2
            && !controllers.contains(&Controller::Cpu)
            && self.host.hierarchy_of(Controller::Cpuacct).is_none()
        {
            controllers.push(Controller::Cpu);
        }
        controllers
    }

    /// A unit of a user's systemd: it moves processes in from anywhere, which the user themselves may not.
    fn unit_of_user(&self) -> Option<&SystemdName> {
        self.unit.as_ref().filter(|_| self.host.rootless)
    }

    /// A unit of a systemd that moves processes about: on v1 it takes those of a unit from one cgroup to another when
    /// controllers are needed or not any more. It lists them, and moves one after the other, and with them who left meanwhile,
    /// unless it has itself moved them.
    fn unit_with_v1(&self) -> Option<&SystemdName> {
        let is_v1 = |known: &Hierarchy| known.version == Version::V1 && plan::is_managed(known);
        self.unit.as_ref().filter(|_| !self.host.rootless && self.host.hierarchies.iter().any(is_v1))
    }

    fn refuse_slice(&self) -> Result<()> {
        match self.unit.as_ref().filter(|unit| unit.is_slice()) {
            Some(slice) => Err(wrong_for_unit(slice)),
            None => Ok(()),
        }
    }

    /// Whether its directory is still there: that of a unit in the hierarchy in which systemd keeps it. One of v1's others
    /// outlasts the unit while there are threads in it of a process that is elsewhere.
    pub(crate) fn is_there(&self) -> bool {
        let keeps =
            |known: &Hierarchy| known.version == Version::V2 || known.name.as_deref() == Some("systemd");
        let any_other = self.unit.is_none() || !self.host.hierarchies.iter().any(keeps);
        let main = self
            .dirs
            .iter()
            .find(|(dir, _)| any_other || self.host.hierarchies.get(dir.hierarchy).is_some_and(keeps));
        main.is_some_and(|(_, open)| open.has("cgroup.procs"))
    }
}

/// Thaws when it is dropped.
pub(crate) struct Stopped<'a>(&'a Cgroup);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        _ = self.0.write_thawed();
    }
}

/// A scope without a process, or a slice with one.
fn wrong_for_unit(name: &SystemdName) -> Error {
    let why = if name.is_slice() {
        "a slice carries limits and takes no processes: put them into a scope in it, slice:prefix:name"
    } else {
        "systemd starts no scope without a process: start it with one, or make a slice"
    };
    Error::new(ErrorKind::InvalidInput, why).with_setting("unit").with_value(name.unit())
}

/// Why the kernel forbids an unprivileged process to move or to start one (EACCES).
pub(crate) const NOT_WITHIN_DELEGATED: &str = "no permission: an unprivileged caller moves and starts processes only \
     within a delegated subtree, in which the process and the caller are already (cgroup.procs of the nearest common \
     ancestor must be writable)";

/// Why the kernel finds no such cgroup (ENOENT) although it is open.
pub(crate) const OUT_OF_REACH: &str = "the cgroup was removed, or it lies outside of this cgroup namespace, of which \
     cgroup v2 lets no process out (mount option nsdelegate)";

/// Refuses processes on which the machine or a container depends.
///
/// # Errors
/// [`ErrorKind::Busy`], with the process and what it is.
pub(crate) fn refuse_system(pids: &[u32]) -> Result<()> {
    for pid in pids {
        let Some(what) = proc::system_role(*pid) else { continue };
        let why = format!(
            "this is {what}, on which others depend: it is moved only if that is asked for (--force)"
        );
        return Err(Error::new(ErrorKind::Busy, why).with_setting("pid").with_value(pid));
    }
    Ok(())
}

fn join_error(errno: Errno, pid: u32) -> Error {
    let (kind, message) = match errno {
        Errno::SRCH => (ErrorKind::Kernel, "there is no such process, or no more"),
        Errno::OPNOTSUPP => (
            ErrorKind::Kernel,
            "the cgroup takes no processes: it is threaded (join its domain instead) or an invalid domain",
        ),
        Errno::BUSY => (
            ErrorKind::Kernel,
            "the cgroup has controllers enabled for its children, so it takes no processes",
        ),
        Errno::ACCESS | Errno::PERM => (ErrorKind::Kernel, NOT_WITHIN_DELEGATED),
        Errno::NOENT => (ErrorKind::Kernel, OUT_OF_REACH),
        Errno::NOSPC => (ErrorKind::Kernel, "the cpuset of the cgroup has no CPUs or memory nodes"),
        Errno::INVAL => (
            ErrorKind::Kernel,
            "this process cannot be moved (a kernel thread, or a real-time task without budget)",
        ),
        _ => (ErrorKind::Kernel, "cannot join the process"),
    };
    Error::new(kind, message).with_errno(errno).with_setting("pid").with_value(pid)
}
