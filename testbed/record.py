"""The page that says how the last run of the matrix went."""

import datetime
import platform
import subprocess

from machine import Verdict
from modes import GROUPS, HOST, MODES


def page(rows: list[list[str]], outcomes: list, seconds: float) -> str:
    """`rows` is the table of results: tests down, modes across."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    header, *body = rows
    failed = [outcome for outcome in outcomes if outcome.result.verdict is not Verdict.PASSED]
    lines = [
        "# The last run of the matrix",
        "",
        f"{datetime.date.today()}, commit {commit or 'unknown'}, {seconds / 60:.0f} minutes on {platform.machine()} "
        f"with Linux {platform.release()}. `make matrix` writes this page.",
        "",
        "A cell has the number of tests that passed, and the seconds that they took; a row ending in `/systemd` was run with",
        "units of systemd. `-` is where a module of tests does not run, as it says itself.",
        "",
        *(f"- `{mode}`: {MODES[mode].description}" for mode in header[1:] if mode != HOST),
        *(f"- `{mode}`: not run" for mode in GROUPS["all"] if mode not in header),
        "",
        *_table(header, body),
        "",
        f"{sum(outcome.passed for outcome in outcomes)} tests passed, "
        f"{sum(len(outcome.failures) for outcome in outcomes)} failed.",
        *(f"- {failure.test} in {outcome.cell.name}: {failure.command(soak=False)}" for outcome in failed for failure in outcome.failures),
    ]
    return "\n".join(lines) + "\n"


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in body:
        yield "| " + " | ".join(row) + " |"
