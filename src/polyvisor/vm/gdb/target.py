"""What the server for debuggers asks of a machine, whatever its CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

SIGINT, SIGILL, SIGTRAP = 2, 4, 5
WATCHED = {"write": "watch", "read": "rwatch", "access": "awatch"}
"""The kinds of watchpoints, and what the protocol calls them where one is told of."""


class Watch(NamedTuple):
    """A watchpoint: ``kind`` is one of :data:`WATCHED`, for ``length`` bytes from ``address`` on."""

    kind: str
    address: int
    length: int


class Halt(NamedTuple):
    """Where a machine has come to stand still, and why.

    ``thread`` is a number from 0; ``watch`` what kind of a watchpoint was hit and at which address; ``history`` is
    ``begin`` or ``end`` where what is known of the past, or of a recording, ends.
    """

    thread: int
    signal: int = SIGTRAP
    watch: tuple[str, int] | None = None
    history: str = ""


class TargetError(Exception):
    """What a debugger asked for cannot be done: there is no such memory, say."""


class Target(Protocol):
    """A machine as a debugger sees it. Its CPUs are threads, numbered from 0; when one stops, all do.

    Methods are called by the server's thread, all but `pause` while the machine stands still. What cannot be done
    raises TargetError or ValueError.
    """

    on_halt: Callable[[Halt], bool] | None
    """Told, by any thread, where the machine stops by itself; gives whether there is a debugger."""

    @property
    def description(self) -> str:
        """Registers as a target description (GDB manual, appendix G)."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each register, by its number."""

    @property
    def general(self) -> int:
        """So many registers, from the first on, are what `g` asks for."""

    @property
    def sealed(self) -> bool:
        """Whether registers and memory may not be changed."""

    @property
    def can_reverse(self) -> bool:
        """Whether it can go back in time."""

    @property
    def can_watch(self) -> bool:
        """Whether it has watchpoints."""

    @property
    def threads(self) -> Sequence[str]:
        """A line about each thread."""

    def pause(self) -> None:
        """Make it stand still."""

    def resume(self) -> None:
        """Let it run."""

    def stop(self) -> None:
        """End it."""

    def step(self, thread: int) -> Halt:
        """Execute an instruction, if possible of this thread."""

    def reverse_step(self) -> Halt:
        """One instruction back."""

    def reverse_continue(self) -> Halt:
        """Back to a breakpoint or a watchpoint, or to the beginning."""

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Stop before instructions at these addresses, and no others."""

    def set_watches(self, watches: Iterable[Watch]) -> None:
        """Stop at these accesses, and no others."""

    def read_register(self, thread: int, number: int) -> int:
        """A register by its number."""

    def write_register(self, thread: int, number: int, value: int) -> None:
        """Change one."""

    def go_on_at(self, thread: int, address: int) -> None:
        """Change the program counter."""

    def read_memory(self, thread: int, address: int, length: int) -> bytes:
        """Memory as the CPU sees it."""

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        """Change it."""

    def command(self, text: str) -> str | None:
        """Do what `monitor TEXT` asks for; gives what to show. None: there are no such commands."""
