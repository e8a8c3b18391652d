"""Which lines of a program were executed, and how often: counted by a hook, written as lcov or Cobertura reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from polyvisor.adl import Registers, u64
from polyvisor.engine.hooks.declare import Hook, State, on_instruction
from polyvisor.isa.riscv import rv64

from ..hooks import AddedHook
from ..virtual_machine import VM

_EXECUTABLE = 4  # SHF_EXECINSTR
_LARGEST = 64 << 20


@dataclass
class FileCoverage:
    """Of one source file: how often each line was executed; and functions by name, with their line and count."""

    lines: dict[int, int] = field(default_factory=dict)
    functions: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def covered(self) -> int:
        """How many lines were executed."""
        return sum(count > 0 for count in self.lines.values())


def _counters(start: int, unit: int, places: int) -> tuple[Hook, type[State]]:
    """A hook that counts each instruction of a range, and its state."""

    class Counts(State):
        of = Registers(u64, places)

    @on_instruction
    def count(hook: Any, address: Any) -> None:
        place = (address - start) // unit
        hook.of[place] = hook.of[place] + 1

    return count, Counts


class Coverage:
    """Counts the instructions of an ELF file that a machine executes: a kernel, a bare-metal or a static program.

    It counts by virtual address, whoever executes there. ``base`` is added to the file's addresses (of programs that
    can be loaded anywhere). Lines need debug information (``-g``). As a context manager it stops counting at the end.
    Raises OSError, and ValueError for a file that is no such ELF file.
    """

    def __init__(self, vm: VM, program: str | Path, base: int = 0) -> None:
        self._file = Path(program)
        self._base = base
        unit = rv64.unit
        code = [s for s in self._sections() if s["sh_flags"] & _EXECUTABLE]
        ranges = [(s["sh_addr"], s["sh_size"]) for s in code if s["sh_size"]]
        if not ranges:
            raise ValueError(f"{program} has no code")
        self._start = min(start for start, _ in ranges)
        length = max(start + size for start, size in ranges) - self._start
        if length > _LARGEST:
            raise ValueError(f"{program}: its code has {length >> 20} MiB; {_LARGEST >> 20} can be counted")
        start = self._start + base
        hook, state = _counters(start, unit, -(-length // unit))
        self._unit = unit
        self.hook: AddedHook = vm.hooks.add(hook, state, at=range(start, start + length))

    def _elf(self, stream: Any) -> Any:
        try:
            return ELFFile(stream)
        except ELFError as error:
            raise ValueError(f"{self._file}: not an ELF file: {error}") from error

    def _sections(self) -> list[Any]:
        with self._file.open("rb") as stream:
            return [section.header for section in self._elf(stream).iter_sections()]

    def stop(self) -> None:
        """Count no more; what was counted stays."""
        self.hook.remove()

    def __enter__(self) -> Coverage:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    # Results

    def addresses(self) -> dict[int, int]:
        """The executed instructions by address (in the file), and how often each was executed."""
        counts = self.hook.of
        return {self._start + self._unit * n: count for n, count in enumerate(counts) if count}

    def files(self) -> dict[str, FileCoverage]:
        """What was executed, by source file. Raises ValueError for a program without debug information."""
        counts = self.addresses()
        found: dict[str, FileCoverage] = {}
        lines: dict[int, tuple[str, int]] = {}
        with self._file.open("rb") as stream:
            elf = self._elf(stream)
            if not elf.has_dwarf_info():
                raise ValueError(f"{self._file} has no debug information: compile it with -g")
            for name, line, start, _ in _rows(elf.get_dwarf_info()):
                file = found.setdefault(name, FileCoverage())
                file.lines[line] = max(file.lines.get(line, 0), counts.get(start, 0))
                lines.setdefault(start, (name, line))
            table = elf.get_section_by_name(".symtab")
            for symbol in table.iter_symbols() if table is not None else ():
                place = lines.get(symbol["st_value"])
                if symbol["st_info"]["type"] == "STT_FUNC" and place is not None:
                    found[place[0]].functions[symbol.name] = place[1], counts.get(symbol["st_value"], 0)
        return dict(sorted(found.items()))

    def lcov(self) -> str:
        """A report as ``lcov`` and ``genhtml`` read it (geninfo(1), "FILES")."""
        text = []
        for name, file in self.files().items():
            functions = sorted(file.functions.items(), key=lambda item: item[1])
            text += ["TN:", f"SF:{name}"]
            text += [f"FN:{line},{function}" for function, (line, _) in functions]
            text += [f"FNDA:{count},{function}" for function, (_, count) in functions]
            text += [f"FNF:{len(functions)}", f"FNH:{sum(count > 0 for _, (_, count) in functions)}"]
            text += [f"DA:{line},{count}" for line, count in sorted(file.lines.items())]
            text += [f"LF:{len(file.lines)}", f"LH:{file.covered}", "end_of_record"]
        return "\n".join(text) + "\n"

    def cobertura(self) -> str:
        """A report as CI servers read it (Cobertura's coverage-04.dtd)."""
        files = self.files()
        covered, valid = sum(f.covered for f in files.values()), sum(len(f.lines) for f in files.values())
        rates = {
            "line-rate": _rate(covered, valid), "branch-rate": "0", "lines-covered": str(covered),
            "lines-valid": str(valid), "branches-covered": "0", "branches-valid": "0", "complexity": "0",
            "version": "1", "timestamp": str(int(time.time())),
        }
        root = ElementTree.Element("coverage", rates)
        sources = ElementTree.SubElement(root, "sources")
        ElementTree.SubElement(sources, "source").text = "/"
        packages = ElementTree.SubElement(root, "packages")
        own = {"line-rate": rates["line-rate"], "branch-rate": "0", "complexity": "0"}
        package = ElementTree.SubElement(packages, "package", {"name": self._file.name, **own})
        classes = ElementTree.SubElement(package, "classes")
        for name, file in files.items():
            rate = _rate(file.covered, len(file.lines))
            one = ElementTree.SubElement(classes, "class", {
                "name": PurePosixPath(name).name, "filename": name, "line-rate": rate, "branch-rate": "0",
                "complexity": "0",
            })
            ElementTree.SubElement(one, "methods")
            lines = ElementTree.SubElement(one, "lines")
            for line, count in sorted(file.lines.items()):
                ElementTree.SubElement(lines, "line", {"number": str(line), "hits": str(count), "branch": "false"})
        return '<?xml version="1.0" ?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _rate(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "0"


def _rows(dwarf: Any) -> Iterator[tuple[str, int, int, int]]:
    """The line table: file, line, first address, and the address behind (DWARF 5, 6.2)."""
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        directory = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
        names = _file_names(program, directory.value.decode() if directory is not None else "")
        before = None
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if before is not None and before.line and before.address < state.address:
                yield names.get(before.file, "?"), before.line, before.address, state.address
            before = None if state.end_sequence else state


def _file_names(program: Any, directory: str) -> dict[int, str]:
    """Source files by their number in a line program; before version 5, both tables begin with 1."""
    header = program.header
    first = 0 if header["version"] >= 5 else 1
    directories = [path.decode() for path in header["include_directory"]]
    if first:
        directories.insert(0, directory)
    found = {}
    for number, entry in enumerate(header["file_entry"], first):
        index = entry["dir_index"]
        parent = directories[index] if index < len(directories) else ""
        found[number] = str(PurePosixPath(directory, parent, entry["name"].decode()))
    return found
