//! A policy as an eBPF program of type `CGROUP_DEVICE`, for cgroup v2.
//!
//! The kernel calls the program with the access (its bits, and the type), major and minor number; 1 lets it through.
//! Opening for reading and writing is one call with both bits. The program is a chain of blocks within blocks: those of one
//! type, of one major number, of one access. The innermost returns for its minor numbers; all else falls through to the
//! next one; the last instructions return the default. For `c 1:3 rw`, `c 1:5 rwm` and `c 1:7 rwm` under default deny
//! (`return` is two instructions):
//!
//! ```text
//!     type, access, major, minor = context
//!     if type != c skip 9
//!     if major != 1 skip 8
//!     if access & m skip 3
//!     if minor != 3 skip 2
//!     return 1
//!     if minor == 5 skip 1
//!     if minor != 7 skip 2
//!     return 1
//!     return 0
//! ```
//!
//! No loop, map or helper; the comparisons of 32 bits need Linux 5.1. What the verifier looks at is most of the time that it
//! takes to load one.

use std::ops::Range;

use super::{Access, DeviceKind, DevicePolicy, Exception, Numbers, Verdict};

/// One eBPF instruction, with the fields of the kernel's `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Insn {
    pub(crate) code: u8,
    pub(crate) dst: u8,
    pub(crate) src: u8,
    pub(crate) off: i16,
    pub(crate) imm: i32,
}

/// `BPF_LDX | BPF_MEM | BPF_W`: dst = *(u32 *)(src + off).
const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_MOV | BPF_X`: dst = src, 32 bits.
const MOVE: u8 = 0xbc;
/// `BPF_ALU | BPF_MOV | BPF_K`: dst = imm.
const SET: u8 = 0xb4;
/// `BPF_ALU | BPF_AND | BPF_K`: dst &= imm.
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`: dst >>= imm.
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_JMP32 | BPF_JNE | BPF_K`: skip off if dst != imm.
const SKIP_UNLESS_EQUAL: u8 = 0x56;
/// `BPF_JMP32 | BPF_JEQ | BPF_K`: skip off if dst == imm.
const SKIP_IF_EQUAL: u8 = 0x16;
/// `BPF_JMP32 | BPF_JSET | BPF_K`: skip off if dst & imm.
const SKIP_IF_ANY: u8 = 0x46;
/// `BPF_JMP | BPF_EXIT`: return r0.
const EXIT: u8 = 0x95;

/// Where the context and what is loaded from it are kept.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Exceptions of one type that share its test: seven instructions each at the most, which keeps every jump within its 16 bits.
const OF_KIND: usize = 4096;

/// As many exceptions at the most share what they return: of more, each returns by itself. The verifier looks at what a jump
/// leads to after all else, and puts up with 8192 jumps to look at; with 1024 before Linux 5.3.
const SHARING: usize = 256;

impl Insn {
    fn new(code: u8, dst: u8, imm: u32) -> Self {
        Self { code, dst, src: 0, off: 0, imm: imm.cast_signed() }
    }

    fn load(dst: u8, off: i16) -> Self {
        Self { src: CONTEXT, off, ..Self::new(LOAD, dst, 0) }
    }

    fn copy(dst: u8, src: u8) -> Self {
        Self { src, ..Self::new(MOVE, dst, 0) }
    }

    /// The eight bytes that the kernel takes; the two register fields are bit fields, and so depend on the machine.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let registers = match cfg!(target_endian = "little") {
            true => self.src << 4 | self.dst,
            false => self.dst << 4 | self.src,
        };
        let [off_0, off_1] = self.off.to_ne_bytes();
        let [imm_0, imm_1, imm_2, imm_3] = self.imm.to_ne_bytes();
        [self.code, registers, off_0, off_1, imm_0, imm_1, imm_2, imm_3]
    }
}

/// Compiles a policy. Programs of equal policies are equal.
pub(crate) fn compile(policy: &DevicePolicy) -> Vec<Insn> {
    let default = policy.default_verdict();
    let mut exceptions: Vec<Exception> = policy.exceptions().collect();
    if exceptions.is_empty() {
        return returns(default).into();
    }
    // The narrow ones first: after one for every number of a block, the rest of it would be unreachable, which the
    // verifier refuses.
    exceptions.sort_unstable_by_key(|exception| {
        let Exception { kind, numbers: Numbers { major, minor }, access } = *exception;
        (kind, major.is_none(), major, minor.is_none(), access, minor)
    });
    let sharing = if exceptions.len() <= SHARING { SHARING } else { 1 };
    let mut program = vec![
        Insn::load(TYPE, 0),
        Insn::copy(ACCESS, TYPE),
        Insn::new(AND, TYPE, 0xffff),
        Insn::new(SHIFT_RIGHT, ACCESS, 16),
        Insn::load(MAJOR, 4),
        Insn::load(MINOR, 8),
    ];
    for of_kind in exceptions.chunk_by(|a, b| a.kind == b.kind).flat_map(|alike| alike.chunks(OF_KIND)) {
        within(&mut program, kind_test(of_kind), |program| {
            for of_major in of_kind.chunk_by(|a, b| a.numbers.major == b.numbers.major) {
                within(program, major_test(of_major), |program| {
                    for of_access in of_major.chunk_by(is_decided_alike) {
                        decide(program, of_access, default, sharing);
                    }
                });
            }
        });
    }
    program.extend(returns(default));
    program
}

/// A test, and a body that is skipped where the test says so.
fn within(program: &mut Vec<Insn>, test: Option<Insn>, body: impl FnOnce(&mut Vec<Insn>)) {
    let tests = program.len();
    program.extend(test);
    let begin = program.len();
    body(program);
    skip(program, tests..begin);
}

/// Makes instructions skip what is behind them.
fn skip(program: &mut [Insn], skipping: Range<usize>) {
    let end = program.len();
    for (at, insn) in program.iter_mut().enumerate().take(skipping.end).skip(skipping.start) {
        // As far as OF_KIND exceptions.
        insn.off = (end - at - 1) as i16;
    }
}

fn kind_test(exceptions: &[Exception]) -> Option<Insn> {
    let kind = match exceptions.first()?.kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    };
    Some(Insn::new(SKIP_UNLESS_EQUAL, TYPE, kind))
}

fn major_test(exceptions: &[Exception]) -> Option<Insn> {
    exceptions.first()?.numbers.major.map(|major| Insn::new(SKIP_UNLESS_EQUAL, MAJOR, major))
}

/// Of the same type and major number: whether only the minor number tells them apart.
fn is_decided_alike(a: &Exception, b: &Exception) -> bool {
    a.access == b.access && a.numbers.minor.is_some() && b.numbers.minor.is_some()
}

/// For a device of one of these exceptions: returns, if the access is what they are about.
fn decide(program: &mut Vec<Insn>, exceptions: &[Exception], default: Verdict, sharing: usize) {
    let Some(first) = exceptions.first() else { return };
    let (test, verdict) = match default {
        // All of the access must be covered. What the exception does not have is tested: nothing, if it has all.
        Verdict::Deny => {
            let lacking = Access::ALL.minus(first.access);
            (lacking.map(|lacking| Insn::new(SKIP_IF_ANY, ACCESS, lacking.bits().into())), Verdict::Allow)
        }
        // Any overlap denies. An access may be empty (access(2) with F_OK), so even `rwm` is tested.
        Verdict::Allow => {
            program.extend([Insn::copy(RESULT, ACCESS), Insn::new(AND, RESULT, first.access.bits().into())]);
            (Some(Insn::new(SKIP_IF_EQUAL, RESULT, 0)), Verdict::Deny)
        }
    };
    within(program, test, |program| {
        for exceptions in exceptions.chunks(sharing) {
            return_for(program, exceptions, verdict);
        }
    });
}

/// For the minor number of one of these exceptions: returns.
fn return_for(program: &mut Vec<Insn>, exceptions: &[Exception], verdict: Verdict) {
    let Some((last, others)) = exceptions.split_last() else { return };
    let test =
        |code, exception: &Exception| exception.numbers.minor.map(|minor| Insn::new(code, MINOR, minor));
    let begin = program.len();
    program.extend(others.iter().filter_map(|exception| test(SKIP_IF_EQUAL, exception)));
    let end = program.len();
    within(program, test(SKIP_UNLESS_EQUAL, last), |program| {
        skip(program, begin..end);
        program.extend(returns(verdict));
    });
}

fn returns(verdict: Verdict) -> [Insn; 2] {
    [Insn::new(SET, RESULT, u32::from(verdict == Verdict::Allow)), Insn::new(EXIT, 0, 0)]
}

#[cfg(any(test, fuzzing))]
pub(crate) mod interpreter;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::DeviceRule;
    use super::super::policy::tests::{any_rules, every_access, expressible, policy};
    use super::interpreter::{run, unreachable};
    use super::*;

    #[test]
    fn a_policy_without_exceptions_is_two_instructions() {
        assert_eq!(compile(&DevicePolicy::deny_all()), returns(Verdict::Deny));
        assert_eq!(compile(&DevicePolicy::allow_all()), returns(Verdict::Allow));
    }

    #[test]
    fn the_example_of_the_documentation_is_what_is_compiled() {
        let program = compile(&policy(&["allow c 1:3 rw", "allow c 1:5 rwm", "allow c 1:7 rwm"]));
        let skips: Vec<(usize, i16)> = program
            .iter()
            .enumerate()
            .skip(6)
            .filter(|(_, insn)| insn.off != 0)
            .map(|(n, i)| (n - 6, i.off))
            .collect();
        assert_eq!(skips, [(0, 9), (1, 8), (2, 3), (3, 2), (6, 1), (7, 2)]);
        assert_eq!(program.len(), 6 + 10 + 2);
    }

    #[test]
    fn reading_and_writing_at_once_needs_one_exception_with_both() {
        let read_only = compile(&policy(&["allow c 1:* r", "allow c 1:3 w"]));
        let both = u32::from(Access::READ.union(Access::WRITE).bits());
        assert!(!run(&read_only, DeviceKind::Char, 1, 3, both));
        let no_reading = compile(&policy(&["allow a", "deny c 1:3 r"]));
        assert!(!run(&no_reading, DeviceKind::Char, 1, 3, both));
        assert!(run(&no_reading, DeviceKind::Char, 1, 3, Access::WRITE.bits().into()));
    }

    #[test]
    fn the_greatest_numbers_and_thousands_of_exceptions_work() {
        let large = 4_294_967_294;
        let mut rules = vec![DeviceRule::allow(DeviceKind::Block, Some(large), Some(large), Access::READ)];
        rules.extend((0..9000).flat_map(|number| {
            let minor = DeviceRule::allow(DeviceKind::Char, Some(7), Some(number), Access::WRITE);
            let major = DeviceRule::allow(DeviceKind::Block, Some(number), Some(1), Access::WRITE);
            [minor, major]
        }));
        let program = compile(&DevicePolicy::from_rules(&rules).unwrap().0);
        assert!(program.iter().all(|insn| insn.off >= 0), "a jump goes back");
        let (read, write) = (Access::READ.bits().into(), Access::WRITE.bits().into());
        let allows = |kind, major, minor, access| run(&program, kind, major, minor, access);
        assert!(allows(DeviceKind::Block, large, large, read));
        assert!(!allows(DeviceKind::Block, large, large - 1, read));
        for number in [0, 1, 4500, 8999] {
            assert!(
                allows(DeviceKind::Char, 7, number, write) && allows(DeviceKind::Block, number, 1, write)
            );
            assert!(
                !allows(DeviceKind::Char, 7, number, read) && !allows(DeviceKind::Block, number, 2, write)
            );
        }
        assert!(!allows(DeviceKind::Char, 7, 9000, write) && !allows(DeviceKind::Block, 9000, 1, write));
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_policy_does(mut rules in any_rules(), is_large in any::<bool>()) {
            if is_large {
                // More than share what they return, whatever the default is.
                rules.extend((0..=SHARING as u32).flat_map(|minor| {
                    [
                        DeviceRule::allow(DeviceKind::Block, Some(4), Some(minor), Access::WRITE),
                        DeviceRule::deny(DeviceKind::Block, Some(4), Some(minor + 1000), Access::WRITE),
                    ]
                }));
            }
            let policy = expressible(&rules);
            let program = compile(&policy);
            prop_assert_eq!(unreachable(&program), None);
            for (kind, major, minor, access) in every_access() {
                prop_assert_eq!(
                    run(&program, kind, major, minor, access.bits().into()),
                    policy.check(kind, major, minor, access).allowed,
                    "{} {}:{} {}", kind, major, minor, access
                );
            }
        }

        #[test]
        fn an_empty_access_is_decided_as_the_v1_kernel_decides_it(rules in any_rules()) {
            let policy = expressible(&rules);
            let program = compile(&policy);
            let kernel = super::super::kernel_list::KernelList::after(&policy.to_rules());
            for (major, minor) in [(0, 0), (1, 2), (3, 3)] {
                prop_assert_eq!(run(&program, DeviceKind::Char, major, minor, 0), kernel.allows('c', major, minor, ""));
            }
        }
    }
}
