//! Reading statistics from a kernel, again and again.

#[cfg(test)]
mod on_a_kernel;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::file::{File, Take};
use super::{Stats, files};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Version};
use crate::kernel::descriptors::Share;
use crate::kernel::dir::{CgroupDir, Whereabouts};

/// A directory of the cgroup, and what is to be read there.
///
/// Hierarchies are all alike to the reader: a hybrid host has v1 directories and one of v2 in its list.
#[derive(Debug, Clone)]
pub(crate) struct Source<'a> {
    pub(crate) version: Version,
    /// The controllers to read here. v2: `Cpu` even where there is no such controller, unless a v1 hierarchy accounts
    /// for CPU time: all v2 cgroups do. Files that do not exist are skipped.
    pub(crate) controllers: Vec<Controller>,
    /// A cpuset of v1 whose files lack the controller's name.
    pub(crate) noprefix: bool,
    pub(crate) dir: &'a CgroupDir,
    /// The root of the hierarchy, and where the directory is below it.
    pub(crate) root: Arc<CgroupDir>,
    pub(crate) path: &'a str,
}

/// Takes samples of one cgroup's statistics.
///
/// The files are opened once and stay open: a sample is one pread(2) per file. Where all readers of the process would so keep
/// more than half of the descriptors that it may have (`RLIMIT_NOFILE`, which a manager of thousands raises), those that are
/// one too many open and close their files with each sample, until others are dropped. Either way a sample allocates nothing
/// once the buffers have found their size.
#[derive(Debug)]
pub struct StatsReader {
    /// Where the files are not open, their directories.
    places: Vec<Whereabouts>,
    /// Those of one place behind one another.
    files: Vec<Counted>,
    /// With it, the files stay open.
    share: Option<Share>,
    stats: Stats,
}

/// A file with statistics.
#[derive(Debug)]
struct Counted {
    /// By its position among the reader's.
    place: usize,
    name: Box<str>,
    /// While it stays open.
    kept: Option<OwnedFd>,
    take: Take,
    key: Box<str>,
}

thread_local! {
    /// Holds one file at a time, and is always longer than the longest of them.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 16 << 10]);
}

impl StatsReader {
    /// Opens the files that exist and may be read; the values of the others are absent.
    ///
    /// # Errors
    /// `NotFound` if there were directories and none is a cgroup any more; `Kernel` if descriptors or memory have run out.
    pub(crate) fn open(sources: &[Source<'_>]) -> Result<Self> {
        let mut reader = Self { places: Vec::new(), files: Vec::new(), share: None, stats: Stats::default() };
        for (place, source) in sources.iter().enumerate() {
            reader.add(place, source)?;
        }
        // Without a file the cgroup may have nothing to read, or may be gone.
        let is_gone = |source: &Source<'_>| !source.dir.has("cgroup.procs");
        if reader.files.is_empty() && !sources.is_empty() && sources.iter().all(is_gone) {
            return Err(removed(Errno::NOENT));
        }
        if reader.files.iter().all(|file| file.kept.is_some()) {
            reader.share = Share::of(reader.files.len());
        }
        if reader.share.is_none() {
            reader.close();
            let places = sources.iter().map(|source| Whereabouts::of(source.dir, &source.root, source.path));
            reader.places = places.collect::<rustix::io::Result<_>>().map_err(removed)?;
        }
        Ok(reader)
    }

    /// Takes a sample. It is this reader's until the next one; clone it to keep it.
    ///
    /// A file that cannot be read leaves its values absent, and the others as they are.
    ///
    /// # Errors
    /// `NotFound` if the cgroup was removed, in all its hierarchies; `Kernel` if there is no descriptor to open a file with.
    pub fn sample(&mut self) -> Result<&Stats> {
        BUFFER.with_borrow_mut(|buffer| self.read(buffer))?;
        Ok(&self.stats)
    }

    fn read(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        self.stats.clear();
        self.stats.at_us = unix_time_us();
        if self.share.is_none() {
            self.share = Share::of(self.files.len());
        }
        let mut removed_files = 0;
        let mut opened = None;
        for file in &mut self.files {
            let fd = match file.kept.take() {
                Some(fd) => Ok(fd),
                None => file.open(&self.places, &mut opened),
            };
            let contents = fd.and_then(|fd| {
                let contents = read_whole(&fd, buffer);
                file.kept = self.share.as_ref().map(|_| fd);
                contents
            });
            if contents == Err(Errno::NODEV) {
                removed_files += 1;
            } else if let Some(contents) = if_there(&file.name, contents)? {
                file.take.call(&mut self.stats, &file.key, contents);
            }
        }
        if removed_files > 0 && removed_files == self.files.len() {
            return Err(removed(Errno::NODEV));
        }
        Ok(())
    }

    /// Adds the files of one directory, in the order of the tables.
    fn add(&mut self, place: usize, source: &Source<'_>) -> Result<()> {
        let wanted = |file: &&File| {
            file.version == source.version
                && file.controller.is_none_or(|it| source.controllers.contains(&it))
        };
        // Only keyed files need the directory's listing.
        let listed = if files().filter(wanted).any(File::is_keyed) {
            if_there(".", file_names(source.dir))?.unwrap_or_default()
        } else {
            Vec::new()
        };
        for file in files().filter(wanted) {
            let own_name = [file.name_in(source.noprefix).to_owned()];
            let names: &[String] = if file.is_keyed() { &listed } else { &own_name };
            let key = |name| if file.is_keyed() { file.key_in(name) } else { Some("") };
            for (name, key) in names.iter().filter_map(|name| Some((name, key(name)?))) {
                let mut opened = source.dir.open(name, OFlags::RDONLY);
                if opened.as_ref().is_err_and(|errno| *errno == Errno::MFILE) {
                    self.close();
                    opened = source.dir.open(name, OFlags::RDONLY);
                }
                if let Some(fd) = if_there(name, opened)? {
                    let (name, key) = (name.as_str().into(), key.into());
                    self.files.push(Counted { place, name, kept: Some(fd), take: file.take, key });
                }
            }
        }
        Ok(())
    }

    /// Lets go of the files until they are needed.
    fn close(&mut self) {
        self.files.iter_mut().for_each(|file| file.kept = None);
    }
}

impl Counted {
    /// Opens the file, and its directory if that of another place is open, or none.
    fn open(
        &self,
        places: &[Whereabouts],
        opened: &mut Option<(usize, CgroupDir)>,
    ) -> rustix::io::Result<OwnedFd> {
        let dir = match opened.take().filter(|(place, _)| *place == self.place) {
            Some((_, dir)) => dir,
            None => match places.get(self.place).ok_or(Errno::NODEV)?.open() {
                // As a file says that was open.
                Err(Errno::NOENT) => Err(Errno::NODEV),
                opened => opened,
            }?,
        };
        let file = dir.open(&*self.name, OFlags::RDONLY);
        *opened = Some((self.place, dir));
        file
    }
}

/// `None` for what does not exist or may not be read. That descriptors or memory ran out says nothing about the file.
fn if_there<T>(name: &str, opened: rustix::io::Result<T>) -> Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            Err(Error::kernel("cannot open the file for statistics", name, errno))
        }
        Err(_) => Ok(None),
    }
}

/// The names in `dir`, sorted.
fn file_names(dir: &CgroupDir) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::new(dir.open_to_read()?)? {
        if let Ok(name) = entry?.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a file in one pread(2). A cgroup file gives all its contents at once if there is room; if they filled the
/// buffer there may be more, and the buffer is made larger for good.
fn read_whole<'a>(fd: &OwnedFd, buffer: &'a mut Vec<u8>) -> rustix::io::Result<&'a [u8]> {
    loop {
        match rustix::io::pread(fd, buffer.as_mut_slice(), 0) {
            Ok(length) if length < buffer.len() => return Ok(buffer.get(..length).unwrap_or_default()),
            Ok(_) => buffer.resize(buffer.len().saturating_mul(2), 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn unix_time_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn removed(errno: Errno) -> Error {
    Error::new(ErrorKind::NotFound, "the cgroup was removed").with_errno(errno)
}
