"""Starts guests, saves them when they are up, and runs programs in what was saved.

Guests run under KVM where a probe has seen it run one: /dev/kvm may answer without being able to run an ordinary
kernel. Elsewhere they run under TCG. One whose kernel is a program needs no QEMU.
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


def make_disk(path: Path, mib: int, tree: Path) -> None:
    """Makes an ext4 disk of a directory's contents, without mounting anything."""
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-I", "256",
         "-E", "lazy_itable_init=1,nodiscard", "-d", tree, path, f"{mib}M"],
        check=True, stdout=subprocess.DEVNULL,
    )


# QEMU's options for each accelerator.
ACCELERATORS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"],
}
PROBE_TIMEOUT_S = 8


def kvm_runs(kernel: Path, initrd: Path) -> bool:
    """Whether a guest of this kernel comes up under KVM: nothing less proves it."""
    with tempfile.TemporaryDirectory(prefix="ringfence-kvm.") as scratch:
        console = Path(scratch) / "console"
        console.touch()
        process = subprocess.Popen(
            ["qemu-system-x86_64", *ACCELERATORS["kvm"], "-m", "256", "-nodefaults", "-no-user-config",
             "-display", "none", "-no-reboot", "-serial", f"file:{console}", "-kernel", kernel, "-initrd", initrd,
             "-append", "console=ttyS0 quiet panic=-1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + PROBE_TIMEOUT_S
            while time.monotonic() < deadline:
                if b"guest is up" in console.read_bytes():
                    return True
                if process.poll() is not None:
                    return b"guest is up" in console.read_bytes()
                time.sleep(0.05)
            return False
        finally:
            # After an internal error of KVM it waits for ever.
            process.kill()
            process.wait()


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

    def tell(self, line: str) -> None:
        """Sends a line to the control port, which a terminal in the guest reads: at most 4095 bytes."""
        self._control_writer.write(line.encode() + b"\n")

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
            "qemu-system-x86_64", "-machine", "pc", *ACCELERATORS[(saved / "accelerator").read_text()],
            "-smp", str(CPUS), "-m", str(mode.memory_mib), "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot",
            "-kernel", f"{saved}/vmlinux", "-initrd", f"{saved}/initrd",
            "-append", f"{KERNEL_ARGS} {mode.kernel_args}",
            *self._disk("root", root),
            *self._disk("job", f"file={job_disk},format=raw,snapshot={'on' if restore else 'off'}"),
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
            f"ubd0={scratch}/root,{(saved / 'root.ext4').resolve()}", f"ubd1={scratch}/job,{job_disk.resolve()}",
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
RECIPE = (ACCELERATORS, Emulated.__init__, Emulated._disk, save, KERNEL_ARGS, CPUS, JOB_DISK_MIB)


class Session:
    """A restored guest in which one program after the other runs, as root; leaving the `async with` block ends it."""

    def __init__(self, mode: Mode, saved: Path, job_disk: Path) -> None:
        self._mode, self._saved, self._job_disk = mode, saved, job_disk

    async def __aenter__(self) -> "Session":
        self._exits = contextlib.AsyncExitStack()
        scratch = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-guest.")))
        self._console = scratch / "console"
        self._show: Callable[[bytes], None] = lambda _: None
        if self._mode.kernel.is_program:
            self._guest = Program(self._mode, self._saved, self._job_disk, self._console)
        else:
            self._guest = Emulated(self._mode, self._saved, self._job_disk, self._console, restore=True)
        try:
            await self._exits.enter_async_context(self._guest)
            await self._guest.come_up_again()
        except BaseException as error:
            await self._exits.aclose()
            if isinstance(error, ConnectionError):
                raise GuestError(str(error)) from error
            raise
        self._guest.tell("go")
        self._all_shown = asyncio.Event()
        self._printer = asyncio.create_task(self._copy())
        return self

    async def __aexit__(self, *_) -> None:
        await self._guest.kill()
        await self._printer
        await self._exits.aclose()

    async def run(self, command_line: str, timeout: float, show: Callable[[bytes], None]) -> JobResult:
        """Runs a shell command line in the job's directory; its output goes to `show` as it comes.

        `timeout` is in seconds. After anything but PASSED the guest is not to be used again.
        """
        said_before, started = len(self._log()), time.monotonic()
        self._show = show
        self._all_shown.clear()
        self._guest.tell(f"run {command_line}")
        verdict, exit_code = await self._verdict(timeout)
        seconds = time.monotonic() - started
        if verdict is Verdict.PASSED:
            await self._all_shown.wait()
        else:
            await self._guest.kill()
            await self._printer
        return JobResult(verdict, seconds, exit_code, self._log()[said_before:])

    def _log(self) -> str:
        """What the kernel and the guest's process have said."""
        logs = (self._console, self._guest.errors)
        return "".join(file.read_text(errors="replace") for file in logs if file.exists())

    async def _verdict(self, timeout: float) -> tuple[Verdict, int | None]:
        try:
            async with asyncio.timeout(timeout):
                message = await self._guest.next_message()
        except TimeoutError:
            return Verdict.HUNG, None
        match message:
            case ["exit", code]:
                return (Verdict.PASSED if code == "0" else Verdict.FAILED), int(code)
            case _:
                return Verdict.CRASHED, None

    async def _copy(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._guest.output.read(1 << 16):
                self._show(data.replace(b"\0", b""))
                if b"\0" in data:
                    self._all_shown.set()
        self._all_shown.set()
