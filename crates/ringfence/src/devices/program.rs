//! A policy as an eBPF program of type `CGROUP_DEVICE`, for cgroup v2.
//!
//! The kernel calls the program with the access (its bits, and the type), major and minor number; 1 lets it through.
//! Opening for reading and writing is one call with both bits. The program is a chain of blocks: each tests one
//! exception, returns if it decides, and else falls through to the next; the last returns the default. Exceptions with
//! the same type and major number share those two tests. For `c 1:3 rw` and `c 1:5 rwm` under default deny (`return`
//! is two instructions):
//!
//! ```text
//!     type, access, major, minor = context
//!     if type != c skip 8
//!     if major != 1 skip 7
//!     if minor != 5 skip 2
//!     return 1
//!     if minor != 3 skip 3
//!     if access & m skip 2
//!     return 1
//!     return 0
//! ```
//!
//! No loop, map or helper; the comparisons of 32 bits need Linux 5.1.

use super::{Access, DeviceKind, DevicePolicy, Exception, Verdict};

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

/// Exceptions per block that shares tests: keeps every jump far below the 16 bits that it has.
const SHARED: usize = 256;

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
    // The narrow ones first: after one for every number of a block, the rest of it would be unreachable, which the
    // verifier refuses.
    let exceptions: Vec<Exception> = policy.exceptions().rev().collect();
    let mut program = Vec::new();
    if !exceptions.is_empty() {
        program.extend([
            Insn::load(TYPE, 0),
            Insn::copy(ACCESS, TYPE),
            Insn::new(AND, TYPE, 0xffff),
            Insn::new(SHIFT_RIGHT, ACCESS, 16),
            Insn::load(MAJOR, 4),
            Insn::load(MINOR, 8),
        ]);
    }
    for alike in exceptions.chunk_by(|a, b| (a.kind, a.numbers.major) == (b.kind, b.numbers.major)) {
        for block in alike.chunks(SHARED) {
            program.extend(block_of(block, policy.default_verdict()));
        }
    }
    program.extend(returns(policy.default_verdict()));
    program
}

/// Exceptions of one type and major number.
fn block_of(exceptions: &[Exception], default: Verdict) -> Vec<Insn> {
    let Some(first) = exceptions.first() else { return Vec::new() };
    let kind = match first.kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    };
    let mut tests = vec![Insn::new(SKIP_UNLESS_EQUAL, TYPE, kind)];
    tests.extend(first.numbers.major.map(|major| Insn::new(SKIP_UNLESS_EQUAL, MAJOR, major)));
    let each = exceptions.iter().flat_map(|exception| {
        let minor = exception.numbers.minor.map(|minor| Insn::new(SKIP_UNLESS_EQUAL, MINOR, minor));
        guarded(minor.into_iter().collect(), verdict(exception.access, default))
    });
    guarded(tests, each.collect())
}

/// For a device of the exception: decides, or falls through.
fn verdict(exception: Access, default: Verdict) -> Vec<Insn> {
    match default {
        // All of the access must be covered. What the exception does not have is tested: nothing, if it has all.
        Verdict::Deny => {
            let lacking = Access::ALL.minus(exception);
            let test = lacking.map(|lacking| Insn::new(SKIP_IF_ANY, ACCESS, lacking.bits().into()));
            guarded(test.into_iter().collect(), returns(Verdict::Allow).into())
        }
        // Any overlap denies. An access may be empty (access(2) with F_OK), so even `rwm` is tested.
        Verdict::Allow => {
            let overlap = [Insn::copy(RESULT, ACCESS), Insn::new(AND, RESULT, exception.bits().into())];
            let deny = guarded(vec![Insn::new(SKIP_IF_EQUAL, RESULT, 0)], returns(Verdict::Deny).into());
            overlap.into_iter().chain(deny).collect()
        }
    }
}

fn returns(verdict: Verdict) -> [Insn; 2] {
    [Insn::new(SET, RESULT, u32::from(verdict == Verdict::Allow)), Insn::new(EXIT, 0, 0)]
}

/// The body behind tests, each of which skips all that follows.
fn guarded(tests: Vec<Insn>, body: Vec<Insn>) -> Vec<Insn> {
    let length = tests.len() + body.len();
    let skipping = tests.into_iter().enumerate().map(|(at, test)| {
        // At most SHARED exceptions of seven instructions.
        Insn { off: (length - at - 1) as i16, ..test }
    });
    skipping.chain(body).collect()
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
        let program = compile(&policy(&["allow c 1:3 rw", "allow c 1:5 rwm"]));
        let skips: Vec<(usize, i16)> = program
            .iter()
            .enumerate()
            .skip(6)
            .filter(|(_, insn)| insn.off != 0)
            .map(|(n, i)| (n - 6, i.off))
            .collect();
        assert_eq!(skips, [(0, 8), (1, 7), (2, 2), (5, 3), (6, 2)]);
        assert_eq!(program.len(), 6 + 9 + 2);
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
        rules.extend(
            (0..5000).map(|minor| DeviceRule::allow(DeviceKind::Char, Some(7), Some(minor), Access::WRITE)),
        );
        let program = compile(&DevicePolicy::from_rules(&rules).unwrap().0);
        let (read, write) = (Access::READ.bits().into(), Access::WRITE.bits().into());
        assert!(run(&program, DeviceKind::Block, large, large, read));
        assert!(!run(&program, DeviceKind::Block, large, large - 1, read));
        assert!(
            run(&program, DeviceKind::Char, 7, 0, write) && run(&program, DeviceKind::Char, 7, 4999, write)
        );
        assert!(
            !run(&program, DeviceKind::Char, 7, 5000, write) && !run(&program, DeviceKind::Char, 7, 0, read)
        );
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_policy_does(rules in any_rules()) {
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
