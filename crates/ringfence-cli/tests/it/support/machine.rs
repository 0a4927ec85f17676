//! A real virtual machine without an operating system: QEMU, firmware of a few instructions, and QEMU's monitor.
//!
//! It is busy at once, even where QEMU's interpreter runs under another one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, Sandbox, skip, until};

const QEMU: &str = "qemu-system-x86_64";

/// Fills 16 MiB of memory, lets the second processor begin, and spins on both.
#[rustfmt::skip]
const SPINS: &[u8] = &[
    0x66, 0xBF, 0, 0, 0x10, 0,                        //       mov edi, 100000h
    0x67, 0x66, 0x89, 0x3F,                           // next: mov [edi], edi
    0x66, 0x81, 0xC7, 0, 0x10, 0, 0,                  //       add edi, 1000h
    0x66, 0x81, 0xFF, 0, 0, 0x10, 1,                  //       cmp edi, 1100000h
    0x72, 0xEC,                                       //       jb next
    // A start-up message to all other processors: they begin at F1000h. The interpreter knows no limits of segments.
    0x66, 0xBF, 0, 0x03, 0xE0, 0xFE,                  //       mov edi, FEE00300h
    0x67, 0x66, 0xC7, 0x07, 0xF1, 0x46, 0x0C, 0,      //       mov dword [edi], C46F1h
    0xEB, 0xFE,                                       // spin: jmp spin
];

/// Spins, and looks now and then whether the second processor is to be taken out: then it lets go of it, as ACPI would
/// (QEMU's docs/specs/acpi_cpu_hotplug.rst).
#[rustfmt::skip]
const LETS_GO: &[u8] = &[
    0xBA, 0xD8, 0x0C,                                 //       mov dx, CD8h
    0x30, 0xC0,                                       //       xor al, al
    0xEE,                                             //       out dx, al: this interface, not the older one
    0x66, 0xB9, 0, 0, 0x08, 0,                        // look: mov ecx, 80000h
    0x67, 0xE2, 0xFD,                                 // spin: loop spin
    0xBA, 0xD8, 0x0C,                                 //       mov dx, CD8h
    0x66, 0xB8, 1, 0, 0, 0,                           //       mov eax, 1
    0x66, 0xEF,                                       //       out dx, eax: it is about this processor
    0xB2, 0xDC,                                       //       mov dl, DCh
    0xEC,                                             //       in al, dx
    0xA8, 4,                                          //       test al, 4
    0x74, 0xE5,                                       //       jz look
    0xB0, 8,                                          //       mov al, 8
    0xEE,                                             //       out dx, al
    0xEB, 0xE0,                                       //       jmp look
];

/// A ROM of 64 KiB.
fn rom(code: &[u8]) -> Vec<u8> {
    let mut rom = vec![0; 64 << 10];
    rom[..code.len()].copy_from_slice(code);
    // Where the other processors begin: jmp to itself.
    rom[0x1000..0x1002].copy_from_slice(&[0xEB, 0xFE]);
    // Where the first one begins: jmp 0.
    rom[0xFFF0..0xFFF3].copy_from_slice(&[0xE9, 0x0D, 0x00]);
    rom
}

/// A machine that is yet to be started, stopped at its first instruction, and a sandbox for it.
pub struct Machine {
    pub sandbox: Sandbox,
    pub socket: PathBuf,
    pub program: Vec<String>,
}

impl Machine {
    /// With two processors that spin; none where there is no QEMU.
    pub fn that_spins(name: &str) -> Option<Self> {
        Self::new(name, SPINS, 2)
    }

    /// With one, and three places for more, of which it lets go of the first.
    pub fn that_lets_go(name: &str) -> Option<Self> {
        Self::new(name, LETS_GO, 1)
    }

    fn new(name: &str, code: &[u8], processors: u32) -> Option<Self> {
        if Command::new(QEMU).arg("--version").output().is_err() {
            skip("there is no QEMU");
            return None;
        }
        let sandbox = Sandbox::named(name);
        let (file, socket) = (sandbox.scratch.path().join("rom"), sandbox.scratch.path().join("qmp"));
        fs::write(&file, rom(code)).unwrap();
        let smp = format!("{processors},sockets=4,cores=1,threads=1,maxcpus=4");
        let (bios, monitor) = (file.display(), format!("unix:{},server=on,wait=off", socket.display()));
        #[rustfmt::skip]
        let program = [
            QEMU, "-S", "-accel", "tcg,thread=multi", "-machine", "q35", "-m", "32", "-smp", &smp, "-nodefaults",
            "-no-user-config", "-display", "none", "-bios", &bios.to_string(), "-qmp", &monitor,
            "-object", "iothread,id=io0", "-name", "guest,debug-threads=on",
        ];
        Some(Self { program: program.map(str::to_owned).to_vec(), sandbox, socket })
    }

    pub fn words(&self) -> Vec<&str> {
        self.program.iter().map(String::as_str).collect()
    }
}

/// A client of QEMU's monitor, which serves one at a time.
pub struct Monitor {
    lines: BufReader<UnixStream>,
    events: Vec<String>,
}

impl Monitor {
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let mut stream = None;
        until("the monitor listens", || {
            stream = UnixStream::connect(socket).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Self { lines: BufReader::new(stream), events: Vec::new() };
        assert!(monitor.hear()["QMP"].is_object());
        monitor.ask("qmp_capabilities", json!({}));
        monitor
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    #[track_caller]
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{request}").unwrap();
        loop {
            let heard = self.hear();
            match heard["event"].as_str() {
                Some(event) => self.events.push(event.to_owned()),
                None => {
                    assert!(heard["return"] != Value::Null, "{request}: {heard}");
                    return heard["return"].clone();
                }
            }
        }
    }

    pub fn wait_for(&mut self, event: &str) {
        while !self.events.iter().any(|known| known == event) {
            let heard = self.hear();
            self.events.extend(heard["event"].as_str().map(str::to_owned));
        }
        self.events.clear();
    }

    /// Two disks of nothing, which the I/O thread serves.
    pub fn add_disks(&mut self) {
        for name in ["disk", "copy"] {
            self.ask("blockdev-add", json!({"driver": "null-co", "node-name": name, "size": 1 << 16}));
            self.ask("x-blockdev-set-iothread", json!({"node-name": name, "iothread": "io0"}));
        }
    }

    /// Lets the I/O thread copy one disk to the other.
    pub fn copy_disk(&mut self) {
        self.ask(
            "blockdev-mirror",
            json!({"device": "disk", "target": "copy", "sync": "full", "job-id": "job"}),
        );
        self.wait_for("BLOCK_JOB_READY");
        self.ask("block-job-cancel", json!({"device": "job"}));
        self.wait_for("BLOCK_JOB_COMPLETED");
    }

    /// How long an answer takes: the middle one of so many.
    pub fn round_trip(&mut self, times: usize) -> Duration {
        middle(times, || drop(self.ask("query-cpus-fast", json!({}))))
    }

    /// How long the I/O thread takes for a disk.
    pub fn copying(&mut self, times: usize) -> Duration {
        middle(times, || self.copy_disk())
    }
}

fn middle(times: usize, mut work: impl FnMut()) -> Duration {
    let mut taken: Vec<_> = (0..times)
        .map(|_| {
            // Not in step with the kernel's periods.
            std::thread::sleep(Duration::from_millis(7));
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    taken.sort();
    taken[times / 2]
}

/// The threads of a process, and the cgroup of each in every hierarchy: controllers as `/proc/PID/cgroup` has them, and path.
pub fn threads_of(pid: u32) -> BTreeMap<u64, Vec<(String, String)>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let places = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("cgroup")).ok()?;
        let place = |line: &str| {
            let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            (controllers.to_owned(), path.to_owned())
        };
        Some((task.file_name().to_str()?.parse().ok()?, text.lines().map(place).collect()))
    });
    places.collect()
}
