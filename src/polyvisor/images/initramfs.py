"""The initramfs of an image: busybox, the kernel's modules, and our first process."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import BinaryIO

from . import cpio, guest_files
from .modules import Module, tables

# What /init needs before it can ask busybox itself for the rest.
_CORE_APPLETS = frozenset(
    ("sh", "mount", "mkdir", "modprobe", "ip", "stty", "sync", "devmem", "poweroff", "sleep", "base64", "setsid")
)


def applets(busybox: bytes) -> list[str]:
    """The applets of a busybox binary: the sorted table of NUL-terminated names that starts with "[" and "[[".

    Empty when there is no such table. Read from the binary, because we never run it, and because linking the applets
    in the archive saves the guest from doing so at every boot.
    """
    start = busybox.find(b"[\0[[\0")
    names: list[str] = []
    for raw in busybox[start:].split(b"\0", 1000) if start >= 0 else ():
        name = raw.decode("ascii", "replace")
        if not re.fullmatch(r"\[\[?|[a-z0-9][a-z0-9_.+-]*", name) or (names and name <= names[-1]):
            break
        names.append(name)
    return names if "sh" in names else []


def entries(
    busybox: bytes, kernel_version: str, modules: Iterable[Module], builtin: str | None
) -> Iterable[cpio.Entry]:
    """The members of the archive. /bin, /sbin and /lib are links into /usr, as on Debian."""
    for name in ("dev", "proc", "sys", "run", "mnt", "root", "usr/bin", "usr/lib", "etc"):
        yield cpio.directory(name, 0o700 if name == "root" else 0o755)
    yield cpio.directory("tmp", 0o1777)
    for link, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("usr/sbin", "bin")):
        yield cpio.symlink(link, target)
    # The kernel opens this one for init's standard streams, before there is a devtmpfs.
    yield cpio.character_device("dev/console", 5, 1, 0o600)
    yield cpio.character_device("dev/null", 1, 3, 0o666)
    yield from guest_files.scripts()
    yield cpio.file("etc/passwd", guest_files.PASSWD.encode())
    yield cpio.file("etc/group", guest_files.GROUP.encode())
    yield cpio.file("etc/hosts", guest_files.HOSTS.encode())
    yield cpio.symlink("usr/share/udhcpc/default.script", "/etc/udhcpc/default.script")
    yield cpio.file("usr/bin/busybox", busybox, 0o755)
    for applet in sorted({*(applets(busybox) or _CORE_APPLETS), "sh"} - {"busybox"}):
        yield cpio.symlink(f"usr/bin/{applet}", "busybox")
    base = f"usr/lib/modules/{kernel_version}"
    modules = list(modules)
    for module in modules:
        yield cpio.file(f"{base}/{module.path}", module.data)
    for name, text in tables(modules, builtin).items():
        yield cpio.file(f"{base}/{name}", text.encode())


def write(stream: BinaryIO, busybox: bytes, kernel_version: str, modules: Iterable[Module], builtin: str | None) -> int:
    """Write the initramfs, uncompressed (an emulated CPU unpacks slower than the host loads); return its size."""
    return cpio.write(stream, entries(busybox, kernel_version, modules, builtin))
