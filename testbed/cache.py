"""The cache: artefacts keyed by their recipes, each built once, under a lock, and renamed into place."""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEEP_UNUSED_DAYS = 3


def cache_directory() -> Path:
    """Where artefacts live; outside the checkout, so that every checkout shares them."""
    if chosen := os.environ.get("RINGFENCE_TESTBED_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "ringfence-testbed"


def console_log(name: str) -> Path:
    """Where to keep the console of a guest that came to grief."""
    directory = cache_directory() / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{name}.log"


def say(message: str) -> None:
    print(f"testbed: {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Artefact:
    """Something that takes time to make, wholly determined by its recipe and its inputs.

    `make(directory, *inputs)` fills the directory. A file named `version` in it, if it leaves one,
    counts as part of the recipe of whatever is made from it. The recipe holds everything that
    `make` goes by apart from its own text: values, and the functions that it leaves the work to.
    """

    name: str
    make: Callable[..., None]
    recipe: tuple[object, ...] = ()
    inputs: tuple["Artefact", ...] = ()

    def ensure(self) -> Path:
        """The artefact's directory, which is made now if the cache has none for this recipe."""
        inputs = [artefact.ensure() for artefact in self.inputs]
        recipe = map(_text, (self.make, *self.recipe, *inputs))
        key = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]
        path = cache_directory() / "artefacts" / f"{self.name}-{key}"
        if not path.is_dir():
            with _build_lock():
                if not path.is_dir():
                    self._make_at(path, inputs)
        os.utime(path)  # `prune` goes by the time of the last use
        return path

    def _make_at(self, path: Path, inputs: list[Path]) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{self.name}.", dir=_unfinished()) as scratch:
            directory = Path(scratch) / "artefact"
            directory.mkdir()
            self.make(directory, *inputs)
            path.parent.mkdir(parents=True, exist_ok=True)
            directory.rename(path)
        say(f"made {self.name} in {time.monotonic() - started:.1f} s")


def _text(ingredient: object) -> str:
    """What a part of a recipe adds to the key: functions count by their source."""
    if isinstance(ingredient, Path):
        version = ingredient / "version"
        return f"{ingredient.name} {version.read_text() if version.exists() else ''}"
    return inspect.getsource(ingredient) if callable(ingredient) else str(ingredient)


def _unfinished() -> Path:
    directory = cache_directory() / "unfinished"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def _build_lock() -> Iterator[None]:
    """Lets one process build at a time, and clears away what an interrupted build left."""
    with open(_unfinished().with_name("lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in _unfinished().iterdir():
            shutil.rmtree(leftover)
        yield


def prune() -> None:
    """Removes artefacts and console logs that nothing has used for a while."""
    oldest = time.time() - KEEP_UNUSED_DAYS * 24 * 3600
    with _build_lock():
        for path in [*cache_directory().glob("artefacts/*"), *cache_directory().glob("logs/*")]:
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def forget() -> None:
    """Empties the cache of artefacts, so that the next build starts from nothing."""
    with _build_lock():
        shutil.rmtree(cache_directory() / "artefacts", ignore_errors=True)


class Durations:
    """How many seconds things took the last time, so that what takes longest can be begun first."""

    UNKNOWN = 30.0

    def __init__(self) -> None:
        self._file = cache_directory() / "durations.json"
        try:
            self._seconds = json.loads(self._file.read_text())
        except (OSError, ValueError):
            self._seconds = {}

    def of(self, name: str) -> float:
        return self._seconds.get(name, self.UNKNOWN)

    def note(self, name: str, seconds: float) -> None:
        self._seconds[name] = round(seconds, 1)

    def save(self) -> None:
        cache_directory().mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(self._seconds, indent=0, sort_keys=True))
        unfinished.rename(self._file)
