"""Starts guests, saves them when they are up, and runs jobs in what was saved.

Guests run under TCG, never KVM: a testbed must do the same on every machine, also on one whose
/dev/kvm answers without being able to run an ordinary kernel. One whose kernel is a program needs no QEMU.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from modes import Mode

# The size of the job disk is part of a saved guest.
JOB_DISK_MIB = 512
CPUS = 2
BOOT_TIMEOUT_S = 180
RESTORE_TIMEOUT_S = 60
KERNEL_ARGS = (
    "console=ttyS0 rdinit=/init quiet panic=-1 oops=panic mitigations=off nokaslr tsc=reliable "
    "random.trust_cpu=1 psi=1 systemd.unit=testbed.target systemd.show_status=0"
)


class GuestError(Exception):
    """The testbed itself failed: QEMU did not start, or a guest could not be booted or restored."""


class Verdict(Enum):
    """How a job ended; HUNG is no end in time, CRASHED the guest's end without an exit code."""

    PASSED = "passed"
    FAILED = "FAILED"
    HUNG = "HUNG"
    CRASHED = "CRASHED"


@dataclass(frozen=True)
class JobResult:
    """How a job ended, with what the guest's kernel said meanwhile on its console."""

    verdict: Verdict
    seconds: float
    # The job's own, where it got so far as to have one.
    exit_code: int | None
    console: str
    # What it said of its failure.
    failure: tuple[str, ...] = ()


def make_disk(path: Path, mib: int, tree: Path) -> None:
    """Makes an ext4 disk of a directory's contents, without mounting anything."""
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-I", "256",
         "-E", "lazy_itable_init=1,nodiscard", "-d", tree, path, f"{mib}M"],
        check=True, stdout=subprocess.DEVNULL,
    )


class Qmp:
    """QEMU's control protocol, as far as saving and restoring need it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._channel)
        await self._reader.readline()
        await self("qmp_capabilities")

    async def __call__(self, command: str, **arguments) -> dict:
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := await self._reader.readline():
            reply = json.loads(line)
            if "error" in reply:
                raise GuestError(f"QEMU refused {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]
        raise GuestError(f"QEMU ended during {command}")

    def close(self) -> None:
        self._writer.close()

    async def use_mapped_ram(self) -> None:
        await self("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])


class Guest:
    """A process in which a kernel runs; leaving the `async with` block kills it."""

    def __init__(self, console: Path) -> None:
        # Where the process's own complaints go.
        self.errors = console.with_suffix(".errors")
        self._control, self._control_port = socket.socketpair()
        self._output, self._output_port = socket.socketpair()
        self._ports = [self._control_port, self._output_port]
        # The kernel kills it when this process dies, in whatever way.
        self._command = ["setpriv", "--pdeathsig", "KILL", "--"]

    async def __aenter__(self) -> "Guest":
        with open(self.errors, "wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, pass_fds=[port.fileno() for port in self._ports], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        for port in self._ports:
            port.close()
        try:
            await self._connect()
        except BaseException:
            await self.kill()
            raise
        return self

    async def _connect(self) -> None:
        self._control_reader, self._control_writer = await asyncio.open_connection(sock=self._control)
        # The writer has no use, but its end would close the connection.
        self.output, self._output_writer = await asyncio.open_connection(sock=self._output)

    async def __aexit__(self, *_) -> None:
        await self.kill()
        self._control_writer.close()
        self._output_writer.close()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def come_up(self) -> None:
        """Returns when it is ready for a job."""
        try:
            async with asyncio.timeout(BOOT_TIMEOUT_S):
                message = await self.next_message()
        except TimeoutError:
            message = []
        if message != ["ready"]:
            raise GuestError("the guest did not come up")

    def start_job(self) -> None:
        self._control_writer.write(b"go\n")

    async def next_message(self) -> list[str]:
        """The words of the next line on the control port; none when the process has ended."""
        try:
            line = await self._control_reader.readline()
        except ConnectionResetError:
            return []
        return line.decode(errors="replace").split()


class Emulated(Guest):
    """One in QEMU."""

    def __init__(self, mode: Mode, saved: Path, job_disk: Path, console: Path, restore: bool) -> None:
        super().__init__(console)
        self._saved = saved
        qmp, self._qmp_port = socket.socketpair()
        self._ports.append(self._qmp_port)
        self.qmp = Qmp(qmp)
        root = f"file={saved}/root.qcow2,format=qcow2,snapshot={'on' if restore else 'off'}"
        self._command += [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", "max",
            "-smp", str(CPUS), "-m", str(mode.memory_mib), "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot",
            "-kernel", f"{saved}/vmlinux", "-initrd", f"{saved}/initrd",
            "-append", f"{KERNEL_ARGS} {mode.kernel_args}",
            *self._disk("root", root),
            *self._disk("job", f"file={job_disk},format=raw"),
            *self._disk("swap", f"file={saved}/swap,format=raw,snapshot=on"),
            "-chardev", f"file,id=console,path={console}", "-serial", "chardev:console",
            *self._port("output", self._output_port), "-serial", "chardev:output",
            *self._port("control", self._control_port), "-serial", "chardev:control",
            *self._port("qmp", self._qmp_port), "-mon", "chardev=qmp,mode=control",
            *(["-incoming", "defer"] if restore else []),
        ]

    @staticmethod
    def _disk(name: str, options: str) -> list[str]:
        # virtio: NVMe cannot be saved, and its device names race at boot.
        return ["-drive", f"if=none,id={name},cache=unsafe,{options}",
                "-device", f"virtio-blk-pci,drive={name}"]

    @staticmethod
    def _port(name: str, end: socket.socket) -> list[str]:
        return ["-chardev", f"socket,id={name},fd={end.fileno()}"]

    async def _connect(self) -> None:
        await super()._connect()
        await self.qmp.connect()

    async def __aexit__(self, *_) -> None:
        await super().__aexit__()
        self.qmp.close()

    async def come_up_again(self) -> None:
        """Goes on from where it was saved."""
        try:
            async with asyncio.timeout(RESTORE_TIMEOUT_S):
                await self.qmp.use_mapped_ram()
                await self.qmp("migrate-incoming", uri=f"file:{self._saved}/state")
                while not (await self.qmp("query-status"))["running"]:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise GuestError(f"QEMU did not restore {self._saved}") from None


class Program(Guest):
    """User-mode Linux. Its disks are copies on write, and it has one CPU."""

    def __init__(self, mode: Mode, saved: Path, job_disk: Path, console: Path) -> None:
        super().__init__(console)
        scratch = console.parent
        output, control = self._output_port.fileno(), self._control_port.fileno()
        self._command += [
            str((saved / "vmlinux").resolve()), f"mem={mode.memory_mib}M", f"uml_dir={scratch}", "quiet", "panic=-1",
            f"ubd0={scratch}/root,{(saved / 'root.ext4').resolve()}", f"ubd1={job_disk}",
            f"ubd2={scratch}/swap,{(saved / 'swap').resolve()}",
            "root=/dev/ubda", "rw", "con=null", "con0=null,fd:1",
            f"ssl1=fd:{output}", f"ssl2=fd:{control}", *mode.kernel_args.split(),
        ]

    async def come_up_again(self) -> None:
        """Boots, which takes it no longer."""
        await self.come_up()


async def save(mode: Mode, saved: Path) -> None:
    """Boots a mode's guest and saves it beside its disks as soon as it is ready for a job."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
                    "-b", (saved / "root.ext4").resolve(), saved / "root.qcow2"], check=True)
    job_disk = saved / "no-job"
    with open(job_disk, "wb") as disk:
        disk.truncate(JOB_DISK_MIB << 20)
    console = saved / "boot.log"
    async with Emulated(mode, saved, job_disk, console, restore=False) as guest:
        try:
            await guest.come_up()
        except GuestError as error:
            raise GuestError(f"{mode.name}: {error}:\n{console.read_text(errors='replace')}") from None
        await asyncio.sleep(1)  # let what came up last settle
        await guest.qmp.use_mapped_ram()
        await guest.qmp("migrate-set-parameters", **{"max-bandwidth": 10 << 30})
        await guest.qmp("migrate", uri=f"file:{saved}/state")
        while (status := (await guest.qmp("query-migrate")).get("status")) != "completed":
            if status == "failed":
                raise GuestError(f"QEMU could not save the {mode.name} guest")
            await asyncio.sleep(0.02)
    job_disk.unlink()


# Everything in this module that determines a saved guest.
RECIPE = (Emulated.__init__, Emulated._disk, save, KERNEL_ARGS, CPUS, JOB_DISK_MIB)


async def run_job(mode: Mode, saved: Path, job: Path, timeout: float,
                  show: Callable[[bytes], None]) -> JobResult:
    """Runs the program `run` of a directory in a restored guest, as root.

    The job's output goes to `show` as it comes. `timeout` is in seconds, and starts with the job.
    """
    with tempfile.TemporaryDirectory(prefix="ringfence-guest.") as scratch:
        job_disk, console = Path(scratch) / "job", Path(scratch) / "console"
        await asyncio.to_thread(make_disk, job_disk, JOB_DISK_MIB, job)
        if mode.kernel.is_program:
            guest = Program(mode, saved, job_disk, console)
        else:
            guest = Emulated(mode, saved, job_disk, console, restore=True)
        verdict, exit_code, trouble = Verdict.CRASHED, None, ""
        started = time.monotonic()
        try:
            async with guest:
                await guest.come_up_again()
                started = time.monotonic()
                guest.start_job()
                printer = asyncio.create_task(_copy(guest.output, show))
                verdict, exit_code = await _verdict(guest, timeout)
                await guest.kill()
                await printer
        except (GuestError, ConnectionError) as error:
            trouble = f"{error}\n"
        seconds = time.monotonic() - started
        logs = [file.read_text(errors="replace") for file in (console, guest.errors) if file.exists()]
    return JobResult(verdict, seconds, exit_code, trouble + "".join(logs))


async def _verdict(guest: Guest, timeout: float) -> tuple[Verdict, int | None]:
    try:
        async with asyncio.timeout(timeout):
            message = await guest.next_message()
    except TimeoutError:
        return Verdict.HUNG, None
    match message:
        case ["exit", code]:
            return (Verdict.PASSED if code == "0" else Verdict.FAILED), int(code)
        case _:
            return Verdict.CRASHED, None


async def _copy(output: asyncio.StreamReader, show: Callable[[bytes], None]) -> None:
    while data := await output.read(1 << 16):
        show(data)
