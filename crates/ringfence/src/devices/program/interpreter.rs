//! The kernel's interpreter, as far as our programs need it, and a part of its verifier: for tests and fuzzing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "no part of the library")]

use super::*;

/// Runs the program as the kernel would; panics on whatever the verifier would refuse.
pub(crate) fn run(program: &[Insn], kind: DeviceKind, major: u32, minor: u32, access: u32) -> bool {
    let kind = if kind == DeviceKind::Block { 1 } else { 2 };
    let context = [access << 16 | kind, major, minor];
    let mut registers: [Option<u32>; 6] = [None; 6];
    let mut at = 0;
    loop {
        let insn = program[at];
        let (imm, dst) = (insn.imm.cast_unsigned(), usize::from(insn.dst));
        let mut skip = false;
        match insn.code {
            LOAD => {
                assert_eq!((insn.src, insn.off % 4), (CONTEXT, 0));
                registers[dst] = Some(context[usize::try_from(insn.off / 4).unwrap()]);
            }
            MOVE => registers[dst] = Some(registers[usize::from(insn.src)].unwrap()),
            SET => registers[dst] = Some(imm),
            AND => registers[dst] = Some(registers[dst].unwrap() & imm),
            SHIFT_RIGHT => registers[dst] = Some(registers[dst].unwrap() >> imm),
            SKIP_UNLESS_EQUAL => skip = registers[dst].unwrap() != imm,
            SKIP_IF_EQUAL => skip = registers[dst].unwrap() == imm,
            SKIP_IF_ANY => skip = registers[dst].unwrap() & imm != 0,
            EXIT => return registers[0].unwrap() == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
        at += 1 + if skip { usize::try_from(insn.off).unwrap() } else { 0 };
    }
}

/// The first instruction that no jump leads to: the verifier refuses such a program ("unreachable insn").
pub(crate) fn unreachable(program: &[Insn]) -> Option<usize> {
    let mut reached = vec![false; program.len()];
    reached[0] = true;
    // Jumps lead forward only.
    for (at, insn) in program.iter().enumerate().filter(|(_, insn)| insn.code != EXIT) {
        if reached[at] {
            reached[at + 1] = true;
            if matches!(insn.code, SKIP_UNLESS_EQUAL | SKIP_IF_EQUAL | SKIP_IF_ANY) {
                reached[at + 1 + usize::try_from(insn.off).unwrap()] = true;
            }
        }
    }
    reached.iter().position(|reached| !reached)
}
