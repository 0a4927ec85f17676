//! A directory of a cgroup file system, and its files, by descriptor.
//!
//! Everything below the root of a hierarchy is reached with openat2(2) and `RESOLVE_BENEATH`, so that no symbolic link
//! and no mount can lead out of it. Every descriptor is close-on-exec. A directory is opened as a place alone (`O_PATH`): a
//! third of the time, and all that is done with it is relative to it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Uid};
use rustix::io::{Errno, Result};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

const STICKY: u32 = 0o1000;

/// A place, not to be read from.
pub(crate) const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory of a cgroup hierarchy.
#[derive(Debug)]
pub(crate) enum CgroupDir {
    Open(OwnedFd),
    /// No descriptor is kept for it: it is opened with each use.
    LetGo(Whereabouts),
}

/// Where a directory was that is not kept open.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    root: Arc<CgroupDir>,
    /// Below the root.
    path: Box<str>,
    /// Another cgroup of the same name has another one.
    inode: u64,
}

/// The descriptor of a directory, kept or opened for one use.
#[derive(Debug)]
pub(crate) enum Descriptor<'a> {
    Kept(&'a OwnedFd),
    Opened(OwnedFd),
}

impl Whereabouts {
    /// Of the directory that is now at `path` below `root`.
    pub(crate) fn of(dir: &CgroupDir, root: &Arc<CgroupDir>, path: &str) -> Result<Self> {
        Ok(Self { root: Arc::clone(root), path: path.into(), inode: dir.inode()? })
    }

    /// Opens the directory; `ENOENT` if it is gone, whatever has its name now.
    pub(crate) fn open(&self) -> Result<CgroupDir> {
        self.descriptor().map(CgroupDir::Open)
    }

    fn descriptor(&self) -> Result<OwnedFd> {
        let fd = self.root.open_place(Path::new(&*self.path))?;
        if rustix::fs::fstat(&fd)?.st_ino == self.inode { Ok(fd) } else { Err(Errno::NOENT) }
    }
}

impl CgroupDir {
    /// Opens the root of a hierarchy by its path.
    pub(crate) fn open_root(path: &Path) -> Result<Self> {
        rustix::fs::openat(CWD, path, PLACE, Mode::empty()).map(Self::Open)
    }

    /// The same directory, whose descriptor is not kept.
    pub(crate) fn let_go(&self, root: &Arc<Self>, path: &str) -> Result<Self> {
        Whereabouts::of(self, root, path).map(Self::LetGo)
    }

    /// A descriptor that is a place alone.
    pub(crate) fn descriptor(&self) -> Result<Descriptor<'_>> {
        match self {
            Self::Open(fd) => Ok(Descriptor::Kept(fd)),
            Self::LetGo(whereabouts) => whereabouts.descriptor().map(Descriptor::Opened),
        }
    }

    pub(crate) fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(self.descriptor()?)
    }

    /// The kernel's number of it, also when it is gone.
    pub(crate) fn inode(&self) -> Result<u64> {
        match self {
            Self::Open(_) => Ok(self.stat()?.st_ino),
            Self::LetGo(whereabouts) => Ok(whereabouts.inode),
        }
    }

    /// Opens a directory below this one; `""` is this one again.
    pub(crate) fn open_dir(&self, path: impl AsRef<Path>) -> Result<Self> {
        self.open_place(path.as_ref()).map(Self::Open)
    }

    fn open_place(&self, path: &Path) -> Result<OwnedFd> {
        self.open(if path.as_os_str().is_empty() { Path::new(".") } else { path }, PLACE)
    }

    /// Opens it to be listed, or locked.
    pub(crate) fn open_to_read(&self) -> Result<OwnedFd> {
        self.open(".", OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the directory above this one, which must not be the root of the hierarchy.
    pub(crate) fn parent(&self) -> Result<Self> {
        rustix::fs::openat(self.descriptor()?, "..", PLACE, Mode::empty()).map(Self::Open)
    }

    /// Opens a file below this directory.
    pub(crate) fn open(&self, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd> {
        let path = path.as_ref();
        if path.as_os_str().is_empty() {
            return Err(Errno::NOENT);
        }
        let (flags, here) = (flags | OFlags::CLOEXEC, self.descriptor()?);
        match rustix::fs::openat2(&here, path, flags, Mode::empty(), BENEATH) {
            Err(Errno::NOSYS) => open_checked(&here, path, flags),
            Err(Errno::PERM) if is_openat2_denied() => open_checked(&here, path, flags),
            // RESOLVE_BENEATH gives up when a rename anywhere races with the look-up.
            Err(Errno::AGAIN) => rustix::fs::openat2(&here, path, flags, Mode::empty(), BENEATH),
            opened => opened,
        }
    }

    /// Whether the directory was made by [`Self::make_dir`]: other managers set no sticky bit, which means nothing on a cgroup.
    /// The kernel sets it in the step that makes the directory, before it can be marked.
    pub(crate) fn is_made_by_us(&self) -> bool {
        self.stat().is_ok_and(|stat| stat.st_mode & STICKY != 0)
    }

    /// Makes a child directory; `name` is one component. Its mode has the sticky bit: [`Self::is_made_by_us`].
    pub(crate) fn make_dir(&self, name: &str) -> Result<()> {
        rustix::fs::mkdirat(self.descriptor()?, name, Mode::from_raw_mode(0o755 | STICKY))
    }

    /// Removes a child directory; `name` is one component.
    pub(crate) fn remove_dir(&self, name: impl AsRef<OsStr>) -> Result<()> {
        rustix::fs::unlinkat(self.descriptor()?, name.as_ref(), AtFlags::REMOVEDIR)
    }

    /// Moves a process here with all its threads.
    pub(crate) fn join(&self, pid: u32) -> Result<()> {
        self.migrate("cgroup.procs", pid)
    }

    /// Moves a process (`cgroup.procs`) or a thread (`tasks`, `cgroup.threads`) here. Retries for 10 ms after EINVAL: the cpu
    /// controller refuses a task that fork has not finished (TASK_NEW; Linux 4.8 to 6.0).
    pub(crate) fn migrate(&self, list: &str, id: u32) -> Result<()> {
        for _ in 0..10 {
            match self.enlist(list, id) {
                Err(Errno::INVAL) => std::thread::sleep(std::time::Duration::from_millis(1)),
                done => return done,
            }
        }
        Err(Errno::INVAL)
    }

    /// Writes a process or a thread to the list of those that are here. ESRCH for 0, which v2 lists for who has just ended, and
    /// which would be the caller.
    pub(crate) fn enlist(&self, list: &str, id: u32) -> Result<()> {
        if id == 0 { Err(Errno::SRCH) } else { self.write(list, &id.to_string()) }
    }

    /// Renames a child directory (v1 alone allows it).
    pub(crate) fn rename(&self, name: &str, to: &str) -> Result<()> {
        let here = self.descriptor()?;
        rustix::fs::renameat(&here, name, &here, to)
    }

    /// Removes a child directory, if the name still leads to `child`.
    ///
    /// Between the comparison and rmdir(2) somebody can remove it and make another one of the name, which is then removed if
    /// it is empty: the kernel removes by name alone.
    ///
    /// # Errors
    /// `ENOENT`: the child is gone, whatever has its name now.
    pub(crate) fn remove_same(&self, name: impl AsRef<OsStr>, child: &Self) -> Result<()> {
        let named = rustix::fs::statat(self.descriptor()?, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)?;
        if named.st_ino != child.inode()? {
            return Err(Errno::NOENT);
        }
        self.remove_dir(name)
    }

    /// Gives this directory itself (`.`), or a file in it, to a user and a group.
    pub(crate) fn give(&self, file: &str, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(self.descriptor()?, file, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether the file exists below this directory, as far as the kernel does not say that there is none.
    pub(crate) fn has(&self, file: &str) -> bool {
        let found = self
            .descriptor()
            .and_then(|here| rustix::fs::accessat(here, file, rustix::fs::Access::EXISTS, AtFlags::empty()));
        !matches!(found, Err(Errno::NOENT | Errno::NODEV | Errno::NOTDIR))
    }

    /// Whether this process, with the privileges it has now, may write to the file, or make directories in `.`.
    pub(crate) fn may_write(&self, file: &str) -> bool {
        let asked = |here: &Descriptor<'_>, flags| {
            rustix::fs::accessat(here, file, rustix::fs::Access::WRITE_OK, flags)
        };
        self.descriptor().is_ok_and(|here| match asked(&here, AtFlags::EACCESS) {
            // faccessat2(2) is of Linux 5.8, and denied by the seccomp filters of older container engines. The call before it
            // knows the real user alone, who is the effective one of all but set-user-ID programs.
            Err(Errno::PERM) => asked(&here, AtFlags::empty()).is_ok(),
            asked => asked.is_ok(),
        })
    }

    /// Writes all of `value` in one write(2), as cgroup files want it.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<()> {
        let fd = self.open(file, OFlags::WRONLY)?;
        write_once(&fd, value)
    }

    /// Reads the whole file into `buffer`, which is cleared first.
    pub(crate) fn read_into(&self, file: &str, buffer: &mut Vec<u8>) -> Result<()> {
        let fd = self.open(file, OFlags::RDONLY)?;
        read_all(&fd, buffer)
    }

    /// Reads the whole file as text, without the newline at its end.
    pub(crate) fn read(&self, file: &str) -> Result<String> {
        read_text(self.open(file, OFlags::RDONLY)?)
    }

    /// The names of the child directories: whatever bytes whoever made them chose.
    pub(crate) fn children(&self) -> Result<Vec<OsString>> {
        // A directory has a link from above, one from itself and one from each below (kernfs).
        if self.stat()?.st_nlink == 2 {
            return Ok(Vec::new());
        }
        let fd = self.open_to_read()?;
        let mut buffer = Vec::with_capacity(4096);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if entry.file_type() == rustix::fs::FileType::Directory {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name != "." && name != ".." {
                    names.push(name.to_owned());
                }
            }
        }
        Ok(names)
    }
}

impl AsFd for Descriptor<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kept(fd) => fd.as_fd(),
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

/// Whether EPERM is no answer of openat2(2), but of a seccomp filter that does not know the call, as in older container
/// engines: then it is also the answer to a request that cannot fail.
fn is_openat2_denied() -> bool {
    // A filter stays for good.
    static DENIED: AtomicBool = AtomicBool::new(false);
    if !DENIED.load(Ordering::Relaxed) {
        let probed = rustix::fs::openat2(CWD, ".", PLACE, Mode::empty(), ResolveFlags::empty());
        DENIED.store(matches!(probed, Err(Errno::PERM)), Ordering::Relaxed);
    }
    DENIED.load(Ordering::Relaxed)
}

/// Without openat2(2), which is of Linux 5.6: open, then see that it is still the file system of this directory.
fn open_checked(here: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    if path.components().any(|part| matches!(part, Component::RootDir | Component::ParentDir)) {
        return Err(Errno::XDEV);
    }
    let fd = rustix::fs::openat(&here, path, flags | OFlags::NOFOLLOW, Mode::empty())?;
    if rustix::fs::fstat(&fd)?.st_dev == rustix::fs::fstat(&here)?.st_dev { Ok(fd) } else { Err(Errno::XDEV) }
}

/// A path to what is open, for calls that take no descriptor of a place: on extended attributes, inotify(7). It is one for as
/// long as the descriptor is open.
pub(crate) fn path_of_descriptor(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// One write(2); cgroup files take a value whole or not at all.
pub(crate) fn write_once(fd: impl AsFd, value: &str) -> Result<()> {
    loop {
        match rustix::io::write(fd.as_fd(), value.as_bytes()) {
            Err(Errno::INTR) => {}
            Ok(written) if written < value.len() => return Err(Errno::IO),
            done => return done.map(drop),
        }
    }
}

/// The whole of a small file of `/proc` or `/sys`.
pub(crate) fn read_file(path: &str) -> Result<Vec<u8>> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::with_capacity(PAGE);
    read_all(&file, &mut bytes)?;
    Ok(bytes)
}

/// Reads the whole file as text, without the newline at its end.
pub(crate) fn read_text(fd: impl AsFd) -> Result<String> {
    let mut buffer = Vec::with_capacity(1024);
    read_all(fd, &mut buffer)?;
    let mut text = String::from_utf8(buffer)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// What the kernel makes of a file at a time, at the least.
const PAGE: usize = 4096;

/// Reads the whole file with pread(2), so that a kept descriptor can be read again.
///
/// The kernel makes a file of `/proc`, of `/sys` or of a cgroup as a whole, or as many records as fit into a page. So half
/// a page and less is all of it where no record is longer than that, and nothing has to be read to see its end.
pub(crate) fn read_all(fd: impl AsFd, buffer: &mut Vec<u8>) -> Result<()> {
    read_up_to(fd, buffer, PAGE / 2)
}

/// The same to the end, of a file whose records may be of any length.
pub(crate) fn read_records(fd: impl AsFd, buffer: &mut Vec<u8>) -> Result<()> {
    read_up_to(fd, buffer, 0)
}

/// Where it holds no more than `short`, one read that leaves room is believed to be all.
fn read_up_to(fd: impl AsFd, buffer: &mut Vec<u8>, short: usize) -> Result<()> {
    buffer.clear();
    loop {
        if buffer.capacity() - buffer.len() < 128 {
            buffer.reserve(buffer.capacity().max(1024));
        }
        let offset = buffer.len() as u64;
        match rustix::io::pread(fd.as_fd(), rustix::buffer::spare_capacity(buffer), offset) {
            Err(Errno::INTR) => {}
            Ok(0) => return Ok(()),
            Ok(_) if buffer.len() <= short && buffer.len() < buffer.capacity() => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
    }
}
