"""Debian's archive: the tools that this machine needs, and packages for the guests.

apt is pointed at the releases it needs by a configuration of its own: the machine's stays as it is.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cache import say

# mapped-ram, in which guests are saved, came with QEMU 9.0; bookworm itself has 7.2.
QEMU_VERSION = (9, 0)
QEMU_FROM_BACKPORTS = {"bookworm"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGE_OF_TOOL = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "lz4": "lz4",
    "strace": "strace",
    "xz": "xz-utils",
    "zstd": "zstd",
}


class DebianError(Exception):
    """This machine lacks something, and the testbed could not fetch it."""


def qemu_version() -> str:
    """QEMU's version down to the package revision; the empty string if there is none."""
    if not shutil.which("qemu-system-x86_64"):
        return ""
    return subprocess.check_output(["qemu-system-x86_64", "--version"], text=True).splitlines()[0]


def _qemu_is_recent() -> bool:
    version = re.search(r"version (\d+)\.(\d+)", qemu_version())
    return version is not None and (int(version[1]), int(version[2])) >= QEMU_VERSION


def require_tools(*tools: str) -> None:
    """Installs the packages of those tools that are missing, which takes root."""
    missing = {PACKAGE_OF_TOOL[tool] for tool in tools if not shutil.which(tool)}
    if "qemu-system-x86_64" in tools and not _qemu_is_recent():
        # The two must be of one version, or the package system refuses.
        missing |= {"qemu-system-x86", "qemu-utils"}
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        names = " ".join(sorted(missing))
        raise DebianError(f"install these Debian packages (QEMU >= 9.0), or run this as root: {names}")
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    suites = [release, f"{release}-updates"]
    options = ["--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    if release in QEMU_FROM_BACKPORTS:
        suites.append(f"{release}-backports")
        options.append(f"--target-release={release}-backports")
    say(f"installing {' '.join(sorted(missing))}")
    with archive(*suites) as apt:
        apt("install", *options, *sorted(missing), DEBIAN_FRONTEND="noninteractive")


def mirror() -> str:
    """The Debian mirror that this machine's own apt is configured for."""
    if chosen := os.environ.get("RINGFENCE_TESTBED_MIRROR"):
        return chosen
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    targets = subprocess.check_output(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(CODENAME) $(REPO_URI)",
         "Created-By: Packages", "Component: main"], text=True)
    for line in targets.splitlines():
        *names, uri = line.split()
        if release in names:
            return uri
    raise DebianError("apt has no source for this Debian release: set RINGFENCE_TESTBED_MIRROR")


def source(suite: str) -> str:
    """A line of sources.list for a suite."""
    return f"deb [signed-by={KEYRING}] {mirror()} {suite} main"


@contextmanager
def archive(*suites: str) -> Iterator[Callable[..., str]]:
    """Yields a function that runs apt-get on these suites alone and returns its output."""
    with tempfile.TemporaryDirectory(prefix="ringfence-apt.") as scratch:
        (Path(scratch) / "lists").mkdir()
        sources = Path(scratch) / "sources.list"
        sources.write_text("".join(source(suite) + "\n" for suite in suites))
        settings = {
            "Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": f"{scratch}/lists",
            "Dir::Cache::PkgCache": "", "Dir::Cache::SrcPkgCache": "",
            # The sandbox's user could not write to directories of ours.
            "APT::Sandbox::User": "root",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

        def apt(*arguments: str, tool: str = "apt-get", cwd: Path | None = None, **environment: str) -> str:
            command = [tool, "-q", *options, *arguments]
            environment = {**os.environ, "LC_ALL": "C", **environment}
            done = subprocess.run(command, cwd=cwd, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode != 0:
                raise DebianError(f"{' '.join(command)}:\n{done.stdout}")
            return done.stdout

        apt("update")
        yield apt


def unpack(release: str, packages: tuple[str, ...], directory: Path) -> str:
    """Unpacks packages of a release into a directory; returns their full names, versions and all.

    A kernel's metapackage stands for the packages of the newest kernel.
    """
    with archive(release) as apt:
        for name in packages:
            names = kernel_packages(apt, name) if name.startswith("linux-image-") else [name]
            apt("download", *names, cwd=directory)
    files = sorted(directory.glob("*.deb"))
    for file in files:
        subprocess.run(["dpkg-deb", "-x", file.name, "."], cwd=directory, check=True)
        file.unlink()
    return " ".join(file.stem for file in files)


def kernel_packages(apt: Callable[..., str], metapackage: str) -> list[str]:
    """The packages of the kernel that a metapackage depends on: the image, and its dependencies of the same version."""

    def dependencies(package: str) -> list[str]:
        shown = apt("depends", package, "-o", "Dir::State::Status=/dev/null", tool="apt-cache")
        return re.findall(r"Depends: (\S+)", shown)

    image = next(name for name in dependencies(metapackage) if name.startswith("linux-image-"))
    version = image.removeprefix("linux-image-")
    # Since forky, linux-image-VERSION is empty: it depends on linux-binary-VERSION and linux-modules-VERSION.
    return [image, *(name for name in dependencies(image) if name.endswith(f"-{version}"))]


def bootstrap(release: str, packages: tuple[str, ...], tarball: Path) -> None:
    """Installs a minimal system with these packages into a tar file."""
    # What says how this machine reaches its mirror holds for the guests' packages, too.
    network = subprocess.check_output(["apt-config", "dump", "Acquire"], text=True)
    options = re.findall(r"^(Acquire::(?:https?::|Check-).*);$", network, re.MULTILINE)
    unneeded = ("doc", "i18n", "info", "lintian", "locale", "man")
    subprocess.run(
        # In namespaces of its own: neither its mounts of /dev and /sys nor its children may outlive
        # an mmdebstrap that is killed, since its directory is then removed.
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
         "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}",
         *(f"--aptopt={option}" for option in options),
         *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unneeded),
         release, tarball, source(release)],
        check=True, env={**os.environ, "TMPDIR": str(tarball.parent)},
    )
