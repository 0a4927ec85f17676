//! Programs to run inside a sandbox. They are the test binary itself, run again: a guest of the testbed gets no other.
//!
//! A script is a list of operations with `;` between them; each prints one line, which begins with [`MARK`].

use std::hint::black_box;
use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::time::{ClockId, clock_gettime};

/// The environment variable that holds the script.
pub const SCRIPT: &str = "RINGFENCE_PROBE";
/// What the test binary is run with: this "test" alone.
pub const ARGUMENTS: [&str; 4] = ["--exact", "support::probe::probe", "--nocapture", "--test-threads=1"];
pub const MARK: &str = "probe: ";

#[test]
fn probe() {
    let Ok(script) = std::env::var(SCRIPT) else { return };
    println!(); // The test harness has begun a line.
    for operation in script.split(';') {
        let words: Vec<&str> = operation.split_whitespace().collect();
        let result = match words[..] {
            ["fork", limit] => fork(limit.parse().unwrap()),
            ["touch", mib] => touch(mib.parse().unwrap()).len().to_string(),
            ["hold", mib] => hold(mib.parse().unwrap()),
            ["huge", mib, "reserved"] => errno(huge(mib.parse().unwrap(), MapFlags::empty())).to_string(),
            ["huge", mib, "unreserved"] => errno(huge(mib.parse().unwrap(), MapFlags::NORESERVE)).to_string(),
            ["burn", ms] => burn(Duration::from_millis(ms.parse().unwrap())),
            ["open", path, access] => errno(open(path, access)).to_string(),
            ["mknod", kind, major, minor] => errno(mknod(kind, major, minor)).to_string(),
            ["hammer", path, access, stop] => hammer(path, access, stop),
            ["vhost"] => vhost(),
            _ => panic!("no such operation: {operation}"),
        };
        println!("{MARK}{result}");
    }
    exit(0);
}

/// Has up to so many children at a time; prints how many tasks there were with our own, and the errno that ended it.
fn fork(limit: u32) -> String {
    let mut children = Vec::new();
    let mut refused = 0;
    for _ in 0..limit {
        match Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                refused = error.raw_os_error().unwrap_or(-1);
                break;
            }
        }
    }
    let number = std::fs::read_dir("/proc/self/task").unwrap().count() + children.len();
    for mut child in children {
        _ = child.kill();
        _ = child.wait();
    }
    format!("{number} {refused}")
}

/// Writes to every page of so much memory.
fn touch(mib: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; mib << 20];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    black_box(memory)
}

/// Maps so much memory in huge pages, and writes to each of them.
fn huge(mib: usize, flags: MapFlags) -> rustix::io::Result<()> {
    let (size, access) = (mib << 20, ProtFlags::READ | ProtFlags::WRITE);
    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | flags;
    // SAFETY: the kernel chooses where, and nothing else is there.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, flags) }?.cast::<u8>();
    for offset in (0..size).step_by(2 << 20) {
        // SAFETY: it lies within what was mapped.
        unsafe { start.add(offset).write_volatile(1) };
    }
    Ok(())
}

/// Keeps so much memory until it is killed.
fn hold(mib: usize) -> String {
    let memory = touch(mib);
    std::thread::sleep(Duration::from_secs(1000));
    memory.len().to_string()
}

/// Keeps one CPU busy for so long; prints CPU time per wall time in percent.
fn burn(wall: Duration) -> String {
    let used = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
    };
    let (start, before) = (Instant::now(), used());
    while start.elapsed() < wall {
        black_box(0);
    }
    format!("{:.0}", 100.0 * (used() - before).as_secs_f64() / start.elapsed().as_secs_f64())
}

fn open(path: &str, access: &str) -> rustix::io::Result<()> {
    let flags = match access {
        "r" => OFlags::RDONLY,
        "w" => OFlags::WRONLY,
        _ => OFlags::RDWR,
    };
    rustix::fs::open(path, flags | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map(drop)
}

/// Makes a device node and removes it again.
fn mknod(kind: &str, major: &str, minor: &str) -> rustix::io::Result<()> {
    let kind = if kind == "b" { FileType::BlockDevice } else { FileType::CharacterDevice };
    let device = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
    let path = std::env::temp_dir().join(format!("node-{}", std::process::id()));
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR, device)?;
    rustix::fs::unlink(&path)
}

/// Opens a device again and again until a file appears; prints how often it did, and how often that failed.
fn hammer(path: &str, access: &str, stop: &str) -> String {
    let (mut tries, mut failures) = (0_u64, 0_u64);
    while !std::fs::exists(stop).unwrap() {
        for _ in 0..100 {
            tries += 1;
            failures += u64::from(open(path, access).is_err());
        }
    }
    format!("{tries} {failures}")
}

/// Has the kernel work for this process as for a VMM's network device, beside a thread that is named as a vCPU's; stays.
fn vhost() -> String {
    const SET_OWNER: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0xaf, 1);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/vhost-net", flags, Mode::empty()).unwrap();
    // SAFETY: VHOST_SET_OWNER takes nothing.
    unsafe { rustix::ioctl::ioctl(&device, rustix::ioctl::NoArg::<SET_OWNER>::new()) }.unwrap();
    let vcpu = std::thread::Builder::new().name("vcpu0".to_owned());
    _ = vcpu.spawn(|| std::thread::sleep(Duration::from_secs(1000))).unwrap().join();
    String::new()
}

fn errno(result: rustix::io::Result<()>) -> i32 {
    result.err().map_or(0, rustix::io::Errno::raw_os_error)
}
