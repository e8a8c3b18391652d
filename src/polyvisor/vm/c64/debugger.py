"""A Commodore 64 as debuggers see it: one thread, the registers of the 6510, memory by its banks, and a past."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from polyvisor.boards.c64.machine import Stop
from polyvisor.vm.gdb.target import SIGILL, SIGTRAP, Halt, TargetError, Watch

from .debugger_commands import obey
from .machine import C64
from .watch import Watchpoint

_Result = TypeVar("_Result")
# Name, bytes, type, and the register in the state: numbers are positions in this list.
REGISTERS = (
    ("a", 1, "uint8", "a"), ("x", 1, "uint8", "x"), ("y", 1, "uint8", "y"), ("p", 1, "m6502_flags", "p"),
    ("sp", 2, "data_ptr", "s"), ("pc", 2, "code_ptr", "pc"),
)  # fmt: skip
_STACK = 0x100
_FLAGS = "".join(
    f'<field name="{name}" start="{bit}" end="{bit}"/>' for bit, name in enumerate("CZIDB-VN") if name != "-"
)
# GDB manual, appendix G. GDB has no 6502, and other clients go by the names.
_DESCRIPTION = (
    '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
    "<architecture>m6502</architecture>"
    f'<feature name="org.polyvisor.m6502"><flags id="m6502_flags" size="1">{_FLAGS}</flags>'
    + "".join(
        f'<reg name="{name}" bitsize="{8 * size}" type="{kind}" regnum="{number}"/>'
        for number, (name, size, kind, _) in enumerate(REGISTERS)
    )
    + "</feature></target>"
)
_SIGNALS = {"jam": SIGILL}


class C64Target:
    """A :class:`~polyvisor.vm.gdb.target.Target`. It stands still at first.

    One thread has the machine: it calls :meth:`run` in place of the machine's own, and :meth:`serve` while it waits
    for something else. What a debugger asks for is done by that thread then.
    """

    description = _DESCRIPTION
    sizes: Sequence[int] = tuple(size for _, size, _, _ in REGISTERS)
    general = len(REGISTERS)
    sealed = False
    can_watch = True
    threads: Sequence[str] = ("6510",)

    def __init__(self, c64: C64) -> None:
        self._c64 = c64
        self.can_reverse = c64.keeps_history
        self.on_halt: Callable[[Halt], bool] | None = None
        self.killed = False
        """Whether the debugger wants the machine to end."""
        self.waiting = True
        """Whether no debugger has come yet."""
        self._going = False
        self._watches: dict[Watch, Watchpoint] = {}
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()
        self._closed = False

    # For the thread that has the machine

    @property
    def descriptor(self) -> int:
        """A file descriptor that can be read when :meth:`serve` has something to do."""
        return self._wake_read

    @property
    def stands_still(self) -> bool:
        """Whether it does not run, for a debugger."""
        return not self._going

    def run(self, cycles: int) -> Stop:
        """Run for so many clock cycles, as :meth:`C64.run` does; ``paused``: the machine stands still for a debugger.

        What ends a run for a debugger is told to it, if there is one.
        """
        self.serve()
        if not self._going:
            return Stop("paused")
        found = self._c64.run(cycles=cycles)
        if found.reason not in ("breakpoint", "watchpoint", "jam"):
            return found
        self._going = False
        if self.on_halt is None or not self.on_halt(self._halt(found)):
            self._going = True
            return found
        return Stop("paused")

    def serve(self, seconds: float = 0) -> None:
        """Do what the debugger has asked for, and wait so long at most for more of it."""
        end = time.monotonic() + seconds
        while True:
            try:
                left = end - time.monotonic()
                request = self._requests.get(timeout=left) if left > 0 else self._requests.get_nowait()
            except queue.Empty:
                return
            os.read(self._wake_read, 1)
            request()
            if self._going or self.killed:
                return

    def close(self) -> None:
        """The machine is not run any more, so nothing can be asked for. May be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.serve()
        os.close(self._wake_read)
        os.close(self._wake_write)
        for watch in self._watches.values():
            with contextlib.suppress(ValueError):
                watch.remove()

    # For the debugger's thread

    def _ask(self, do: Callable[[], _Result]) -> _Result:
        """Have something done by the machine's thread; gives, or raises, what came of it."""
        done = threading.Event()
        results: list[_Result] = []
        failures: list[BaseException] = []

        def request() -> None:
            try:
                results.append(do())
            except Exception as error:
                failures.append(error)
            except BaseException:
                failures.append(TargetError("interrupted"))
                raise
            finally:
                done.set()

        with self._lock:
            if self._closed:
                raise TargetError("the machine has ended")
            self._requests.put(request)
            os.write(self._wake_write, b"x")
        done.wait()
        if failures:
            raise failures[0]
        return results[0]

    def _go(self, going: bool) -> None:
        self._going, self.waiting = going, False

    def pause(self) -> None:
        """Make it stand still."""
        self._ask(lambda: self._go(False))

    def resume(self) -> None:
        """Let it run."""
        self._ask(lambda: self._go(True))

    def stop(self) -> None:
        """Let whoever runs the machine end it."""
        self.killed = True
        self._ask(lambda: None)

    def step(self, thread: int) -> Halt:
        """Execute an instruction, or enter an interrupt."""
        found = self._ask(self._c64.step)
        if found.reason == "debug":
            self._c64.machine.unseen = found  # it ends the run when that goes on
        return self._halt(found)

    def reverse_step(self) -> Halt:
        """One back."""
        return self._halt(self._ask(self._c64.reverse_step))

    def reverse_continue(self) -> Halt:
        """Back to a breakpoint or a watched access, or to the beginning of what is kept."""
        return self._halt(self._ask(self._c64.reverse_continue))

    def _halt(self, stop: Stop) -> Halt:
        """What the debugger is told, in terms of what it has put in."""
        watch = None
        if stop.access is not None:
            kind, address = stop.access.kind, stop.access.address
            kinds = {each.kind for each in self._watches if 0 <= address - each.address < max(each.length, 1)}
            watch = (kind if kind in kinds or "access" not in kinds else "access"), address
        return Halt(0, _SIGNALS.get(stop.reason, SIGTRAP), watch, "begin" if stop.reason == "begin" else "")

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Stop before these addresses are executed, and no others."""
        wanted = list(addresses)
        self._ask(lambda: self._c64.break_at(*wanted))

    def set_watches(self, watches: Iterable[Watch]) -> None:
        """Stop behind these accesses, and no others."""
        wanted = set(watches)
        self._ask(lambda: self._set_watches(wanted))

    def _set_watches(self, wanted: set[Watch]) -> None:
        for watch in wanted - set(self._watches):
            where = range(watch.address, watch.address + max(watch.length, 1))
            self._watches[watch] = self._c64.watch(where, watch.kind)
        for watch in set(self._watches) - wanted:
            self._watches.pop(watch).remove()

    def read_register(self, thread: int, number: int) -> int:
        """A register by its number in :data:`REGISTERS`."""
        return self._ask(lambda: self._register(REGISTERS[number][3]))

    def _register(self, name: str) -> int:
        value = int(getattr(self._c64.cpu, name))
        return value | _STACK if name == "s" else value

    def write_register(self, thread: int, number: int, value: int) -> None:
        """Change one. The stack pointer stays in its page."""
        name = REGISTERS[number][3]
        self._ask(lambda: self._c64.set(**{name: value & 0xFF if name == "s" else value}))

    def go_on_at(self, thread: int, address: int) -> None:
        """Change pc."""
        self._ask(lambda: self._c64.set(pc=address))

    def read_memory(self, thread: int, address: int, length: int) -> bytes:
        """Memory as the CPU would read it now, up to $FFFF."""
        if address > 0xFFFF:
            raise TargetError(f"${address:x}: addresses are $0 to $ffff")
        return self._ask(lambda: self._c64.read(address, min(length, 0x10000 - address)))

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        """Write as the CPU would."""
        self._ask(lambda: self._c64.poke(address, data))

    def command(self, text: str) -> str | None:
        """What `monitor TEXT` shows."""
        return self._ask(lambda: obey(self._c64, text))
