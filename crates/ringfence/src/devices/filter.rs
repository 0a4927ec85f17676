//! The device program of a cgroup on v2: which one is attached, and how it changes.
//!
//! There is one program of ours per cgroup, known by its name. A change is atomic: the new program takes the place of
//! the old one, or, before Linux 5.6, is attached before the old one is detached; both must then agree for a moment,
//! which never opens what neither allows. Programs of others stay, and must agree too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::program::Insn;
use crate::kernel::bpf;
use crate::kernel::dir::{PLACE, path_of_descriptor};
use crate::{Error, ErrorKind, Report, Result};

/// The name of our programs in the kernel, as `bpftool cgroup show` has it.
pub(crate) const NAME: &str = "ringfence_dev";

const NEEDS: &str = "bpf(2) was denied: a device filter needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN, and no seccomp \
                     filter that denies the call (and before Linux 5.11 room within RLIMIT_MEMLOCK)";
const MISSING: &str =
    "bpf(2) is missing: this kernel has no device filters (CGROUP_BPF), or a seccomp filter denies the call";

/// What to do where a program of another manager above the cgroup would no longer be asked once ours is attached: it
/// was attached with `BPF_F_ALLOW_OVERRIDE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Override {
    /// An error.
    Refuse,
    /// A line in the report.
    Allow,
}

impl Override {
    pub(crate) fn from_allowed(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Refuse }
    }
}

/// Our program from before, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Earlier<'a> {
    /// Whatever of that name is attached.
    Unknown,
    /// It had this number, says the state.
    Id(u32),
    /// This process attached it: needs no CAP_SYS_ADMIN to replace.
    Held(&'a DeviceFilter),
}

/// A device program that is attached to a cgroup, and those that it replaced. It stays attached when this is dropped.
#[derive(Debug)]
pub(crate) struct DeviceFilter {
    program: Arc<OwnedFd>,
    id: u32,
    replaced: Vec<Arc<OwnedFd>>,
}

impl DeviceFilter {
    /// Loads a program for the cgroup, and finds our earlier one, whose place it takes when it is attached.
    ///
    /// The report has a line if a program of another manager will no longer be asked ([`Override::Allow`]), and if the
    /// earlier program cannot be replaced, so that nothing new can be allowed: a manager that was restored in another
    /// process needs CAP_SYS_ADMIN for that.
    pub(crate) fn prepare(
        cgroup: BorrowedFd<'_>,
        program: &[Insn],
        earlier: Earlier<'_>,
        overriding: Override,
    ) -> Result<(Self, Report)> {
        let program = load(program)?;
        let id = bpf::info(&program).map_err(|errno| refused(cgroup, errno))?.id;
        let attached = bpf::attached(cgroup).map_err(|errno| refused(cgroup, errno))?;
        let mut report = Report::default();
        let replaced = ours_among(&attached.ids, earlier, cgroup, &mut report)?;
        if attached.ids.is_empty() {
            above(cgroup, overriding, &mut report)?;
        }
        Ok((Self { program: Arc::new(program), id, replaced }, report))
    }

    /// Attaches the program, in the place of the earlier one. After an error everything is as it was.
    pub(crate) fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<()> {
        self.take_place(cgroup).map_err(|errno| refused(cgroup, errno))
    }

    /// Both at once.
    #[cfg(test)]
    fn install(
        cgroup: BorrowedFd<'_>,
        program: &[Insn],
        earlier: Earlier<'_>,
        overriding: Override,
    ) -> Result<(Self, Report)> {
        let (filter, report) = Self::prepare(cgroup, program, earlier, overriding)?;
        filter.attach(cgroup)?;
        Ok((filter, report))
    }

    /// The number of the program, by which another process finds it again.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether this process may open it again by its number: that takes CAP_SYS_ADMIN.
    pub(crate) fn is_found_by_its_number(&self) -> bool {
        bpf::program_by_id(self.id).is_ok()
    }

    /// Puts back what was attached before, as atomically as it was replaced.
    pub(crate) fn undo(self, cgroup: BorrowedFd<'_>) -> Result<()> {
        self.put_back(cgroup).map_err(|errno| refused(cgroup, errno))
    }

    /// For one that stays: lets go of what it replaced, which can then not be put back.
    pub(crate) fn settled(mut self) -> Self {
        self.replaced.clear();
        self
    }

    fn put_back(&self, cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some((first, others)) = self.replaced.split_first() else {
            return gone(bpf::detach(cgroup, &self.program));
        };
        replace(cgroup, first, &self.program)?;
        others.iter().try_for_each(|other| match bpf::attach(cgroup, other, None) {
            // It is still there: not all had been detached.
            Err(Errno::INVAL) => Ok(()),
            done => done,
        })
    }

    fn take_place(&self, cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some((first, others)) = self.replaced.split_first() else {
            return bpf::attach(cgroup, &self.program, None);
        };
        replace(cgroup, &self.program, first)?;
        // More than one of ours: left by a process that died between attaching and detaching.
        let detached = others.iter().try_for_each(|other| gone(bpf::detach(cgroup, other)));
        if detached.is_err() {
            // As far as that goes; the first error is the one to tell.
            let _ = self.put_back(cgroup);
        }
        detached
    }
}

/// Whether the cgroup has this program from us, and no other of ours. Loads it to compare, attaches nothing.
pub(crate) fn is_installed(cgroup: BorrowedFd<'_>, program: &[Insn]) -> Result<bool> {
    let refused = |errno| refused(cgroup, errno);
    let wanted = bpf::info(load(program)?).map_err(refused)?.tag;
    let attached = bpf::attached(cgroup).map_err(refused)?;
    let mut tags = Vec::new();
    for id in attached.ids {
        let found = gone(bpf::program_by_id(id).and_then(bpf::info).map(Some)).map_err(refused)?;
        tags.extend(found.filter(|found| found.name == NAME).map(|found| found.tag));
    }
    Ok(tags == [wanted])
}

/// What vanished in the meantime is no error.
fn gone<T: Default>(result: Result<T, Errno>) -> Result<T, Errno> {
    match result {
        Err(Errno::NOENT) => Ok(T::default()),
        other => other,
    }
}

pub(crate) fn load(program: &[Insn]) -> Result<OwnedFd> {
    let bytes: Vec<[u8; 8]> = program.iter().map(|insn| insn.to_bytes()).collect();
    bpf::load(&bytes, NAME).map_err(|bpf::LoadError { errno, log }| {
        let error = |kind, why: String| Error::new(kind, why).with_setting("devices").with_errno(errno);
        match errno {
            Errno::PERM => error(ErrorKind::Unsupported, NEEDS.to_owned()),
            Errno::NOSYS => error(ErrorKind::Unsupported, MISSING.to_owned()),
            _ if log.is_empty() => {
                error(ErrorKind::Kernel, "the kernel refused the device filter".to_owned())
            }
            _ => error(ErrorKind::Kernel, format!("the verifier refused the device filter: {log}")),
        }
    })
}

/// The programs of ours among those attached to the cgroup.
fn ours_among(
    ids: &[u32],
    earlier: Earlier<'_>,
    cgroup: BorrowedFd<'_>,
    report: &mut Report,
) -> Result<Vec<Arc<OwnedFd>>> {
    let mut ours = Vec::new();
    for &id in ids {
        if let Earlier::Held(held) = earlier
            && held.id == id
        {
            ours.push(Arc::clone(&held.program));
            continue;
        }
        let found =
            bpf::program_by_id(id).and_then(|program| Ok((bpf::info(&program)?.name == NAME, program)));
        match found {
            Ok((true, program)) => ours.push(Arc::new(program)),
            Ok(_) => {}
            Err(Errno::NOENT) if is_detached(cgroup, id) => {}
            // Without CAP_SYS_ADMIN the names are not to be had. The one of the state is ours for sure.
            Err(Errno::PERM) if matches!(earlier, Earlier::Id(ours) if ours == id) => report.add(
                "devices",
                format!("program {id}"),
                "without CAP_SYS_ADMIN the device filter of before cannot be replaced: only what both allow is allowed",
            ),
            Err(Errno::PERM) => {}
            Err(errno) => return Err(refused(cgroup, errno)),
        }
    }
    Ok(ours)
}

/// Whether a program that was attached is so no more: then it may be gone.
fn is_detached(cgroup: BorrowedFd<'_>, id: u32) -> bool {
    bpf::attached(cgroup).is_ok_and(|attached| !attached.ids.contains(&id))
}

/// Puts a program in the place of another, at once.
fn replace(cgroup: BorrowedFd<'_>, new: &OwnedFd, old: &OwnedFd) -> Result<(), Errno> {
    match bpf::attach(cgroup, new, Some(old)) {
        // Before Linux 5.6; and where somebody detached the old one in between.
        Err(Errno::INVAL | Errno::NOENT) => replace_in_two(cgroup, new, old),
        done => done,
    }
}

/// The new one first: there is no moment without a program.
fn replace_in_two(cgroup: BorrowedFd<'_>, new: &OwnedFd, old: &OwnedFd) -> Result<(), Errno> {
    bpf::attach(cgroup, new, None)?;
    let detached = gone(bpf::detach(cgroup, old));
    if detached.is_err() {
        // As far as that goes; the first error is the one to tell.
        let _ = bpf::detach(cgroup, new);
    }
    detached
}

/// The nearest ancestor with programs that do not run together with ours, and their flags.
///
/// Looked for as the kernel does: up to the first that allows several, and as far as this process sees.
fn exclusive_ancestor(cgroup: BorrowedFd<'_>) -> Result<Option<(PathBuf, u32)>, Errno> {
    if bpf::effective(cgroup)?.ids.is_empty() {
        // Nobody has one, here or above.
        return Ok(None);
    }
    let mut dir = parent(cgroup)?;
    while let Some(above) = dir {
        let attached = bpf::attached(above.as_fd())?;
        if attached.flags & bpf::ALLOW_MULTI != 0 {
            break;
        }
        if !attached.ids.is_empty() {
            return Ok(Some((path_of(above.as_fd()), attached.flags)));
        }
        dir = parent(above.as_fd())?;
    }
    Ok(None)
}

/// The cgroup above this one; nothing at the root of the mount.
fn parent(cgroup: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let up = rustix::fs::openat(cgroup, "..", PLACE, Mode::empty())?;
    let (here, there) = (rustix::fs::fstat(cgroup)?, rustix::fs::fstat(&up)?);
    Ok((here.st_dev == there.st_dev && here.st_ino != there.st_ino).then_some(up))
}

/// Sees to it that no program above is overridden in silence.
fn above(cgroup: BorrowedFd<'_>, overriding: Override, report: &mut Report) -> Result<()> {
    let Some((ancestor, flags)) = exclusive_ancestor(cgroup).map_err(|errno| refused(cgroup, errno))? else {
        return Ok(());
    };
    if flags & bpf::ALLOW_OVERRIDE == 0 {
        return Err(exclusive(ancestor));
    }
    let message = "the device filter of this ancestor allows to be overridden (BPF_F_ALLOW_OVERRIDE)";
    match overriding {
        Override::Refuse => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{message}: it would no longer be asked, and nobody allowed that"),
        )
        .with_setting("devices")
        .with_path(ancestor)),
        Override::Allow => {
            // Somebody allowed it: no matter of strict mode.
            report.note("devices", ancestor.display(), format!("{message}, and is no longer asked"));
            Ok(())
        }
    }
}

fn exclusive(ancestor: PathBuf) -> Error {
    Error::new(
        ErrorKind::Kernel,
        "the device filter of this ancestor was attached with flags 0: it allows none below it; whoever attached it \
         must use BPF_F_ALLOW_MULTI",
    )
    .with_setting("devices")
    .with_path(ancestor)
    .with_errno(Errno::PERM)
}

/// What a refusal at this cgroup means.
fn refused(cgroup: BorrowedFd<'_>, errno: Errno) -> Error {
    let why = match errno {
        Errno::PERM => match (exclusive_ancestor(cgroup), bpf::attached(cgroup)) {
            (Ok(Some((ancestor, 0))), _) => return exclusive(ancestor),
            (_, Ok(own)) if !own.ids.is_empty() && own.flags & bpf::ALLOW_MULTI == 0 => {
                "this cgroup has a device filter of another manager that allows no second one (attached without \
                 BPF_F_ALLOW_MULTI)"
            }
            _ => NEEDS,
        },
        Errno::NOSYS => MISSING,
        Errno::TOOBIG => "this cgroup has as many device filters as the kernel allows (64)",
        Errno::BADF | Errno::INVAL => {
            "the kernel takes no device filter for this directory: is it in a cgroup v2 tree?"
        }
        _ => "the kernel refused the device filter",
    };
    Error::kernel(why, path_of(cgroup), errno).with_setting("devices")
}

/// For messages: what the descriptor was opened at.
fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    std::fs::read_link(path_of_descriptor(fd)).unwrap_or_default()
}

#[cfg(test)]
mod on_a_kernel;
