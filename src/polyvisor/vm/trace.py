"""A trace of every instruction: where, what, and which registers it changed."""

from __future__ import annotations

import threading
from typing import Any, TextIO

from polyvisor.adl import Registers, Trap
from polyvisor.engine.cpu import Exit
from polyvisor.engine.hart import Hart

from .machine import Machine

_LETTERS = {0: "U", 1: "S", 3: "M"}


class Tracer:
    """Runs a hart instruction by instruction and writes a line for each.

    The line: hart, privilege, pc, encoding, assembly, and what changed. An instruction that trapped, or an interrupt,
    says where execution went on.
    """

    def __init__(self, hart: Hart, file: TextIO, lock: threading.Lock) -> None:
        self._hart = hart
        self._file = file
        self._lock = lock
        self._registers = [
            (name, member) for name, member in type(hart.state).members.items() if isinstance(member, Registers)
        ]

    def step(self) -> Exit:
        """Execute one instruction and write its line."""
        cpu: Any = self._hart.cpu
        state = cpu.state
        pc, privilege, retired = int(state.pc), int(getattr(state, "privilege", 0)), cpu.retired
        text = self._text(pc)
        before = {name: list(getattr(state, name)) for name, _ in self._registers}
        found: Exit = cpu.step()
        if found.kind == "stop":
            return found
        line = f"{self._hart.hart_id} {_LETTERS.get(privilege, privilege)} {pc:016x} {text}"
        changes = [
            f"{member.names[i] if member.names else f'{name}{i}'}={int(new):x}"
            for name, member in self._registers
            for i, (old, new) in enumerate(zip(before[name], getattr(state, name), strict=True))
            if int(old) != int(new)
        ]
        if cpu.retired == retired:
            line = f"{line:<64} -> {int(state.pc):016x} (trap or interrupt)"
        elif changes:
            line = f"{line:<64} {' '.join(changes)}"
        with self._lock:
            self._file.write(line.rstrip() + "\n")
        return found

    def _text(self, pc: int) -> str:
        """Encoding and assembly of the instruction at ``pc``."""
        architecture = self._hart.cpu.architecture
        view = self._hart.cpu.view
        try:
            word = view.fetch()
        except Trap:
            return "-------- (cannot be fetched)"
        found = architecture.decode(word)
        if found is None:
            return f"{word:08x} (illegal)"
        length = found.encoding.length
        word &= (1 << 8 * length) - 1
        return f"{word:0{2 * length}x}".ljust(8) + " " + (architecture.disassemble(word, pc) or "")


def start_trace(machine: Machine, file: TextIO) -> None:
    """Trace all harts of a machine that was not started yet to ``file``."""
    lock = threading.Lock()
    for hart in machine.board.harts:
        hart.execute = Tracer(hart, file, lock).step
