"""What guests are made of, from Debian's packages to a saved guest: one function per artefact."""

import asyncio
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import debian
import machine
from cache import Artefact
from modes import CLOUD, Kernel, Mode, Root

GUEST_FILES = Path(__file__).parent / "guest"
# The guest of the demonstrations boots this release's kernel.
DEMO_RELEASE = "trixie"
SWAP_MIB = 128

# Enough to reach the root disk, in loading order; each kernel has some of them built in.
ROOT_DISK_MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "crc16", "crc32c_generic", "mbcache", "jbd2", "ext4",
)
# Goes into the root disk.
GUEST_PROGRAMS = ("job-agent", "plain-init", "prepare-root", "testbed.service", "testbed.target")
DECOMPRESSORS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\xfd7zXZ": "xz",
}


def _contents(*names: str) -> tuple[str, ...]:
    return tuple((GUEST_FILES / name).read_text() for name in names)


def boot_files(release: str, kernel: Kernel) -> Artefact:
    """A kernel's `vmlinux`, which QEMU boots directly (PVH) or which is a program, its `modules`, and `busybox`."""

    release = kernel.release or release

    def make(directory: Path) -> None:
        debian.require_tools(*DECOMPRESSORS.values())
        packages = directory / "packages"
        packages.mkdir()
        version = debian.unpack(release, (kernel.package, "busybox-static"), packages)
        if kernel.is_program:
            (packages / "usr/bin/linux.uml").rename(directory / "vmlinux")
            (packages / "usr/lib/uml/modules").rename(packages / "usr/lib/modules")
        else:
            # Since forky, the kernel is in the directory of its modules.
            (image,) = [*packages.glob("boot/vmlinuz-*"), *packages.glob("usr/lib/modules/*/vmlinuz")]
            (directory / "vmlinux").write_bytes(_decompress_kernel(image.read_bytes()))
            image.unlink()
        for file in ("lib/modules", "bin/busybox"):
            # Below usr since trixie.
            (found,) = [*packages.glob(file), *packages.glob(f"usr/{file}")]
            found.rename(directory / found.name)
        shutil.rmtree(packages)
        if kernel.modules is not None:
            _keep_modules(directory / "modules", ROOT_DISK_MODULES + kernel.modules)
        (directory / "version").write_text(version)

    unpack = (debian.unpack, debian.kernel_packages)
    recipe = (release, kernel, ROOT_DISK_MODULES, *unpack, _decompress_kernel, _keep_modules)
    return Artefact(f"boot-{release}-{kernel.name}", make, recipe)


def _keep_modules(directory: Path, names: tuple[str, ...]) -> None:
    for file in directory.rglob("*.ko*"):
        if file.name.split(".")[0] not in names:
            file.unlink()


def _decompress_kernel(image: bytes) -> bytes:
    """The ELF file inside a bzImage, found by its setup header (Documentation/arch/x86/boot.rst)."""
    setup_sectors = image[0x1F1] or 4
    offset = int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    tool = next(tool for magic, tool in DECOMPRESSORS.items() if payload.startswith(magic))
    # The size that the kernel's build appends is no part of the compressed stream, so the tool
    # reports an error after it has written everything.
    elf = subprocess.run([tool, "-dc"], input=payload, capture_output=True).stdout
    if not elf.startswith(b"\x7fELF"):
        raise ValueError(f"{tool} found no kernel")
    return elf


def _pack_initrd(output: Path, busybox: Path, init: str, modules: list[Path]) -> None:
    """Writes an initrd of busybox with all its applets, an init, and modules in loading order."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in ("bin", "dev", "modules", "proc", "root", "sys", "tmp"):
            (tree / name).mkdir()
        shutil.copy(busybox, tree / "bin")
        for applet in subprocess.check_output([busybox, "--list"], text=True).split():
            if applet != "busybox":
                (tree / "bin" / applet).symlink_to("busybox")
        shutil.copy(GUEST_FILES / init, tree / "init")
        for order, module in enumerate(modules):
            unpack = ["xz", "-dc", module] if module.suffix == ".xz" else ["cat", module]
            with open(tree / "modules" / f"{order:02}-{module.name.removesuffix('.xz')}", "wb") as unpacked:
                subprocess.run(unpack, stdout=unpacked, check=True)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        with open(output, "wb") as archive:
            subprocess.run([busybox, "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(),
                           stdout=archive, stderr=subprocess.DEVNULL, check=True)


def demo_initrd() -> Artefact:
    """`initrd`: the whole user space of the small guest for demonstrations."""

    def make(directory: Path, boot: Path) -> None:
        _pack_initrd(directory / "initrd", boot / "busybox", "demo-init", [])

    recipe = (_pack_initrd, *_contents("demo-init"))
    return Artefact("demo-initrd", make, recipe, (boot_files(DEMO_RELEASE, CLOUD),))


def demo_guest() -> tuple[Path, Path]:
    """The kernel and the initrd of the small guest for demonstrations."""
    debian.require_tools("qemu-system-x86_64")
    return boot_files(DEMO_RELEASE, CLOUD).ensure() / "vmlinux", demo_initrd().ensure() / "initrd"


def accelerator() -> str:
    """What guests run under on this machine: `kvm` where a guest was seen to come up under it, else `tcg`."""
    if not Path("/dev/kvm").exists():
        return "tcg"

    def make(directory: Path, boot: Path, initrd: Path) -> None:
        runs = machine.kvm_runs(boot / "vmlinux", initrd / "initrd")
        (directory / "name").write_text("kvm" if runs else "tcg")

    cpu = re.search(r"^model name.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    recipe = (platform.release(), cpu and cpu[0], debian.qemu_version(), machine.kvm_runs, machine.ACCELERATORS)
    inputs = (boot_files(DEMO_RELEASE, CLOUD), demo_initrd())
    return (Artefact("accelerator", make, recipe, inputs).ensure() / "name").read_text()


def initrd(release: str, kernel: Kernel) -> Artefact:
    """`initrd`: finds the root disk of a testbed guest."""

    def make(directory: Path, boot: Path) -> None:
        debian.require_tools("xz")
        modules = [file for name in ROOT_DISK_MODULES for file in (boot / "modules").rglob(f"{name}.ko*")]
        _pack_initrd(directory / "initrd", boot / "busybox", "initrd-init", modules)

    recipe = (_pack_initrd, ROOT_DISK_MODULES, *_contents("initrd-init"))
    return Artefact(f"initrd-{release}-{kernel.name}", make, recipe, (boot_files(release, kernel),))


def root_tree(root: Root) -> Artefact:
    """`root.tar`: a Debian system of the root's packages, as they were installed."""

    def make(directory: Path) -> None:
        debian.require_tools("mmdebstrap")
        debian.bootstrap(root.release, root.packages, directory / "root.tar")

    return Artefact(f"root-{root.name}", make, (root.release, root.packages, debian.bootstrap))


def image(root: Root, kernel: Kernel) -> Artefact:
    """`root.ext4`, the root disk with the kernel's modules and the testbed's own files, and `swap`."""

    def make(directory: Path, tree: Path, boot: Path) -> None:
        debian.require_tools("mke2fs")
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            target = Path(scratch)
            subprocess.run(["tar", "-xpf", tree / "root.tar", "--numeric-owner", "-C", target], check=True)
            shutil.copytree(boot / "modules", target / "usr/lib/modules", dirs_exist_ok=True, symlinks=True)
            (target / "testbed").mkdir()
            for name in GUEST_PROGRAMS:
                shutil.copy(GUEST_FILES / name, target / "testbed")
            subprocess.run(["chroot", target, "/testbed/prepare-root"], check=True)
            machine.make_disk(directory / "root.ext4", root.mib, target)
        with open(directory / "swap", "wb") as swap:
            swap.truncate(SWAP_MIB << 20)
        subprocess.run(["mkswap", "-q", directory / "swap"], check=True)

    recipe = (root.mib, SWAP_MIB, machine.make_disk, *_contents(*GUEST_PROGRAMS))
    inputs = (root_tree(root), boot_files(root.release, kernel))
    return Artefact(f"image-{root.name}-{kernel.name}", make, recipe, inputs)


def saved_guest(mode: Mode) -> Artefact:
    """A guest as it was when it was up: it goes on from there in a fraction of a second. One whose kernel is a program boots
    as fast."""

    def make(directory: Path, image: Path, boot: Path, initrd: Path | None = None) -> None:
        for file in (image / "root.ext4", image / "swap", boot / "vmlinux"):
            (directory / file.name).symlink_to(file)
        if initrd is None:
            return
        (directory / "initrd").symlink_to(initrd / "initrd")
        (directory / "accelerator").write_text(chosen)
        debian.require_tools("qemu-img")
        asyncio.run(machine.save(mode, directory))

    origin = (mode.root.release, mode.kernel)
    if mode.kernel.is_program:
        return Artefact(f"guest-{mode.name}", make, (), (image(mode.root, mode.kernel), boot_files(*origin)))
    chosen = accelerator()
    # QEMU reads back its own version's states only.
    recipe = (chosen, mode.kernel_args, mode.memory_mib, *machine.RECIPE, debian.qemu_version())
    inputs = (image(mode.root, mode.kernel), boot_files(*origin), initrd(*origin))
    return Artefact(f"guest-{mode.name}", make, recipe, inputs)


def ensure_guest(mode: Mode) -> Path:
    """The directory of a mode's saved guest, built as far as it is missing."""
    debian.require_tools("qemu-system-x86_64", "mke2fs")
    return saved_guest(mode).ensure()
