"""The kernel modules that an image needs, and the tables by which modprobe finds them.

Formats: the ``.modinfo`` section of a module, NUL-terminated ``key=value`` strings (modinfo(8)); modules.dep(5) and
modules.alias as depmod(8) writes them and busybox's modprobe reads them.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from .contents import Contents
from .errors import ImageError
from .strip import strip_module

WANTED = (
    # virtio transports and devices
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon"),
    *("virtio_gpu", "virtio_input", "evdev", "virtio_scsi", "sd_mod", "virtiofs", "fuse"),
    *("9p", "9pnet_virtio", "vsock", "vmw_vsock_virtio_transport"),
    # file systems and what goes with them
    *("ext4", "overlay", "squashfs", "btrfs", "loop", "vfat", "nls_ascii", "nls_cp437", "isofs"),
    # what systemd looks for
    *("autofs4", "binfmt_misc"),
    # devices of the board that are modules in some kernels
    *("rtc_goldfish", "af_packet", "ipv6"),
    # asked for by the name of an algorithm, not of a module, so no dependency leads to them
    *("crc32c_generic", "crc32c_cryptoapi", "xxhash_generic", "sha256_generic", "blake2b_generic"),
)

_SUFFIX = re.compile(r"\.ko(\.xz|\.zst|\.gz)?$")


@dataclass(frozen=True)
class Module:
    """A module, decompressed and stripped. ``path`` is below /lib/modules/VERSION and ends in ``.ko``."""

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...]
    soft_depends: tuple[str, ...]
    aliases: tuple[str, ...]


def canonical(name: str) -> str:
    """The name by which the kernel knows a module: file names may have dashes, module names have underscores."""
    return name.replace("-", "_")


def kernel_versions(contents: Contents) -> set[str]:
    """The kernel versions for which ``contents`` has modules or a kernel image."""
    matches = (re.match(r"usr/lib/modules/([^/]+)/|boot/vmlinu[xz]-(.+)$", path) for path in contents)
    return {match[1] or match[2] for match in matches if match}


def collect(contents: Contents, version: str, wanted: Iterable[str] = WANTED) -> list[Module]:
    """The modules ``wanted`` of kernel ``version`` and all they depend on, sorted by path.

    A module that is not there is left out: it may be built into the kernel, or this kernel may not have it.
    Raises :class:`ImageError` ("corrupt") for a module that cannot be read.
    """
    prefix = f"usr/lib/modules/{version}/"
    paths = {
        canonical(_SUFFIX.sub("", path.rpartition("/")[2])): path
        for path in contents
        if path.startswith(prefix) and _SUFFIX.search(path)
    }
    chosen: dict[str, Module] = {}
    queue = [canonical(name) for name in wanted]
    while queue:
        name = queue.pop()
        if name in chosen or name not in paths:
            continue
        path = paths[name]
        chosen[name] = module = _read(name, _SUFFIX.sub(".ko", path.removeprefix(prefix)), path, contents.read(path))
        queue.extend((*module.depends, *module.soft_depends))
    return sorted(chosen.values(), key=lambda module: module.path)


def _read(name: str, path: str, source: str, data: bytes) -> Module:
    try:
        if source.endswith(".xz"):
            data = lzma.decompress(data)
        elif source.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        elif source.endswith(".gz"):
            data = gzip.decompress(data)
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
        if section is None:
            raise ELFError("no .modinfo section")
        fields = [field.decode(errors="replace").partition("=") for field in section.data().split(b"\0") if field]
    except (ELFError, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
        raise ImageError(f"module {source} cannot be read ({error}): fetch its package again", "corrupt") from error

    def values(key: str) -> list[str]:
        return [value for field, _, value in fields if field == key]

    depends = [word for value in values("depends") for word in value.split(",") if word]
    soft = [word for value in values("softdep") for word in value.split() if not word.endswith(":")]
    return Module(
        name,
        path,
        strip_module(data),
        tuple(canonical(word) for word in depends),
        tuple(canonical(word) for word in soft),
        tuple(values("alias")),
    )


def tables(modules: Iterable[Module], builtin: str | None) -> dict[str, str]:
    """The contents of ``modules.dep``, ``modules.alias`` and ``modules.builtin``.

    ``builtin`` is the kernel package's own ``modules.builtin``, if it has one: with it modprobe knows that a module
    which has no file is there all the same. Dependencies are listed so that loading from last to first is right.
    """
    by_name = {module.name: module for module in modules}
    dep = []
    for module in by_name.values():
        order: list[str] = []
        _visit(module, by_name, order, set())
        order.pop()  # itself
        dep.append(f"{module.path}:" + "".join(f" {by_name[name].path}" for name in reversed(order)) + "\n")
    alias = [f"alias {alias} {module.name}\n" for module in by_name.values() for alias in module.aliases]
    result = {"modules.dep": "".join(dep), "modules.alias": "".join(alias)}
    if builtin is not None:
        result["modules.builtin"] = builtin
    return result


def _visit(module: Module, by_name: dict[str, Module], order: list[str], seen: set[str]) -> None:
    """Append ``module`` to ``order`` after everything that it depends on."""
    if module.name in seen:
        return
    seen.add(module.name)
    for name in module.depends:
        if name in by_name:
            _visit(by_name[name], by_name, order, seen)
    order.append(module.name)
