"""The workspace's tests: which there are, where they run, and how they did."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import machine
from cache import Durations, console_log, say
from machine import JobResult, Verdict
from modes import GATE_V1, GROUPS, HOST, MODES

COMMAND = "ringfence"
# A guest that QEMU does not restore is tried again, so often in a run.
MOST_NOT_RESTORED = 3
# The driver that every test is for; and another one, by which a test asks to be run once more.
DRIVER, SYSTEMD = DRIVERS = ("cgroupfs", "systemd")
# The modules of a library's unit tests that need a kernel, or a systemd to themselves: on v1 it removes every empty cgroup of
# a hierarchy in which its last unit has ended, whoever made it. The others are the same everywhere.
KERNEL_TESTS = {DRIVER: "on_a_kernel", SYSTEMD: "on_systemd"}
DECLARATION = re.compile(r"^testbed! \{(.*?)\}$", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r'^ *(\w+): "([^"]*)";$', re.MULTILINE)


class WorkspaceError(Exception):
    """The workspace does not build, or says something about the testbed that makes no sense."""


@dataclass(frozen=True)
class Suite:
    """A module of a crate's integration tests, or the unit tests of a library, and where it runs."""

    package: str
    # "test" or "lib", as cargo has it.
    kind: str
    name: str
    # (mode, driver) pairs: wherever it can tell something, what `make test` runs of it, and where its long form runs.
    cells: tuple[tuple[str, str], ...]
    gate: tuple[tuple[str, str], ...]
    soak: tuple[tuple[str, str], ...]
    # It changes its guest for whoever comes after it, or cannot bear what others changed.
    has_own_guest: bool

    @property
    def executable(self) -> tuple[str, str]:
        """What cargo builds it into: by package and kind."""
        return self.package, self.kind

    def program(self, path: str, driver: str, arguments: list[str]) -> list[str]:
        """The words that run it; of unit tests those that need a kernel, or fewer if an argument says which."""
        chosen = f"{self.name}::" if self.kind == "test" else KERNEL_TESTS[driver]
        is_chosen = any(chosen in argument for argument in arguments)
        return [path, *([] if is_chosen else [chosen]), *arguments]


@dataclass(frozen=True)
class Cell:
    """A suite in one mode, under one driver."""

    suite: Suite
    mode: str
    driver: str

    @property
    def row(self) -> str:
        """Its name in the table of results."""
        return self.suite.name if self.driver == DRIVER else f"{self.suite.name}/{self.driver}"

    @property
    def name(self) -> str:
        return f"{self.mode} {self.row}"


@dataclass(frozen=True)
class Failure:
    """A test that failed, or a whole cell of which no single test can be named."""

    cell: Cell
    test: str
    # What it said of it, without backtraces.
    lines: tuple[str, ...]

    def command(self, soak: bool) -> str:
        """Runs it alone."""
        driver = f" --driver {self.cell.driver}" if self.cell.driver != DRIVER else ""
        return (f"testbed/testbed run{' --soak' if soak else ''} --mode {self.cell.mode}{driver} --test {self.cell.suite.name}"
                f"{f' -- {self.test}' if self.test else ''}")


@dataclass
class Outcome:
    """How a cell ended."""

    cell: Cell
    result: JobResult
    passed: int = 0
    failures: list[Failure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def _cargo(workspace: Path, *arguments: str) -> str:
    done = subprocess.run(["cargo", *arguments], cwd=workspace, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise WorkspaceError(f"cargo {' '.join(arguments)} failed")
    return done.stdout


def _declared(source: Path) -> dict[str, str]:
    """What a module says in its `testbed!`."""
    if not (found := DECLARATION.search(source.read_text())):
        raise WorkspaceError(f"{source}: no `testbed!` says where these tests run")
    return dict(ENTRY.findall(found[1]))


def _cells(words: str, source: Path, drivers: list[str]) -> tuple[tuple[str, str], ...]:
    """`mode`, `group` or `mode/driver`; without a driver under each of the module's that the mode has."""
    cells = []
    for word in words.split():
        name, _, driver = word.partition("/")
        if not (modes := GROUPS.get(name, [name] if name == HOST or name in MODES else [])) or driver and driver not in drivers:
            raise WorkspaceError(f"{source}: {word}: no such mode or group of modes, or no such driver of these tests")
        cells += [(mode, one) for mode in modes for one in ([driver] if driver else drivers) if has_driver(mode, one)]
    return tuple(dict.fromkeys(cells))


def has_driver(mode: str, driver: str) -> bool:
    return driver != SYSTEMD or mode != HOST and MODES[mode].has_systemd


def suites_of(workspace: Path) -> list[Suite]:
    """Every module of integration tests and every library's unit tests, with what its `testbed!` says."""
    suites = []
    for package in json.loads(_cargo(workspace, "metadata", "--no-deps", "--format-version=1"))["packages"]:
        root = Path(package["manifest_path"]).parent
        sources = [("lib", f"{package['name']}-lib", root / "src/lib.rs")] if (root / "src/lib.rs").exists() else []
        for path in sorted((root / "tests/it").iterdir() if (root / "tests/it").exists() else []):
            if path.name not in ("main.rs", "support"):
                sources.append(("test", path.stem, path / "mod.rs" if path.is_dir() else path))
        for kind, name, source in sources:
            said = _declared(source)
            drivers = said.get("drivers", DRIVER).split()
            if unknown := set(drivers) - set(DRIVERS):
                raise WorkspaceError(f"{source}: no driver is called {', '.join(unknown)}")
            cells = _cells(said.get("modes", "all"), source, drivers)
            gate = _cells(said["gate"], source, drivers) if "gate" in said else tuple(
                cell for cell in _cells("host trixie", source, drivers) if cell in cells)
            soak = _cells(said.get("soak", ""), source, drivers)
            if (guest := said.get("guest", "shared")) not in ("shared", "own"):
                raise WorkspaceError(f"{source}: guest: {guest}: expected own or shared")
            suites.append(Suite(package["name"], kind, name, cells, gate, soak, guest == "own"))
    if len(suites) != len({suite.name for suite in suites}):
        raise WorkspaceError("two modules of tests have one name")
    return suites


def where_v1_is(cell: tuple[str, str]) -> tuple[str, str]:
    """`make test` sees cgroup v1 on this machine where it has v1 and may make cgroups, and elsewhere in a guest."""
    is_v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    is_v1 = not is_v2 and os.access("/sys/fs/cgroup/memory", os.W_OK)
    return cell if cell[0] != HOST or is_v1 else (GATE_V1, cell[1])


def no_cgroups(command: Path) -> str | None:
    """Why no sandbox can be made on this machine, if so."""
    done = subprocess.run([command, "-o", "json", "doctor"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    checks = json.loads(done.stdout) if done.stdout else []
    return "; ".join(f"{check['check']}: {check['found']}" for check in checks if not check["ok"]) or done.stderr.strip()


@dataclass(frozen=True)
class Built:
    """What cargo made: the test executables by package and kind, and the command, none if the workspace has no such program."""

    executables: dict[tuple[str, str], Path]
    command: Path | None


def build(workspace: Path) -> Built:
    """Builds all tests and the command at once: one at a time cargo would unite other features of the same crates."""
    output = _cargo(workspace, "test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics")
    executables, command = {}, None
    for message in map(json.loads, output.splitlines()):
        if message["reason"] != "compiler-artifact" or not message["executable"]:
            continue
        package = re.split(r"[#@]", message["package_id"].rpartition("/")[2])[0]
        path = Path(message["executable"])
        (kind, *_), is_test = message["target"]["kind"], message["profile"]["test"]
        if is_test and kind in ("lib", "test"):
            executables[package, kind] = path
        elif message["target"]["name"] == COMMAND and not is_test:
            command = path
    return Built(executables, command)


def make_job_disk(path: Path, files: dict[str, Path]) -> Path:
    """What guests find in /run/job."""
    with tempfile.TemporaryDirectory(prefix="ringfence-job.") as scratch:
        for name, file in files.items():
            shutil.copy(file, Path(scratch) / name)
        machine.make_disk(path, machine.JOB_DISK_MIB, Path(scratch))
    return path


def in_guest(mode: str, words: str) -> str:
    """A shell command line with what a job finds in its environment."""
    return (f"export RINGFENCE_BIN=/run/job/{COMMAND} RINGFENCE_TESTBED_MODE={mode} "
            f"RUST_BACKTRACE=1 TERM=dumb PATH=$PATH:/run/job; {words}")


def file_in_guest(executable: tuple[str, str]) -> str:
    """The name of a test executable in a guest's /run/job."""
    return "-".join(executable)


class HostSession:
    """This machine, as if it were a guest."""

    async def __aenter__(self) -> "HostSession":
        return self

    async def __aexit__(self, *_) -> None:
        pass

    async def run(self, command_line: str, timeout: float, show: Callable[[bytes], None]) -> JobResult:
        """As in a guest: `machine.Session.run`."""
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", command_line, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        verdict = Verdict.HUNG
        try:
            async with asyncio.timeout(timeout):
                while data := await process.stdout.read(1 << 16):
                    show(data)
                verdict = Verdict.PASSED if await process.wait() == 0 else Verdict.FAILED
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return JobResult(verdict, time.monotonic() - started, process.returncode, "")


class Harness:
    """Reads what Rust's test harness prints, a whole line at a time."""

    def __init__(self, prefix: str, verbose: bool) -> None:
        self._prefix, self._verbose = prefix, verbose
        self._unfinished = b""
        self.lines: list[str] = []

    def show(self, data: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                if self._verbose:
                    print(f"{self._prefix} | {text}", flush=True)
                self.lines.append(text)

    def outcome(self, cell: Cell, result: JobResult) -> Outcome:
        if self._unfinished:
            self.show(b"\n")
        outcome = Outcome(cell, result)
        for line in self.lines:
            if found := re.match(r"test result: \w+\. (\d+) passed", line):
                outcome.passed += int(found[1])
            elif line.startswith("SKIPPED: "):
                outcome.skipped.append(line.removeprefix("SKIPPED: "))
        if result.verdict is Verdict.PASSED and not outcome.passed:
            result = outcome.result = JobResult(Verdict.FAILED, result.seconds, result.exit_code, "no test ran")
        if result.verdict is not Verdict.PASSED:
            outcome.failures = list(self._failures(cell)) or [Failure(cell, "", (explain(outcome), *self.lines[-12:]))]
        return outcome

    def _failures(self, cell: Cell) -> Iterator[Failure]:
        """Each test that failed, with what it said, without backtraces."""
        said: dict[str, list[str]] = {}
        test, in_backtrace = None, False
        for line in self.lines:
            if found := re.match(r"---- (\S+) stdout ----", line):
                test, in_backtrace = found[1], False
                said[test] = []
            elif line == "failures:":
                test = None
            elif test is not None:
                in_backtrace = line == "stack backtrace:" or in_backtrace and line.startswith(" ")
                if not in_backtrace and not line.startswith("note: "):
                    said[test].append(line)
        for test, lines in said.items():
            at = next((number for number, line in enumerate(lines) if "panicked at" in line), 0)
            yield Failure(cell, test, tuple(lines[at:]))


def explain(outcome: Outcome) -> str:
    """What to say about a cell that did not pass, beyond what it said itself; keeps its console."""
    result = outcome.result
    log = console_log(outcome.cell.name.replace("/", "-").replace(" ", "-"))
    log.write_text(result.console)
    reason = {
        Verdict.FAILED: f"exit code {result.exit_code}",
        Verdict.HUNG: f"no end after {result.seconds:.0f} s",
        Verdict.CRASHED: "the guest ended without an exit code",
    }[result.verdict]
    return f"{result.verdict.value}: {reason}; console: {log}"


class Run:
    """Cells, and how to run them."""

    def __init__(self, cells: list[Cell], built: Built, guests: dict[str, Path], job_disk: Path,
                 arguments: list[str], timeout: float, environment: dict[str, str], verbose: bool) -> None:
        self._built, self._guests, self._job_disk = built, guests, job_disk
        self._arguments, self._timeout, self._environment, self._verbose = arguments, timeout, environment, verbose
        self._durations = Durations()
        # What takes longest comes first, so that nobody waits for it at the end.
        self._waiting: dict[str, list[Cell]] = {}
        for cell in sorted(cells, key=lambda cell: -self._durations.of(cell.name)):
            self._waiting.setdefault(cell.mode, []).append(cell)
        self._host_is_free = True
        self.outcomes: list[Outcome] = []
        self._total = len(cells)

    async def all(self, jobs: int) -> None:
        """Runs every cell, some guests at a time; a guest takes one cell after the other until one fails."""
        try:
            await asyncio.gather(*(self._work() for _ in range(jobs)))
        finally:
            self._durations.save()

    def _next_mode(self) -> str | None:
        """The one with most cells left; this machine runs one at a time."""
        ready = {mode: len(cells) for mode, cells in self._waiting.items() if cells and (mode != HOST or self._host_is_free)}
        return HOST if HOST in ready else max(ready, key=ready.get, default=None)

    @asynccontextmanager
    async def _session(self, mode: str):
        if mode != HOST:
            async with machine.Session(MODES[mode], self._guests[mode], self._job_disk) as session:
                yield session
            return
        self._host_is_free = False
        try:
            yield HostSession()
        finally:
            self._host_is_free = True

    async def _work(self) -> None:
        not_restored = 0
        while mode := self._next_mode():
            try:
                async with self._session(mode) as session:
                    await self._use(session, mode)
            except machine.GuestError as error:
                not_restored += 1
                if not_restored == MOST_NOT_RESTORED:
                    raise
                say(f"{mode}: {error}; trying another guest")

    async def _use(self, session, mode: str) -> None:
        """Runs one cell after the other, until none fits what the session is by then."""
        is_fresh = True
        while cell := self._take(mode, is_fresh):
            outcome = await self._run(session, cell)
            self._tell(outcome)
            is_fresh = False
            if mode != HOST and (cell.suite.has_own_guest or outcome.result.verdict is not Verdict.PASSED):
                break

    def _take(self, mode: str, is_fresh: bool) -> Cell | None:
        """The next cell for this machine, or for a guest in which others may have run."""
        waiting = self._waiting[mode]
        fits = (cell for cell in waiting if is_fresh or mode == HOST or not cell.suite.has_own_guest)
        if cell := next(fits, None):
            waiting.remove(cell)
        return cell

    async def _run(self, session, cell: Cell) -> Outcome:
        harness = Harness(cell.name, self._verbose)
        environment = {"RINGFENCE_TEST_DRIVER": cell.driver, **self._environment}
        is_host = cell.mode == HOST
        executable = cell.suite.executable
        program = str(self._built.executables[executable]) if is_host else f"/run/job/{file_in_guest(executable)}"
        settings = (f"{name}={value}" for name, value in environment.items())
        line = shlex.join(["exec", "env", *settings, *cell.suite.program(program, cell.driver, self._arguments)])
        result = await session.run(line if is_host else in_guest(cell.mode, line), self._timeout, harness.show)
        self._durations.note(cell.name, result.seconds)
        return harness.outcome(cell, result)

    def _tell(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        result, cell = outcome.result, outcome.cell
        print(f"[{len(self.outcomes):3}/{self._total}] {result.verdict.value} {cell.mode:12} {cell.row:24} {result.seconds:6.1f} s  "
              f"{outcome.passed} passed{f', {len(outcome.skipped)} skipped' if outcome.skipped else ''}", flush=True)
        for failure in outcome.failures:
            print("\n".join([f"    {failure.test}", *(f"        {line}" for line in failure.lines)]), flush=True)


def table(outcomes: list[Outcome]) -> list[list[str]]:
    """Tests down, modes across; the last row has each mode's time."""
    cells = {(outcome.cell.row, outcome.cell.mode): outcome for outcome in outcomes}
    rows = sorted(dict.fromkeys(row for row, _ in cells))
    modes = [mode for mode in (HOST, *MODES) if any(mode == other for _, other in cells)]

    def text(row: str, mode: str) -> str:
        if not (outcome := cells.get((row, mode))):
            return "-"
        result = outcome.result
        failed = "" if result.verdict is Verdict.PASSED else f"{result.verdict.value} "
        return f"{failed}{outcome.passed}, {result.seconds:.0f} s"

    times = [sum(outcome.result.seconds for (_, mode), outcome in cells.items() if mode == one) for one in modes]
    return [["tests", *modes], *([row, *(text(row, mode) for mode in modes)] for row in rows),
            ["all", *(f"{seconds / 60:.1f} min" for seconds in times)]]


def in_columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows)


# A summary of failures fits in the last lines of the output.
SUMMARY_LINES, LINES_OF_A_FAILURE, WIDTH = 26, 6, 240


def summary(outcomes: list[Outcome], not_run: int, soak: bool) -> str:
    """Each test that failed with the command that repeats it alone, and the counts."""
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    lines, more = [], 0
    for failure in failures:
        cell = failure.cell
        said = [line[:WIDTH] for line in failure.lines[:LINES_OF_A_FAILURE]]
        text = [f"FAILED: {failure.test or cell.suite.name} in {cell.mode} under {cell.driver}",
                *(f"    {line}" for line in said), f"    again: {failure.command(soak)}"]
        if lines and len(lines) + len(text) > SUMMARY_LINES:
            more += 1
        else:
            lines += text
    if more:
        lines.append(f"and {more} more, told above where each failed")
    passed = sum(outcome.passed for outcome in outcomes)
    skipped = sum(len(outcome.skipped) for outcome in outcomes) + not_run
    lines.append(f"{passed} passed, {len(failures)} failed, {skipped} skipped")
    return "\n".join(lines)
