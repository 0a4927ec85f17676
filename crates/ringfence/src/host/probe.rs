//! What the kernel can do, found out by looking, not concluded from its version.
//!
//! Version 1: the files stand in the root of each hierarchy.
//!
//! Version 2: the root of the machine lacks most files, and a cgroup has a controller's files only where its parent
//! enables the controller. So the first of these is asked that can tell:
//! 1. the root, if it is not the machine's (a container, a delegated subtree): it has the files itself;
//! 2. the children of the root, for the core and the controllers that are enabled there;
//! 3. if there are none: a child made for this, looked at and removed. No controller is enabled for it;
//! 4. traces that the same code leaves elsewhere in the system (see [`elsewhere`]), and where there are none: yes for
//!    files of Linux 5.15 and older, so that the kernel decides when the file is written, no for later ones.

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use super::{Capabilities, Controller, Hierarchy, Version};
use crate::devices::{DevicePolicy, filter, program};
use crate::error::{Error, Result};
use crate::kernel::dir::CgroupDir;
use crate::kernel::{bpf, probe};
use crate::resources::HugePageSize;

/// Probes everything. `unified` is the open root of the version 2 hierarchy, whose controllers are known by now.
pub(super) fn capabilities(
    hierarchies: &[Hierarchy],
    unified: Option<&CgroupDir>,
    huge_page_sizes: &[HugePageSize],
) -> Result<Capabilities> {
    let mut found = Capabilities::default();
    for hierarchy in hierarchies {
        match hierarchy.version {
            Version::V1 => look_v1(hierarchy, huge_page_sizes, &mut found)?,
            Version::V2 => {
                if let Some(root) = unified {
                    look_v2(root, &hierarchy.controllers, huge_page_sizes, &mut found);
                }
            }
        }
    }
    found.psi = std::fs::File::open("/proc/pressure/cpu").is_ok();
    found.clone_into_cgroup = probe::clone_into_cgroup();
    // Attaching asks for the same capabilities as loading.
    let everything = program::compile(&DevicePolicy::allow_all());
    found.bpf_devices = filter::load(&everything).is_ok();
    found.bpf_replace = found.bpf_devices && bpf::can_replace();
    Ok(found)
}

fn look_v1(hierarchy: &Hierarchy, huge_page_sizes: &[HugePageSize], found: &mut Capabilities) -> Result<()> {
    const TELLING: &[Controller] =
        &[Controller::Cpu, Controller::Memory, Controller::Io, Controller::Hugetlb];
    if !hierarchy.controllers.iter().any(|controller| TELLING.contains(controller)) {
        return Ok(());
    }
    let root = match CgroupDir::open_root(&hierarchy.root) {
        Ok(root) => root,
        // Not for this user's eyes.
        Err(Errno::ACCESS | Errno::PERM) if !rustix::process::geteuid().is_root() => return Ok(()),
        // Without an answer, every limit would pass for one that this kernel has not.
        Err(errno) => return Err(Error::kernel("cannot look at the hierarchy", &hierarchy.root, errno)),
    };
    for controller in &hierarchy.controllers {
        match controller {
            Controller::Cpu => {
                found.cpu_quota = root.has("cpu.cfs_quota_us");
                found.cpu_burst = root.has("cpu.cfs_burst_us");
                found.cpu_idle = root.has("cpu.idle");
                found.cpu_rt = root.has("cpu.rt_runtime_us");
            }
            Controller::Memory => found.swap = root.has("memory.memsw.limit_in_bytes"),
            Controller::Io => {
                // The machine's root has no weight, but BFQ's statistics come with it.
                found.bfq_weight = root.has("blkio.bfq.io_serviced") || root.has("blkio.bfq.weight");
                found.io_weight = root.has("blkio.weight");
            }
            Controller::Hugetlb => {
                found.hugetlb_rsvd = huge_page_sizes
                    .first()
                    .is_some_and(|size| root.has(&format!("hugetlb.{size}.rsvd.limit_in_bytes")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn look_v2(
    root: &CgroupDir,
    available: &[Controller],
    huge_page_sizes: &[HugePageSize],
    found: &mut Capabilities,
) {
    let rsvd = match huge_page_sizes.first() {
        Some(size) => format!("hugetlb.{size}.rsvd.max").into(),
        None => Cow::Borrowed("hugetlb.rsvd.max"),
    };
    let mut questions = Questions([
        Question::new(None, "cgroup.kill", available),
        Question::new(Some(Controller::Memory), "memory.peak", available),
        Question::new(Some(Controller::Memory), "memory.swap.max", available),
        Question::new(Some(Controller::Cpu), "cpu.max", available),
        Question::new(Some(Controller::Cpu), "cpu.max.burst", available),
        Question::new(Some(Controller::Cpu), "cpu.idle", available),
        Question::new(Some(Controller::Io), "io.bfq.weight", available),
        Question::new(Some(Controller::Io), "io.weight", available),
        Question::new(Some(Controller::Hugetlb), rsvd, available),
    ]);
    questions.ask(root);
    let has_kill = questions.0.first().and_then(|kill| kill.answer);
    let [kill, peak, swap, quota, burst, idle, bfq, weight, rsvd] = questions
        .0
        .map(|question| question.answer.unwrap_or_else(|| elsewhere(&question.file, root, has_kill)));
    found.cgroup_kill = kill;
    // In hybrid mode the controller is on version 1, which has answered already.
    found.memory_peak |= peak;
    found.swap |= swap;
    found.cpu_quota |= quota;
    found.cpu_burst |= burst;
    found.cpu_idle |= idle;
    found.bfq_weight |= bfq;
    found.io_weight |= weight;
    found.hugetlb_rsvd |= rsvd;
}

/// Whether cgroups have a certain file; the answer, once a cgroup could tell.
struct Question {
    /// The file is there only where this controller is enabled; none: the core's, in all but the machine's root.
    controller: Option<Controller>,
    file: Cow<'static, str>,
    answer: Option<bool>,
}

impl Question {
    fn new(
        controller: Option<Controller>,
        file: impl Into<Cow<'static, str>>,
        available: &[Controller],
    ) -> Self {
        let unavailable = controller.is_some_and(|controller| !available.contains(&controller));
        Self { controller, file: file.into(), answer: unavailable.then_some(false) }
    }
}

struct Questions([Question; 9]);

impl Questions {
    fn ask(&mut self, root: &CgroupDir) {
        if root.has("cgroup.events") {
            // Only the machine's root is without this file.
            return self.look_into(root);
        }
        let enabled = Controller::list_from_v2(&root.read("cgroup.subtree_control").unwrap_or_default());
        let children = root.children().unwrap_or_default();
        let mut children = children
            .iter()
            .filter(|name| !name.as_encoded_bytes().starts_with(ProbeChild::PREFIX.as_bytes()))
            .filter_map(|name| root.open_dir(name).ok());
        // One child tells all, unless it is a threaded cgroup or being removed.
        for child in children.by_ref().take(4) {
            self.look_into(&child);
            if self.are_answered(&enabled) {
                return;
            }
        }
        if let Some(child) = ProbeChild::make(root)
            && let Ok(directory) = root.open_dir(&child.name)
        {
            self.look_into(&directory);
        }
    }

    fn are_answered(&self, enabled: &[Controller]) -> bool {
        self.0.iter().all(|question| {
            question.answer.is_some() || question.controller.is_some_and(|it| !enabled.contains(&it))
        })
    }

    fn look_into(&mut self, directory: &CgroupDir) {
        let enabled = Controller::list_from_v2(&directory.read("cgroup.controllers").unwrap_or_default());
        let open = |question: &Question| {
            question.answer.is_none() && question.controller.is_none_or(|it| enabled.contains(&it))
        };
        let mut answers = [None; 9];
        for (question, answer) in self.0.iter().zip(&mut answers) {
            *answer = open(question).then(|| directory.has(&question.file));
        }
        // In a cgroup that was removed meanwhile, every file is missing.
        if directory.has("cgroup.procs") {
            for (question, answer) in self.0.iter_mut().zip(answers) {
                question.answer = question.answer.or(answer);
            }
        }
    }
}

/// A version 2 file of which no cgroup here can tell whether it exists.
fn elsewhere(file: &str, root: &CgroupDir, has_kill: Option<bool>) -> bool {
    match file {
        // Linux 5.14 as is cgroup.kill, which every cgroup has; and 5.15.
        "cpu.max.burst" | "cpu.idle" => has_kill.unwrap_or(true),
        // The files of the cost model stand in the machine's root alone.
        "io.weight" => root.has("io.cost.qos"),
        // CONFIG_SWAP, CONFIG_CFS_BANDWIDTH, and BFQ loaded as a module.
        "memory.swap.max" => Path::new("/proc/swaps").exists(),
        "cpu.max" => Path::new("/proc/sys/kernel/sched_cfs_bandwidth_slice_us").exists(),
        "io.bfq.weight" => Path::new("/sys/module/bfq").exists(),
        // Linux 5.19; a feature of 6.0 says that the kernel is later.
        "memory.peak" => std::fs::read_to_string("/sys/kernel/cgroup/features")
            .is_ok_and(|features| features.contains("favordynmods")),
        _ => true,
    }
}

/// An empty child of the root, removed when dropped.
struct ProbeChild<'a> {
    root: &'a CgroupDir,
    name: String,
}

impl<'a> ProbeChild<'a> {
    const PREFIX: &'static str = "ringfence-probe-";

    fn make(root: &'a CgroupDir) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}", Self::PREFIX, std::process::id());
        root.make_dir(&name).ok().map(|()| Self { root, name })
    }
}

impl Drop for ProbeChild<'_> {
    fn drop(&mut self) {
        // Nobody else has reason to put anything in; if someone did, it stays theirs.
        let _ = self.root.remove_dir(&self.name);
    }
}
