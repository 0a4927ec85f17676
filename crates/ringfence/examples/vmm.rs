//! A runtime in small; called with `vmm`, the same program is the virtual machine monitor that it ring-fences.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeWriter, Write as _, pipe, stdin};
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use ringfence::devices::DeviceRule;
use ringfence::stats::StatsReader;
use ringfence::{
    Command, Host, NamePattern, Part, Profile, Remaining, Resources, Sandbox, SandboxConfig, VcpuHints,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SOON: Duration = Duration::from_secs(10);
const VCPUS: u32 = 2;

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("vmm") { vmm() } else { runtime() }
}

fn runtime() -> Result<()> {
    let host = Host::detect()?;
    let limits = Resources::new().memory_limit(256 << 20).pids_limit(32).cpu_quota(50_000);
    let vcpus = VcpuHints::default().names("vcpu{}".parse::<NamePattern>()?).count(VCPUS);
    let config = SandboxConfig::new("example-vmm".parse()?)
        .profile(Profile::Qemu) // its devices, /dev/kvm among them
        .resources(limits)
        .vcpu_hints(vcpus);
    let (vm, report) = Sandbox::create(&host, &config)?;
    report.unsupported().for_each(|line| println!("this host cannot do {}: {}", line.setting, line.why));
    let lived = live(&vm);
    let ended = vm.destroy(Remaining::Kill, SOON)?;
    println!("killed {:?}, removed {} directories", ended.killed, ended.removed.len());
    lived
}

/// The life of a virtual machine, from its first process to the last.
fn live(vm: &Sandbox) -> Result<()> {
    // Spawned into: it never runs outside, and computes half a second in a second from the start.
    let (commands, mut ask) = pipe()?;
    let (answers, said) = pipe()?;
    let program = Command::new(std::env::current_exe()?).args(["vmm"]).stdin(commands).stdout(said);
    let vmm = vm.spawn(&program)?;
    drop(program);
    let mut answers = BufReader::new(answers).lines();
    let mut answer = || answers.next().unwrap_or(Err(std::io::ErrorKind::UnexpectedEof.into()));
    println!("the VMM is process {}: {}", vmm.pid(), answer()?);

    // Split: the quota holds for the vCPUs alone, and what serves them is beside them.
    vm.classify(&VcpuHints::default(), SOON)?;
    for thread in vm.tasks(true)? {
        println!("  {:15} {:?}", thread.name, thread.part);
    }

    // Hot-plugged: a device that comes and goes, and one answer of the kernel to each of it.
    let mut open = |ask: &mut PipeWriter| -> Result<String> {
        writeln!(ask, "/dev/kmsg")?;
        Ok(answer()?)
    };
    println!("not allowed: {}", open(&mut ask)?);
    vm.claim_devices("log", &[DeviceRule::path("/dev/kmsg")?])?;
    println!("claimed: {}", open(&mut ask)?);
    vm.release_devices("log")?;
    println!("released: {}", open(&mut ask)?);

    // Measured, and frozen: then nothing computes.
    let (mut vcpu, mut overhead) = (vm.part_stats_reader(Part::Vcpu)?, vm.part_stats_reader(Part::Overhead)?);
    println!("in a second the vCPUs computed {} ms", computed_in(Duration::from_secs(1), &mut vcpu)?);
    println!("the overhead was throttled {} times", overhead.sample()?.cpu.throttled.unwrap_or(0));
    vm.freeze(SOON)?;
    println!("frozen, they computed {} ms", computed_in(Duration::from_millis(300), &mut vcpu)?);
    vm.thaw(SOON)?;
    Ok(())
}

/// The CPU time that a part uses in a while, in milliseconds.
fn computed_in(time: Duration, part: &mut StatsReader) -> Result<u64> {
    let before = part.sample()?.cpu.usage_us;
    thread::sleep(time);
    let used = part.sample()?.cpu.usage_us.zip(before).map(|(after, before)| after - before);
    Ok(used.ok_or("there is no account of CPU time here")? / 1000)
}

/// The monitor: a thread for each vCPU, and a main thread that opens what it is told to.
fn vmm() -> Result<()> {
    // KVM may be there and yet unable to run a guest: then threads compute in the place of its CPUs.
    let machine = machine();
    match &machine {
        Ok(_) => println!("its vCPUs run under KVM"),
        Err(error) => println!("SKIPPED: KVM cannot run a vCPU here ({error}); threads compute instead"),
    }
    for index in 0..VCPUS {
        let vcpu = machine.as_ref().ok().map(|vm| vcpu(vm, u64::from(index), COMPUTE)).transpose()?;
        thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
            while vcpu.is_none() {
                std::hint::spin_loop();
            }
            vcpu.map(|mut vcpu| while vcpu.run().is_ok() {})
        })?;
    }
    for path in stdin().lines() {
        match File::open(path?) {
            Ok(_) => println!("opened"),
            Err(error) => println!("{error}"),
        }
    }
    Ok(())
}

/// Where the guest's page is, and in it what a vCPU does: it halts, or it jumps to where it is.
const PAGE: usize = 0x1000;
const HALT: u64 = 0x1000;
const COMPUTE: u64 = 0x1001;
const CODE: [u8; 3] = [0xF4, 0xEB, 0xFE];

/// A machine of one page, of which it was seen that it runs.
fn machine() -> Result<VmFd> {
    let vm = Kvm::new()?.create_vm()?;
    let memory = Vec::leak(vec![0; 2 * PAGE]);
    let offset = memory.as_ptr().align_offset(PAGE);
    let code = memory.get_mut(offset..offset + CODE.len()).ok_or("no page")?;
    code.copy_from_slice(&CODE);
    let (guest_phys_addr, memory_size) = (PAGE as u64, PAGE as u64);
    let (slot, flags, userspace_addr) = (0, 0, code.as_ptr() as u64);
    let region = kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
    // SAFETY: the page is aligned, and stays for as long as the process.
    unsafe { vm.set_user_memory_region(region) }?;
    match vcpu(&vm, u64::from(VCPUS), HALT)?.run()? {
        VcpuExit::Hlt => Ok(vm),
        exit => Err(format!("told to halt, it ends with {exit:?}").into()),
    }
}

/// A vCPU in real mode, about to do what is at an address.
fn vcpu(vm: &VmFd, index: u64, at: u64) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(index)?;
    let (mut special, mut general) = (vcpu.get_sregs()?, vcpu.get_regs()?);
    (special.cs.base, special.cs.selector) = (0, 0);
    (general.rip, general.rflags) = (at, 2);
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&general)?;
    Ok(vcpu)
}
