//! sched_setaffinity(2) and sched_getaffinity(2) for as many CPUs as any kernel is built for: the masks of C libraries end
//! at 1024, and a kernel for more refuses to fill one.

use std::ffi::c_ulong;

use rustix::io::{Errno, Result};

use crate::resources::CpuSet;

const BITS: usize = c_ulong::BITS as usize;
const WORDS: usize = (CpuSet::LAST as usize + 1) / BITS;

/// The CPUs on which a thread may run, as the kernel takes them.
struct Mask([c_ulong; WORDS]);

impl Mask {
    fn of(cpus: &CpuSet) -> Self {
        let mut words = [0; WORDS];
        for cpu in cpus.iter().map(|cpu| cpu as usize) {
            if let Some(word) = words.get_mut(cpu / BITS) {
                *word |= 1 << (cpu % BITS);
            }
        }
        Self(words)
    }

    fn cpus(&self) -> CpuSet {
        let set = |cpu: &u32| {
            let cpu = *cpu as usize;
            self.0.get(cpu / BITS).is_some_and(|word| word & (1 << (cpu % BITS)) != 0)
        };
        CpuSet::from_numbers((0..=CpuSet::LAST).filter(set)).unwrap_or_default()
    }
}

/// Lets a thread run on these CPUs, as far as its cpuset has them.
///
/// EINVAL if it has none of them; ESRCH if there is no such thread.
pub(crate) fn set(tid: u32, cpus: &CpuSet) -> Result<()> {
    set_mask(tid, &Mask::of(cpus))
}

/// Lets a thread run on every CPU that its cpuset has, and will have.
pub(crate) fn set_all(tid: u32) -> Result<()> {
    set_mask(tid, &Mask([c_ulong::MAX; WORDS]))
}

fn set_mask(tid: u32, mask: &Mask) -> Result<()> {
    let tid = thread(tid)?;
    // SAFETY: the kernel reads the mask, of which it is told the size, and nothing else.
    let done = unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, tid, std::mem::size_of::<Mask>(), mask.0.as_ptr())
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The CPUs on which a thread may run.
pub(crate) fn get(tid: u32) -> Result<CpuSet> {
    let tid = thread(tid)?;
    let mut mask = Mask([0; WORDS]);
    // SAFETY: the kernel writes into the mask, at most as much as it is told that there is.
    let written = unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid, std::mem::size_of::<Mask>(), mask.0.as_mut_ptr())
    };
    if written >= 0 { Ok(mask.cpus()) } else { Err(last_errno()) }
}

/// 0 would be the calling thread.
fn thread(tid: u32) -> Result<libc::pid_t> {
    libc::pid_t::try_from(tid).ok().filter(|tid| *tid > 0).ok_or(Errno::SRCH)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_the_first_cpu_and_the_last() {
        let cpus: CpuSet = "0,63-64,1024,8191".parse().unwrap();
        assert_eq!(Mask::of(&cpus).cpus(), cpus);
        assert_eq!(Mask::of(&CpuSet::new()).cpus(), CpuSet::new());
    }

    #[test]
    fn a_thread_is_where_it_was_told_to_be_until_it_may_be_anywhere() {
        let me = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let before = get(me).unwrap();
        let first = CpuSet::from_numbers(before.iter().take(1)).unwrap();
        set(me, &first).unwrap();
        assert_eq!(get(me).unwrap(), first);
        set_all(me).unwrap();
        assert!(before.is_subset(&get(me).unwrap()));
        assert_eq!(set(me, &"8191".parse().unwrap()), Err(Errno::INVAL));
    }

    #[test]
    fn no_thread_is_no_thread() {
        for tid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert_eq!((get(tid).unwrap_err(), set_all(tid)), (Errno::SRCH, Err(Errno::SRCH)), "{tid}");
        }
    }
}
