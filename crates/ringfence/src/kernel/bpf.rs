//! bpf(2) for programs of type `CGROUP_DEVICE`: load, attach, replace, detach, query.
//!
//! <https://man7.org/linux/man-pages/man2/bpf.2.html>. The kernel makes every descriptor close-on-exec.

use std::ffi::c_long;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

type Result<T, E = Errno> = std::result::Result<T, E>;

const PROG_LOAD: c_long = 5;
const PROG_ATTACH: c_long = 8;
const PROG_DETACH: c_long = 9;
const PROG_GET_FD_BY_ID: c_long = 13;
const OBJ_GET_INFO_BY_FD: c_long = 15;
const PROG_QUERY: c_long = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const QUERY_EFFECTIVE: u32 = 1;

/// Attach flag: a program below takes the place of this one (`BPF_F_ALLOW_OVERRIDE`).
pub(crate) const ALLOW_OVERRIDE: u32 = 1;
/// Attach flag: several programs, here and below, that must all agree (`BPF_F_ALLOW_MULTI`, Linux 4.15).
pub(crate) const ALLOW_MULTI: u32 = 2;
/// Attach flag: at once in the place of another program (`BPF_F_REPLACE`, Linux 5.6).
const REPLACE: u32 = 4;

/// `BPF_OBJ_NAME_LEN`: the longest name is one byte less.
const NAME_SIZE: usize = 16;

/// `union bpf_attr`, as far as it is used. All of `whole` is given to the kernel, zero where nothing was set: kernels
/// from 6.17 write up to 64 bytes into it for `PROG_QUERY`, older ones accept any length whose rest is zero.
#[repr(C)]
union Attr {
    load: Load,
    attach: Attach,
    query: Query,
    by_id: u32,
    info: GetInfo,
    whole: [u64; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_SIZE],
}

/// `PROG_ATTACH` and `PROG_DETACH`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: RawFd,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Query {
    target_fd: RawFd,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    /// What follows must be 0 to a kernel that knows no more fields (EINVAL, seen on Linux 5.10); padding need not be.
    zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GetInfo {
    bpf_fd: RawFd,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, up to what Linux 4.15 has.
#[repr(C)]
#[derive(Default)]
struct Info {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; NAME_SIZE],
}

/// What the kernel says of a loaded program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// Unique on this machine until it is unloaded.
    pub(crate) id: u32,
    /// A hash of the instructions: programs that do the same have the same.
    pub(crate) tag: [u8; 8],
    /// The name that it was loaded with.
    pub(crate) name: String,
}

/// The device programs of one cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attached {
    /// 0 (no program below is allowed), [`ALLOW_OVERRIDE`] or [`ALLOW_MULTI`].
    pub(crate) flags: u32,
    /// In the order in which they run.
    pub(crate) ids: Vec<u32>,
}

/// Why a program was not loaded.
#[derive(Debug)]
pub(crate) struct LoadError {
    pub(crate) errno: Errno,
    /// What the verifier said, if it refused the program.
    pub(crate) log: String,
}

/// One call. What it returns is a descriptor for the commands that make one, else 0.
///
/// # Safety
/// Every address in `attr` must be valid for what the command reads and writes there.
unsafe fn bpf(command: c_long, attr: &mut Attr) -> Result<RawFd> {
    loop {
        // SAFETY: `attr` is as long as is said; what it points to is the caller's promise.
        let returned = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<Attr>()) };
        if returned >= 0 {
            return Ok(returned as RawFd);
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()) {
            // The verifier gives up for a pending signal with EAGAIN.
            Some(Errno::INTR | Errno::AGAIN) => {}
            errno => return Err(errno.unwrap_or(Errno::IO)),
        }
    }
}

impl Attr {
    fn new() -> Self {
        Self { whole: [0; 16] }
    }
}

/// The address of a buffer, as the kernel wants it.
fn address<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}

/// Loads a device program. Needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN.
///
/// A refused program is loaded once more with a buffer for the verifier's log.
pub(crate) fn load(instructions: &[[u8; 8]], name: &str) -> Result<OwnedFd, LoadError> {
    load_logging(instructions, name, &mut []).map_err(|errno| {
        let mut log = Vec::new();
        if matches!(errno, Errno::INVAL | Errno::ACCESS | Errno::TOOBIG) {
            log.resize(64 * 1024, 0);
            // It fails again, and with ENOSPC if the log is longer.
            drop(load_logging(instructions, name, &mut log));
        }
        LoadError { errno, log: until_nul(&log).trim_end().to_owned() }
    })
}

/// A C string in a buffer.
fn until_nul(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn load_logging(instructions: &[[u8; 8]], name: &str, log: &mut [u8]) -> Result<OwnedFd> {
    let mut prog_name = [0; NAME_SIZE];
    let room = prog_name.iter_mut().take(NAME_SIZE - 1);
    room.zip(name.bytes()).for_each(|(to, from)| *to = from);
    let mut attr = Attr::new();
    attr.load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: instructions.len().try_into().map_err(|_| Errno::TOOBIG)?,
        insns: address(instructions.as_ptr()),
        // The kernel asks only whether it may offer GPL helpers; none is called.
        license: address(c"Dual MIT/GPL".as_ptr()),
        log_level: (!log.is_empty()).into(),
        log_size: log.len().try_into().map_err(|_| Errno::TOOBIG)?,
        log_buf: if log.is_empty() { 0 } else { address(log.as_mut_ptr()) },
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: the instructions, the license and the log outlive the call, and their lengths are given.
    let fd = unsafe { bpf(PROG_LOAD, &mut attr) }?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a cgroup beside others ([`ALLOW_MULTI`]), or at once in the place of `replaced`.
///
/// EINVAL with `replaced`: this kernel cannot replace (before 5.6). EPERM: the cgroup or one above it has a program that
/// allows no others. E2BIG: it has 64.
pub(crate) fn attach(cgroup: BorrowedFd<'_>, program: &OwnedFd, replaced: Option<&OwnedFd>) -> Result<()> {
    attach_with(cgroup, program, ALLOW_MULTI | replaced.map_or(0, |_| REPLACE), replaced)
}

/// As [`attach`], with any flags.
pub(crate) fn attach_with(
    cgroup: BorrowedFd<'_>,
    program: &OwnedFd,
    flags: u32,
    replaced: Option<&OwnedFd>,
) -> Result<()> {
    let mut attr = Attr::new();
    attr.attach = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        attach_flags: flags,
        replace_bpf_fd: replaced.map_or(0, AsRawFd::as_raw_fd),
    };
    // SAFETY: there are no addresses in it.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches a program from a cgroup. ENOENT: it is not attached there.
pub(crate) fn detach(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Result<()> {
    let mut attr = Attr::new();
    attr.attach = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    // SAFETY: there are no addresses in it.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(drop)
}

/// The programs attached to this cgroup itself. Needs CAP_SYS_ADMIN or CAP_NET_ADMIN.
pub(crate) fn attached(cgroup: BorrowedFd<'_>) -> Result<Attached> {
    query(cgroup, 0)
}

/// The programs that decide for this cgroup: its own and those of its ancestors. The flags are not known (0).
pub(crate) fn effective(cgroup: BorrowedFd<'_>) -> Result<Attached> {
    query(cgroup, QUERY_EFFECTIVE)
}

fn query(cgroup: BorrowedFd<'_>, query_flags: u32) -> Result<Attached> {
    // One cgroup has at most 64; effective are more.
    let mut ids = vec![0; 64];
    loop {
        let mut attr = Attr::new();
        attr.query = Query {
            target_fd: cgroup.as_raw_fd(),
            attach_type: CGROUP_DEVICE,
            query_flags,
            attach_flags: 0,
            prog_ids: address(ids.as_mut_ptr()),
            prog_cnt: ids.len().try_into().map_err(|_| Errno::TOOBIG)?,
            zero: 0,
        };
        // SAFETY: `ids` outlives the call, and its length is given.
        let done = unsafe { bpf(PROG_QUERY, &mut attr) };
        // SAFETY: every bit pattern is a `Query`.
        let Query { attach_flags, prog_cnt, .. } = unsafe { attr.query };
        match done {
            Err(Errno::NOSPC) if ids.len() < 65536 => ids.resize(ids.len() * 4, 0),
            Err(errno) => return Err(errno),
            Ok(_) => {
                ids.truncate(prog_cnt.try_into().unwrap_or(usize::MAX));
                return Ok(Attached { flags: attach_flags, ids });
            }
        }
    }
}

/// A program by its number. Needs CAP_SYS_ADMIN (EPERM). ENOENT: there is none, or no more.
pub(crate) fn program_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = Attr::new();
    attr.by_id = id;
    // SAFETY: there are no addresses in it.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of a program.
pub(crate) fn info(program: impl AsFd) -> Result<Program> {
    let mut info = Info::default();
    let mut attr = Attr::new();
    attr.info = GetInfo {
        bpf_fd: program.as_fd().as_raw_fd(),
        info_len: size_of::<Info>() as u32,
        info: address(&raw mut info),
    };
    // SAFETY: `info` outlives the call, and its length is given.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(Program { id: info.id, tag: info.tag, name: until_nul(&info.name) })
}

/// Whether the kernel knows `BPF_F_REPLACE`, asked without attaching anything: flags that it does not know are refused
/// before it looks at the descriptors.
pub(crate) fn can_replace() -> bool {
    let mut attr = Attr::new();
    attr.attach = Attach {
        target_fd: -1,
        attach_bpf_fd: -1,
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | REPLACE,
        replace_bpf_fd: -1,
    };
    // SAFETY: there are no addresses in it.
    let attached = unsafe { bpf(PROG_ATTACH, &mut attr) };
    attached == Err(Errno::BADF)
}

#[cfg(test)]
mod on_a_kernel {
    use super::*;
    use crate::devices::real_cgroup::alone;
    use crate::skip::skip;

    /// r0 = 1; exit.
    const ALLOW: [[u8; 8]; 2] = [[0xb4, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

    fn can_load() -> bool {
        match load(&ALLOW, "rf_test") {
            Err(error) if error.errno == Errno::PERM || error.errno == Errno::NOSYS => {
                skip(&format!("no device program can be loaded here: {error:?}"));
                false
            }
            loaded => loaded.is_ok(),
        }
    }

    #[test]
    fn a_loaded_program_has_its_name_its_tag_and_a_close_on_exec_descriptor() {
        if !can_load() {
            return;
        }
        let _alone = alone();
        let (one, two) = (load(&ALLOW, "rf_test").unwrap(), load(&ALLOW, "a_name_that_is_too_long").unwrap());
        let (first, second) = (info(&one).unwrap(), info(&two).unwrap());
        assert_eq!((first.name.as_str(), second.name.as_str()), ("rf_test", "a_name_that_is_"));
        assert!(first.tag == second.tag && first.id != second.id);
        let again = program_by_id(first.id).unwrap();
        assert_eq!(info(&again).unwrap(), first);
        for fd in [&one, &again] {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop((one, again));
        assert_eq!(program_by_id(first.id).unwrap_err(), Errno::NOENT, "the last descriptor is closed");
    }

    #[test]
    fn a_refused_program_comes_with_the_verifiers_log() {
        if !can_load() {
            return;
        }
        // exit, with nothing in r0.
        let error = load(&[[0x95, 0, 0, 0, 0, 0, 0, 0]], "rf_test").unwrap_err();
        assert!(error.log.contains("R0 !read_ok"), "{error:?}");
    }

    #[test]
    fn replacing_is_known_where_the_kernel_is_5_6_or_later() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        if can_load() {
            assert_eq!(can_replace(), version >= (5, 6));
        }
    }
}
