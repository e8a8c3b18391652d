"""What `polyvisor run` writes about a machine: coverage, a profile, its system calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from polyvisor.vm.events import Event
from polyvisor.vm.virtual_machine import VM

from .desk import check_writable, told

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
        # What cannot be written is said now, not when all is done.
        for path, option in ((self.coverage, "--coverage"), (self.profile, "--profile")):
            if path is not None:
                check_writable(path, option)
        if self.coverage is not None:
            self._cover(vm, self.coverage)
        if self.profile is not None:
            self._sample(vm, self.profile)
        if self.syscalls is not None:
            standard = str(self.syscalls) == "-"
            with told(self.syscalls, "--syscalls"):
                file: TextIO = sys.stderr if standard else self.syscalls.open("w")
            from polyvisor.vm.analysis.syscalls import SyscallTrace

            self._write.append(SyscallTrace(vm, file).stop)
            if not standard:
                self._write.append(file.close)

    def __enter__(self) -> Reports:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The machine has ended, or failed: write what was seen. Raises OSError for what cannot be written."""
        problems: list[OSError] = []
        for write in self._write:
            try:
                write()
            except OSError as problem:
                problems.append(problem)
        if problems and error is None:
            raise problems[0]

    def _cover(self, vm: VM, path: Path) -> None:
        program = vm.software.program or vm.software.kernel
        if program is None or not program.read_bytes().startswith(b"\x7fELF"):
            raise ValueError("--coverage goes with a program, or a kernel that is an ELF file (vmlinux)")
        from polyvisor.vm.analysis.coverage import Coverage

        coverage = Coverage(vm, program)
        coverage.files()  # which says so if there is no debug information

        def write() -> None:
            text = coverage.cobertura() if path.suffix == ".xml" else coverage.lcov()
            with told(path, "--coverage"):
                path.write_text(text)

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
            if not profiles:
                why = "nothing was sampled, as the guest ended before it was ready"
                print(f"polyvisor: --profile: {why}", file=sys.stderr)
            for profile in profiles:
                profile.stop()
                title = f"{vm.name}, sampled while it was awake"
                text = profile.svg(title) if path.suffix == ".svg" else profile.collapsed()
                with told(path, "--profile"):
                    path.write_text(text)

        self._write.append(write)
