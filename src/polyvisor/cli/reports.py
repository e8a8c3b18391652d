"""What `polyvisor run` writes about a machine: coverage, a profile, its system calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from polyvisor.vm.events import Event
from polyvisor.vm.virtual_machine import VM

# What is in `polyvisor.vm.analysis` loads the compiler, so it is imported where it is asked for.


@dataclass
class Reports:
    """Files to be written: ``coverage`` (``.xml``: for Cobertura, else for lcov), ``profile`` (``.svg``, else collapsed
    stacks), ``syscalls`` (a line for each; ``-`` for standard error)."""

    coverage: Path | None = None
    profile: Path | None = None
    syscalls: Path | None = None
    _write: list[Callable[[], None]] = field(default_factory=list)

    def attach(self, vm: VM) -> None:
        """Look at a machine that was not started yet. Raises OSError, and ValueError for what cannot be."""
        for path in (self.coverage, self.profile):
            if path is not None:
                path.open("a").close()  # what cannot be written is said now, not when all is done
        if self.coverage is not None:
            self._cover(vm, self.coverage)
        if self.profile is not None:
            self._sample(vm, self.profile)
        if self.syscalls is not None:
            standard = str(self.syscalls) == "-"
            file: TextIO = sys.stderr if standard else self.syscalls.open("w")
            from polyvisor.vm.analysis.syscalls import SyscallTrace

            SyscallTrace(vm, file)
            if not standard:
                self._write.append(file.close)

    def write(self) -> None:
        """The machine has ended: write what was seen. Raises OSError."""
        for write in self._write:
            write()

    def _cover(self, vm: VM, path: Path) -> None:
        program = vm.software.program or vm.software.kernel
        if program is None or not program.read_bytes().startswith(b"\x7fELF"):
            raise ValueError("--coverage goes with a program, or a kernel that is an ELF file (vmlinux)")
        from polyvisor.vm.analysis.coverage import Coverage

        coverage = Coverage(vm, program)
        coverage.files()  # which says so if there is no debug information

        def write() -> None:
            path.write_text(coverage.cobertura() if path.suffix == ".xml" else coverage.lcov())

        self._write.append(write)

    def _sample(self, vm: VM, path: Path) -> None:
        from polyvisor.vm.analysis.profile import Profile

        profiles: list[Profile] = []

        def begin(event: Event) -> None:
            if not profiles:
                profiles.append(Profile(vm))

        # A kernel's symbols are known when its agent answers.
        vm.events.on("ready" if vm.software.agent else "started", begin)

        def write() -> None:
            for profile in profiles:
                profile.stop()
                title = f"{vm.name}, sampled while it was awake"
                path.write_text(profile.svg(title) if path.suffix == ".svg" else profile.collapsed())

        self._write.append(write)
