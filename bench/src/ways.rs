//! Other ways to the same, of which the faster one was taken: what decided it.
//!
//! | question | ways |
//! | --- | --- |
//! | a process in a cgroup of v2 | it is born there (clone3 with `CLONE_INTO_CGROUP`); it moves itself there before exec |
//! | the statistics of many cgroups | a pread(2) of each file; one submission of all of them to an io_uring |
//! | controllers for children | enabled while nobody is in these; with processes inside |
//!
//! Migration takes a lock of all of the kernel's cgroups, which `favordynmods` (a mount option of cgroup2, Linux 6.0) makes
//! cheaper to take, and each fork and exit dearer: the title says whether it is on.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use io_uring::{IoUring, opcode, types};
use ringfence::{Host, Version};

use crate::Result;
use crate::manager::{Program, fork_and_wait};
use crate::race::{Contender, race};
use crate::sandbox::{BenchSandbox, Sleeper};
use crate::table::Table;

/// A cgroup of v2, removed with what is below it.
struct Unified(PathBuf);

impl Unified {
    fn new(root: &Path, name: &str) -> Result<Self> {
        let path = root.join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

pub fn run() -> Result<()> {
    let host = Host::detect()?;
    let Some(unified) = host.hierarchies.iter().find(|one| one.version == Version::V2) else {
        println!("## Ways ({}): there is no cgroup2 here\n", crate::machine(&host));
        return Ok(());
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let favours = mounts.lines().any(|line| line.contains(" - cgroup2 ") && line.contains("favordynmods"));
    let how = if favours { "favordynmods" } else { "no favordynmods" };
    println!("## Ways ({how}, {})\n", crate::machine(&host));
    let mut table = Table::new(&["of", "way", "median", "quartiles", "ratio"]);
    births(&unified.root, &mut table)?;
    samples(&host, &mut table)?;
    controllers(&unified.root, &mut table)?;
    println!("{table}");
    Ok(())
}

fn compare(table: &mut Table, of: &str, contenders: Vec<Contender<'_>>) {
    for finish in race(contenders) {
        let cells = match finish.result {
            Ok((time, ratio)) => [
                format!("{:.1} µs", time.median * 1e6),
                format!("{:.1}–{:.1}", time.low * 1e6, time.high * 1e6),
                format!("{ratio:.2}"),
            ],
            Err(error) => [format!("cannot: {error}"), String::new(), String::new()],
        };
        table.row([of.to_owned(), finish.name].into_iter().chain(cells));
    }
}

fn contender<'a>(name: &str, once: impl FnMut() -> Result<()> + 'a) -> Contender<'a> {
    Contender { name: name.to_owned(), once: Box::new(once) }
}

fn births(root: &Path, table: &mut Table) -> Result<()> {
    let program = Program::new()?;
    let cgroup = Unified::new(root, &format!("rf-bench-{}-births", std::process::id()))?;
    let dir = File::open(&cgroup.0)?;
    let procs = File::options().write(true).open(cgroup.0.join("cgroup.procs"))?;
    let born = || fork_and_wait(&program, Some(dir.as_raw_fd()), || true);
    let moved = || {
        // SAFETY: a C string, and its length.
        let join = || unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } == 1;
        fork_and_wait(&program, None, join)
    };
    let outside = || fork_and_wait(&program, None, || true);
    compare(
        table,
        "a process",
        vec![
            contender("born inside", born),
            contender("moves itself inside", moved),
            contender("stays outside", outside),
        ],
    );
    Ok(())
}

fn samples(host: &Host, table: &mut Table) -> Result<()> {
    let bench = BenchSandbox::new(host)?;
    let mut reader = bench.sandbox.stats_reader()?;
    let once = || {
        reader.sample()?;
        Ok(())
    };
    let files = bench.reads(once)?;
    let files: Vec<File> = files.iter().map(File::open).collect::<std::io::Result<_>>()?;
    let mut buffer = vec![0_u8; 16 << 10];
    let reads = || {
        for file in &files {
            black_box(file.read_at(&mut buffer, 0)?);
        }
        Ok(())
    };
    let mut buffers = vec![vec![0_u8; 16 << 10]; files.len()];
    let mut ring = IoUring::new(64)?;
    let batch = || {
        for (file, buffer) in files.iter().zip(&mut buffers) {
            let (fd, length) = (types::Fd(file.as_raw_fd()), u32::try_from(buffer.len())?);
            let read = opcode::Read::new(fd, buffer.as_mut_ptr(), length).build();
            // SAFETY: the buffers outlive the ring's work: all of it is waited for below.
            unsafe { ring.submission().push(&read)? };
        }
        ring.submit_and_wait(files.len())?;
        for done in ring.completion() {
            black_box(done.result());
        }
        Ok(())
    };
    let of = format!("{} files", files.len());
    compare(
        table,
        &of,
        vec![contender("a pread(2) each", reads), contender("one io_uring submission", batch)],
    );
    Ok(())
}

/// On and off again.
fn controllers(root: &Path, table: &mut Table) -> Result<()> {
    let number = 20;
    let parents = ["empty", "populated"].map(|what| format!("rf-bench-{}-{what}", std::process::id()));
    let [empty, populated] = parents.map(|name| Unified::new(root, &name));
    let (empty, populated) = (empty?, populated?);
    let there = fs::read_to_string(empty.0.join("cgroup.controllers"))?;
    let Some(controller) = ["pids", "memory", "hugetlb"].into_iter().find(|name| there.contains(name)) else {
        return Ok(());
    };
    let (_child, child) = (Unified::new(&empty.0, "child")?, Unified::new(&populated.0, "child")?);
    let sleepers = (0..number).map(|_| Sleeper::start()).collect::<Result<Vec<_>>>()?;
    for sleeper in &sleepers {
        fs::write(child.0.join("cgroup.procs"), sleeper.id().to_string())?;
    }
    let switch = |cgroup: &Unified| -> Result<()> {
        let file = cgroup.0.join("cgroup.subtree_control");
        fs::write(&file, format!("+{controller}"))?;
        Ok(fs::write(&file, format!("-{controller}"))?)
    };
    compare(
        table,
        &format!("{controller} for a child"),
        vec![
            contender("empty", || switch(&empty)),
            contender(&format!("with {number} processes"), || switch(&populated)),
        ],
    );
    Ok(())
}
