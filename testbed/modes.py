"""The one table of modes: which guest each of them boots, and how its cgroups are mounted.

To add a mode, add a row to `MODES` (and a `Root` if it needs other packages, a `Kernel` if another kernel).
"""

from dataclasses import dataclass

SYSTEMD_PACKAGES = (
    "busybox-static", "dbus", "dbus-user-session", "e2fsprogs", "iproute2", "kmod",
    "libpam-systemd", "procps", "strace", "systemd", "systemd-container", "systemd-sysv",
    "util-linux",
    # For machines inside the guest. QEMU's interpreter runs under QEMU's interpreter there: a few instructions of firmware
    # are done at once, a Linux kernel takes many minutes.
    "qemu-system-x86",
)
CONTAINER_PACKAGES = (
    "containerd", "containernetworking-plugins", "crun", "fuse-overlayfs", "iptables", "jq",
    "netavark", "passt", "podman", "runc", "slirp4netns", "uidmap",
)


@dataclass(frozen=True)
class Kernel:
    """One of Debian's kernels."""

    name: str
    # A metapackage, which depends on the newest kernel.
    package: str
    # What guests have of its modules beyond those that reach the root disk; None means all.
    modules: tuple[str, ...] | None = None
    # The Debian release that it is from; None means the guest's own.
    release: str | None = None
    # User-mode Linux: a program of this machine, without QEMU.
    is_program: bool = False


CLOUD = Kernel("cloud", "linux-image-cloud-amd64")
# The cloud kernel has no RDMA device, not even one in software. Of this one's 4000 modules these are
# what such a device takes.
STANDARD = Kernel("standard", "linux-image-amd64", (
    "crc32_generic", "ib_core", "ib_uverbs", "ip6_udp_tunnel", "rdma_rxe", "udp_tunnel",
))


# The oldest that is of interest: no cgroup.kill, no CPU bursts, no cpu.idle, no memory.peak.
OLD = Kernel("old", "linux-image-cloud-amd64", release="bullseye")

# One CPU, no cpuset, no PSI, no huge pages; but a process that is traced runs forty times as fast as under emulation.
USER_MODE = Kernel("user-mode", "user-mode-linux", (), is_program=True)


@dataclass(frozen=True)
class Root:
    """A root file system: a Debian release and packages."""

    name: str
    release: str
    packages: tuple[str, ...]
    mib: int


TRIXIE = Root("trixie", "trixie", SYSTEMD_PACKAGES, 900)
BOOKWORM = Root("bookworm", "bookworm", SYSTEMD_PACKAGES, 900)
FORKY = Root("forky", "forky", SYSTEMD_PACKAGES, 1000)
CONTAINERS = Root("containers", "trixie", SYSTEMD_PACKAGES + CONTAINER_PACKAGES, 1400)


@dataclass(frozen=True)
class Mode:
    """One way in which a host can present cgroups to Ringfence."""

    name: str
    description: str
    root: Root
    kernel_args: str = ""
    kernel: Kernel = CLOUD
    memory_mib: int = 1024
    # Not in the matrix; a test may name it, as may a command.
    on_request: bool = False

    @property
    def has_systemd(self) -> bool:
        """Whether process 1 is systemd."""
        return "init=" not in self.kernel_args


def _plain(cgroups: str) -> str:
    return f"init=/usr/local/sbin/plain-init testbed.cgroups={cgroups}"


# Debian's 6.12 kernel has no memory and cpuset controllers for v1, hence bookworm's 6.1 for every
# mode with v1. The first word alone gives systemd's hybrid layout, both together pure v1.
_HYBRID = "systemd.unified_cgroup_hierarchy=0 swapaccount=1"
_LEGACY = f"{_HYBRID} systemd.legacy_systemd_cgroup_controller=1"

MODES = {
    mode.name: mode
    for mode in (
        Mode("trixie", "systemd 257, kernel 6.12, v2", TRIXIE),
        Mode("bw-unified", "systemd 252, kernel 6.1, v2", BOOKWORM),
        Mode("bw-hybrid", "systemd 252, kernel 6.1, v1 with a v2 hierarchy for systemd", BOOKWORM, _HYBRID),
        Mode("bw-legacy", "systemd 252, kernel 6.1, v1 only", BOOKWORM, _LEGACY),
        Mode("plain-v2", "no systemd, kernel 6.12, v2", TRIXIE, _plain("v2")),
        Mode("plain-v1", "no systemd, kernel 6.1, each v1 controller by itself", BOOKWORM,
             _plain("v1") + " swapaccount=1"),
        Mode("plain-hybrid", "no systemd, kernel 6.1, v1 with shared hierarchies, and an empty v2 hierarchy",
             BOOKWORM, _plain("hybrid") + " swapaccount=1"),
        Mode("forky", "systemd 262, kernel 7.2, v2", FORKY),
        Mode("forky-plain", "no systemd, kernel 7.2, v2", FORKY, _plain("v2")),
        Mode("big", "trixie with 4 GiB of memory", TRIXIE, memory_mib=4096, on_request=True),
        Mode("ctr", "trixie with runc, crun, podman and containerd", CONTAINERS,
             memory_mib=2048, on_request=True),
        Mode("rdma", "plain-v2 on Debian's standard kernel, with an RDMA device", TRIXIE,
             _plain("v2") + " testbed.rdma", kernel=STANDARD, on_request=True),
        Mode("rdma-v1", "plain-v1 on Debian's standard kernel, with an RDMA device", BOOKWORM,
             _plain("v1") + " swapaccount=1 testbed.rdma", kernel=STANDARD, on_request=True),
        Mode("user-v2", "no systemd, User-mode Linux 6.1, v2", BOOKWORM, _plain("v2"), kernel=USER_MODE,
             on_request=True),
        Mode("old-v2", "no systemd, kernel 5.10, v2", BOOKWORM, _plain("v2"), kernel=OLD),
        Mode("old-v1", "no systemd, kernel 5.10, each v1 controller by itself", BOOKWORM,
             _plain("v1") + " swapaccount=1", kernel=OLD),
    )
}


# This machine, as it is.
HOST = "host"
# Where `make test` sees cgroup v1 if this machine has none.
GATE_V1 = "plain-v1"

_MATRIX = [HOST, *(mode.name for mode in MODES.values() if not mode.on_request)]
# Words that stand for several modes where a test says where it runs.
GROUPS = {
    "all": _MATRIX,
    "systemd": [name for name in _MATRIX if name != HOST and MODES[name].has_systemd],
}
