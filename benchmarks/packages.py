"""Unmodified programs of Debian for riscv64, with the libraries they need, as members of an archive.

They are fetched once and kept as an archive, so that later runs measure the same versions and need no network.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from polyvisor.images import ImageError, cpio
from polyvisor.images.contents import Contents
from polyvisor.images.debian import fetch_packages

from .build import work_directory
from .errors import SuiteError

ROOTS = ("python3-minimal", "xz-utils", "sqlite3")
RELATED = re.compile(
    r"(lib)?python3\.\d+-minimal|lib(c6|gcc-s1|lzma5|expat1|sqlite3-0|readline8(t64)?|tinfo6)|zlib1g"
)
_PROGRAMS = re.compile(r"usr/bin/(python3\.\d+|xz|sqlite3)")
_LIBRARIES = re.compile(r"usr/lib/riscv64-linux-gnu/[^/]*\.so[.0-9]*")
_PYTHON = re.compile(r"usr/lib/python3\.\d+/.*\.py")


class _Stages:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self.stage = tell

    def transfer(self, name: str, done: int, total: int) -> None:
        pass


def real_programs(progress: Callable[[str], None] = lambda text: None) -> tuple[list[cpio.Entry], dict[str, str]]:
    """The members of the archive, and the version of each package. Raises :class:`SuiteError`."""
    archive, versions = work_directory() / "debian.cpio", work_directory() / "debian.json"
    if not (archive.exists() and versions.exists()):
        try:
            _fetch(archive, versions, progress)
        except ImageError as error:
            raise SuiteError(f"the programs of Debian cannot be fetched: {error}") from error
    return list(cpio.read(archive.read_bytes())), json.loads(versions.read_text())


def _fetch(archive: Path, versions: Path, progress: Callable[[str], None]) -> None:
    packages = fetch_packages(ROOTS, RELATED, _Stages(progress))
    archive.parent.mkdir(parents=True, exist_ok=True)
    with Contents(archive.parent) as contents:
        for _, path in packages:
            contents.add(path)
        entries = list(_entries(contents))
    _check(entries)
    temporary = archive.with_suffix(".new")
    with temporary.open("wb") as stream:
        cpio.write(stream, entries)
    temporary.replace(archive)
    versions.write_text(json.dumps({package.name: package.version for package, _ in packages}, indent=2) + "\n")


def _entries(contents: Contents) -> Iterator[cpio.Entry]:
    for path in contents:
        if _PROGRAMS.fullmatch(path):
            yield cpio.file(path, contents.read(path), 0o755)
            if "python" in path:  # it asks for this directory, though minimal packages have nothing in it
                yield cpio.directory(f"usr/lib/{path.rpartition('/')[2]}/lib-dynload")
        elif _PYTHON.fullmatch(path):
            yield cpio.file(path, contents.read(path))
        elif _LIBRARIES.fullmatch(path):
            data = contents.read(path)
            yield cpio.file(path, data, 0o755)
            # Packages hold these links, but Contents lists regular files only.
            folder, _, file = path.rpartition("/")
            for name in _dynamic(data, "DT_SONAME"):
                if name != file:
                    yield cpio.symlink(f"{folder}/{name}", file)
            if file.startswith("ld-linux"):
                yield cpio.symlink(f"usr/lib/{file}", f"riscv64-linux-gnu/{file}")


def _dynamic(data: bytes, tag: str) -> list[str]:
    """The names under ``tag`` in the dynamic section of an ELF file; none where ``data`` is not one."""
    if not data.startswith(b"\x7fELF"):
        return []
    names = []
    for section in ELFFile(io.BytesIO(data)).iter_sections():
        if isinstance(section, DynamicSection):
            for entry in section.iter_tags(tag):
                names.append(str(getattr(entry, tag.removeprefix("DT_").lower())))
    return names


def _check(entries: list[cpio.Entry]) -> None:
    """Each program must be there, and each library that something needs."""
    there = {entry.name.rpartition("/")[2] for entry in entries}
    for entry in entries:
        for name in _dynamic(entry.data, "DT_NEEDED"):
            if name not in there:
                raise SuiteError(f"{entry.name} of Debian needs {name}, which none of the packages fetched holds")
    for name in ("xz", "sqlite3"):
        if name not in there:
            raise SuiteError(f"the packages of Debian hold no {name}")
