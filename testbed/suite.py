"""The workspace's tests of a kernel, in every mode that they ask for."""

import asyncio
import json
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import machine
from cache import console_log
from machine import JobResult, Verdict
from modes import MODES, default_modes

COMMAND = "ringfence"
CONSOLE_LINES = 60
FAILURE_LINES, FAILURE_WIDTH = 25, 400
# The driver that every test is for; and another one, by which a test asks to be run once more.
DRIVER, SYSTEMD = DRIVERS = ("cgroupfs", "systemd")
# The modules of a library's unit tests that need a kernel, or a systemd to themselves: on v1 it removes every empty cgroup of
# a hierarchy in which its last unit has ended, whoever made it. The others are the same everywhere.
KERNEL_TESTS = {DRIVER: "on_a_kernel", SYSTEMD: "on_systemd"}


class WorkspaceError(Exception):
    """The workspace does not build, or says something about the testbed that makes no sense."""


@dataclass(frozen=True)
class Test:
    """An integration test, or a library's unit tests, and the modes that it asks for."""

    package: str
    # "test" or "lib", as cargo has it.
    kind: str
    target: str
    modes: tuple[str, ...]
    driver: str = DRIVER

    @property
    def name(self) -> str:
        return f"{self.target}-lib" if self.kind == "lib" else self.target

    @property
    def row(self) -> str:
        """Its name in the table of results."""
        return self.name if self.driver == DRIVER else f"{self.name}/{self.driver}"

    def runs_in(self, mode: str) -> bool:
        return self.driver != SYSTEMD or MODES[mode].has_systemd

    def under(self, driver: str) -> "Test":
        """The same, to be run under this driver, in the modes that have it."""
        other = replace(self, driver=driver)
        return replace(other, modes=tuple(filter(other.runs_in, self.modes)))

    def also_in(self, chosen: list[str]) -> "Test":
        """The same, with those of the chosen modes that are on request: whoever names one means it."""
        on_request = [mode for mode in chosen if MODES[mode].on_request and self.runs_in(mode)]
        extra = [mode for mode in on_request if mode not in self.modes]
        return replace(self, modes=(*self.modes, *extra)) if self.modes else self

    def command_line(self, arguments: list[str]) -> str:
        """Runs it in the guest; of unit tests those that need a kernel, or fewer if an argument says which."""
        needed = KERNEL_TESTS[self.driver]
        chosen = self.kind == "test" or any(needed in argument for argument in arguments)
        program = ["/run/job/tests", *([] if chosen else [needed]), *arguments]
        return shlex.join(["exec", "env", f"RINGFENCE_TEST_DRIVER={self.driver}", *program])


def once_in_each_mode(tests: list[Test]) -> list[Test]:
    """Where a test would run under systemd and without it, under systemd alone: without it runs in the modes that have none.
    Unit tests are others under each driver."""
    twice = {(test.name, mode) for test in tests if test.driver == SYSTEMD for mode in test.modes}

    def is_needed(test: Test, mode: str) -> bool:
        return test.kind == "lib" or test.driver != DRIVER or (test.name, mode) not in twice

    return [replace(test, modes=tuple(mode for mode in test.modes if is_needed(test, mode))) for test in tests]


def _cargo(workspace: Path, *arguments: str) -> str:
    done = subprocess.run(["cargo", *arguments], cwd=workspace, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise WorkspaceError(f"cargo {' '.join(arguments)} failed")
    return done.stdout


def packages_of(workspace: Path) -> list[dict]:
    return json.loads(_cargo(workspace, "metadata", "--no-deps", "--format-version=1"))["packages"]


def tests_of(packages: list[dict]) -> list[Test]:
    """Every test, with its modes from `[package.metadata.testbed]` of its package, and the same once more for each
    other driver that names it in `[package.metadata.testbed-drivers]`."""
    tests = []
    for package in packages:
        wanted = (package["metadata"] or {}).get("testbed", {})
        by_driver = (package["metadata"] or {}).get("testbed-drivers", {})
        found = [
            Test(package["name"], kind, target["name"], tuple(default_modes()))
            for kind in ("lib", "test")
            for target in package["targets"]
            if kind in target["kind"] and target["test"]
        ]
        named = wanted.keys() | {name for names in by_driver.values() for name in names}
        if unknown := named - {test.name for test in found}:
            raise WorkspaceError(f"{package['manifest_path']}: no test is called {', '.join(unknown)}")
        if unknown := by_driver.keys() - set(DRIVERS):
            raise WorkspaceError(f"{package['manifest_path']}: no driver is called {', '.join(unknown)}")
        for test in found:
            modes = wanted.get(test.name, test.modes)
            if modes == "all":
                modes = MODES
            if unknown := set(modes) - MODES.keys():
                raise WorkspaceError(f"{package['manifest_path']}: no mode is called {', '.join(unknown)}")
            test = replace(test, modes=tuple(modes))
            others = [test.under(driver) for driver, names in by_driver.items() if test.name in names]
            tests.extend([test, *others])
    for name, number in Counter(test.row for test in tests).items():
        if number > 1:
            raise WorkspaceError(f"{number} tests are called {name}")
    return tests


def _built(workspace: Path, *arguments: str) -> dict[tuple[str, str, str], Path]:
    """Runs cargo and returns the executables it made, by package, and kind and name of the target."""
    names = {package["id"]: package["name"] for package in packages_of(workspace)}
    output = _cargo(workspace, *arguments, "--message-format=json-render-diagnostics")
    messages = map(json.loads, output.splitlines())
    return {
        (names[message["package_id"]], kind, message["target"]["name"]): Path(message["executable"])
        for message in messages
        if message["reason"] == "compiler-artifact" and message["executable"]
        for kind in message["target"]["kind"]
    }


def build_tests(workspace: Path, tests: list[Test]) -> tuple[dict[Test, Path], Path | None]:
    """Their executables, and the `ringfence` command where cargo builds it with the tests of its package: built by itself
    it would be with other features of the same crates, all of them once more."""
    # All features, or cargo would refuse a test that requires one.
    selection = {"--lib" if test.kind == "lib" else f"--test={test.target}" for test in tests}
    built = _built(workspace, "test", "--workspace", "--all-features", "--no-run", *sorted(selection))
    command = next((path for (_, kind, name), path in built.items() if (kind, name) == ("bin", COMMAND)), None)
    return {test: built[test.package, test.kind, test.target] for test in tests}, command


def build_command(workspace: Path) -> Path | None:
    """The `ringfence` command, or none if the workspace has no such program."""
    for package in packages_of(workspace):
        if any(target["name"] == COMMAND and "bin" in target["kind"] for target in package["targets"]):
            built = _built(workspace, "build", "-p", package["name"], "--bin", COMMAND)
            return built[package["name"], "bin", COMMAND]
    return None


def job_directory(scratch: Path, mode: str, command_line: str, files: dict[str, Path]) -> Path:
    """Fills a directory with what a job needs in the guest, where it appears as /run/job."""
    job = scratch / "job"
    job.mkdir()
    for name, file in files.items():
        shutil.copy(file, job / name)
    run = job / "run"
    run.write_text(
        "#!/bin/sh\n"
        f"export RINGFENCE_BIN=/run/job/{COMMAND} RINGFENCE_TESTBED_MODE={mode}\n"
        "export RUST_BACKTRACE=1 TERM=dumb PATH=$PATH:/run/job\n"
        f"{command_line}\n"
    )
    run.chmod(0o755)
    return job


class PrefixedLines:
    """Prints output as it comes, a whole line at a time, each with what it belongs to; and keeps it."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._unfinished = b""
        self.lines: list[str] = []

    def show(self, data: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                print(f"{self._prefix} | {text}", flush=True)
                self.lines.append(text)

    def finish(self) -> None:
        if self._unfinished:
            self.show(b"\n")


def explain(result: JobResult, name: str) -> str:
    """What to say about a job that did not pass, beyond what it said itself; keeps its console."""
    log = console_log(name)
    log.write_text(result.console)
    reason = {
        Verdict.FAILED: f"exit code {result.exit_code}",
        Verdict.HUNG: f"no end after {result.seconds:.0f} s",
        Verdict.CRASHED: "the guest ended without an exit code",
    }[result.verdict]
    # A test that fails speaks for itself.
    tail = [] if result.verdict is Verdict.FAILED else result.console.splitlines()[-CONSOLE_LINES:]
    return "\n".join([f"{result.verdict.value}: {reason}; console: {log}", *tail, ""])


def failure_in(lines: list[str]) -> tuple[str, ...]:
    """What the test harness says of its failures, without backtraces; of a program that it did not end, the last lines."""
    if "failures:" not in lines:
        return tuple(line[:FAILURE_WIDTH] for line in lines[-FAILURE_LINES:])
    kept, in_backtrace = [], False
    for line in lines[lines.index("failures:") + 1 :]:
        in_backtrace = line == "stack backtrace:" or in_backtrace and line.startswith(" ")
        if not in_backtrace and not line.startswith("note: "):
            kept.append(line[:FAILURE_WIDTH])
    return tuple(kept[:FAILURE_LINES])


@dataclass(frozen=True)
class Suite:
    """Test binaries, and how to run them."""

    executables: dict[Test, Path]
    command: Path | None
    arguments: list[str]
    timeout: float
    # The saved guest of each mode that any test asks for.
    guests: dict[str, Path]

    async def run(self, jobs: int) -> dict[tuple[str, str], JobResult]:
        """Runs every test in each of its modes, some jobs at a time; results by test and mode."""
        free = asyncio.Semaphore(jobs)

        async def take_turn(test: Test, mode: str) -> tuple[tuple[str, str], JobResult]:
            async with free:
                return (test.row, mode), await self._run_one(test, mode)

        cells = [(test, mode) for mode in self.guests for test in self.executables if mode in test.modes]
        return dict(await asyncio.gather(*(take_turn(*cell) for cell in cells)))

    async def _run_one(self, test: Test, mode: str) -> JobResult:
        lines = PrefixedLines(f"{mode} {test.row}")
        files = {"tests": self.executables[test]} | ({COMMAND: self.command} if self.command else {})
        with tempfile.TemporaryDirectory(prefix="ringfence-job.") as scratch:
            job = job_directory(Path(scratch), mode, test.command_line(self.arguments), files)
            result = await machine.run_job(MODES[mode], self.guests[mode], job, self.timeout, lines.show)
        lines.finish()
        if result.verdict is not Verdict.PASSED:
            result = replace(result, failure=failure_in(lines.lines))
            lines.show(explain(result, f"{mode}-{test.row}".replace("/", "-")).encode())
        return result


def table(results: dict[tuple[str, str], JobResult]) -> str:
    """Tests down, modes across."""
    tests = list(dict.fromkeys(test for test, _ in results))
    modes = list(dict.fromkeys(mode for _, mode in results))

    def cell(test: str, mode: str) -> str:
        result = results.get((test, mode))
        return f"{result.verdict.value} {result.seconds:.1f} s" if result else "-"

    rows = [["", *modes], *([test, *(cell(test, mode) for mode in modes)] for test in tests)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def failures(results: dict[tuple[str, str], JobResult]) -> str:
    """Each job that did not pass, and why, so that the end of a long log says it all."""
    return "\n".join(
        "\n".join([f"\n{row} in {mode}: {result.verdict.value}", *(f"    {line}" for line in result.failure)])
        for (row, mode), result in results.items()
        if result.verdict is not Verdict.PASSED
    )
