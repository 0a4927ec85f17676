//! Reading statistics from a kernel, again and again.

#[cfg(test)]
mod on_a_kernel;

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::file::{File, Take};
use super::{Stats, files};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Controller, Version};
use crate::kernel::dir::CgroupDir;

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
}

/// Takes samples of one cgroup's statistics.
///
/// The files are opened once and stay open. A sample is one pread(2) per file, and allocates nothing once the buffers
/// have found their size.
#[derive(Debug)]
pub struct StatsReader {
    files: Vec<OpenFile>,
    /// Holds one file at a time, and is always longer than the longest of them.
    buffer: Vec<u8>,
    stats: Stats,
}

#[derive(Debug)]
struct OpenFile {
    fd: OwnedFd,
    take: Take,
    key: Box<str>,
}

impl StatsReader {
    /// Opens the files that exist and may be read; the values of the others are absent.
    ///
    /// # Errors
    /// `NotFound` if there were directories and none is a cgroup any more; `Kernel` if descriptors or memory have run out.
    pub(crate) fn open(sources: &[Source<'_>]) -> Result<Self> {
        let mut opened = Vec::new();
        for source in sources {
            open_files(source, &mut opened)?;
        }
        // Without a file the cgroup may have nothing to read, or may be gone.
        let is_gone = |source: &Source<'_>| !source.dir.has("cgroup.procs");
        if opened.is_empty() && !sources.is_empty() && sources.iter().all(is_gone) {
            return Err(removed(Errno::NOENT));
        }
        Ok(Self { files: opened, buffer: vec![0; 16 << 10], stats: Stats::default() })
    }

    /// Takes a sample. It is this reader's until the next one; clone it to keep it.
    ///
    /// A file that cannot be read leaves its values absent, and the others as they are.
    ///
    /// # Errors
    /// `NotFound` if the cgroup was removed, in all its hierarchies.
    pub fn sample(&mut self) -> Result<&Stats> {
        self.stats.clear();
        self.stats.at_us = unix_time_us();
        let mut removed_files = 0;
        for file in &self.files {
            match read_whole(&file.fd, &mut self.buffer) {
                Ok(contents) => file.take.call(&mut self.stats, &file.key, contents),
                Err(Errno::NODEV) => removed_files += 1,
                Err(_) => {}
            }
        }
        if removed_files > 0 && removed_files == self.files.len() {
            return Err(removed(Errno::NODEV));
        }
        Ok(&self.stats)
    }
}

/// Opens the files of one directory, in the order of the tables.
fn open_files(source: &Source<'_>, opened: &mut Vec<OpenFile>) -> Result<()> {
    let wanted = |file: &&File| {
        file.version == source.version && file.controller.is_none_or(|it| source.controllers.contains(&it))
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
            if let Some(fd) = if_there(name, source.dir.open(name, OFlags::RDONLY))? {
                opened.push(OpenFile { fd, take: file.take, key: key.into() });
            }
        }
    }
    Ok(())
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
    for entry in Dir::read_from(dir)? {
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
