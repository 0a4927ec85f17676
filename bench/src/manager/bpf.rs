//! A device program by bare bpf(2): a default of deny, and exceptions.

use std::os::fd::{FromRawFd as _, OwnedFd};

use crate::Result;

/// What the runtime allows, beside what is asked for: type, major, minor.
pub const DEFAULTS: [(char, u32, Option<u32>); 8] = [
    ('c', 1, Some(3)),
    ('c', 1, Some(5)),
    ('c', 1, Some(7)),
    ('c', 1, Some(8)),
    ('c', 1, Some(9)),
    ('c', 5, Some(0)),
    ('c', 5, Some(2)),
    ('c', 136, None),
];

type Instruction = [u8; 8];

fn instruction(code: u8, registers: u8, jump: u8, value: u32) -> Instruction {
    let [a, b, c, d] = value.to_le_bytes();
    [code, registers, jump, 0, a, b, c, d]
}

/// Where a comparison that is met leads.
enum To {
    Chars,
    OverOne,
    Allow,
    Deny,
}

/// Allows the defaults and reading and writing `b 240:0` up to `b 240:MINORS`: as few instructions as somebody writes who
/// knows that it is these.
pub fn load(minors: u32) -> Result<OwnedFd> {
    const IS: u8 = 0x15;
    const IS_NOT: u8 = 0x55;
    const IS_ABOVE: u8 = 0x25;
    const HAS: u8 = 0x45;
    const MKNOD: u32 = 1;
    let [kind, access, major_of, minor_of] = [2_u8, 3, 4, 5];
    let mut program = vec![
        instruction(0x61, 0x12, 0, 0),
        instruction(0xbc, 0x23, 0, 0),
        instruction(0x54, kind, 0, 0xffff),
        instruction(0x74, access, 0, 16),
        [0x61, 0x14, 4, 0, 0, 0, 0, 0],
        [0x61, 0x15, 8, 0, 0, 0, 0, 0],
    ];
    let mut comparisons = vec![
        (IS_NOT, kind, 1, To::Chars),
        (HAS, access, MKNOD, To::Deny),
        (IS_NOT, major_of, super::MAJOR, To::Deny),
        (IS_ABOVE, minor_of, minors - 1, To::Deny),
        (IS, kind, 1, To::Allow),
    ];
    let chars = comparisons.len();
    comparisons.push((IS_NOT, kind, 2, To::Deny));
    for (_, major, minor) in DEFAULTS {
        comparisons.extend(minor.map(|_| (IS_NOT, major_of, major, To::OverOne)));
        comparisons
            .push(minor.map_or((IS, major_of, major, To::Allow), |minor| (IS, minor_of, minor, To::Allow)));
    }
    let deny = comparisons.len();
    for (at, (code, register, value, to)) in comparisons.into_iter().enumerate() {
        let target = match to {
            To::Chars => chars,
            To::OverOne => at + 2,
            To::Deny => deny,
            To::Allow => deny + 2,
        };
        program.push(instruction(code, register, (target - at - 1) as u8, value));
    }
    for answer in [0, 1] {
        program.push(instruction(0xb7, 0x00, 0, answer));
        program.push(instruction(0x95, 0, 0, 0));
    }

    let license = c"GPL".as_ptr() as u64;
    let mut attributes = [0_u64; 16];
    attributes[0] = 15 | (program.len() as u64) << 32; // BPF_PROG_TYPE_CGROUP_DEVICE
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = license;
    let fd = call(5, &mut attributes)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Beside others, or in the place of one.
pub fn attach(cgroup: i32, program: i32, replaced: Option<i32>) -> Result<()> {
    let flags = if replaced.is_some() { 2 | 4 } else { 2_u64 };
    let mut attributes = [0_u64; 16];
    attributes[0] = cgroup as u64 | (program as u64) << 32;
    attributes[1] = 6 | flags << 32; // BPF_CGROUP_DEVICE
    attributes[2] = replaced.unwrap_or(0) as u64;
    call(8, &mut attributes).map(drop)
}

/// The number of a program, and what is attached to a cgroup: by the first, another process finds it again; the second is
/// not to be put out of force.
pub fn look(cgroup: i32, program: i32) -> Result<()> {
    let mut info = [0_u8; 256];
    let mut attributes = [0_u64; 16];
    attributes[0] = program as u64 | (info.len() as u64) << 32;
    attributes[1] = info.as_mut_ptr() as u64;
    call(15, &mut attributes)?; // BPF_OBJ_GET_INFO_BY_FD
    let mut ids = [0_u32; 64];
    let mut attributes = [0_u64; 16];
    attributes[0] = cgroup as u64 | 6 << 32; // BPF_CGROUP_DEVICE
    attributes[2] = ids.as_mut_ptr() as u64;
    attributes[3] = ids.len() as u64;
    call(16, &mut attributes).map(drop) // BPF_PROG_QUERY
}

fn call(command: i32, attributes: &mut [u64; 16]) -> Result<i32> {
    // SAFETY: what the attributes point to outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if done < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(done as i32) }
}
