"""Watchpoints of a Commodore 64: hooks that end a run behind the instruction that makes an access."""

from __future__ import annotations

from types import TracebackType

from polyvisor.boards.c64.machine import Access, Commodore64, Stop
from polyvisor.vm.hooks import AddedHook

from .hooks import C64Event, C64Hooks

KINDS = {"write": ("write",), "read": ("read",), "access": ("read", "write")}
"""What can be watched for, and the events that each kind is."""
# The 6510's own port, which has no memory: its reads and writes are none of the hooks'.
_PORT = 2


class Watchpoint:
    """What was given by :meth:`polyvisor.vm.c64.machine.C64.watch`; it is out behind a ``with`` block."""

    def __init__(self, machine: Commodore64, hooks: C64Hooks, addresses: range, kind: str) -> None:
        """Put it in. Raises ValueError for what cannot be watched, or if there are too many."""
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r} of watchpoints; there are {', '.join(KINDS)}")
        if addresses.step != 1 or not 0 <= addresses.start < addresses.stop <= 0x10000:
            raise ValueError(f"{addresses}: watch an address, or range(first, behind the last), of $0 to $ffff")
        if addresses.start < _PORT:
            raise ValueError("$0000 and $0001 are the CPU's own port, which cannot be watched")
        self.kind, self.addresses = kind, addresses
        self._machine = machine
        self._hooks: list[AddedHook] = []
        try:
            for event in KINDS[kind]:
                self._hooks.append(hooks.add(self._hit, on=event, at=addresses))
        except BaseException:
            self.remove()
            raise

    def _hit(self, event: C64Event) -> None:
        access = Access(event.kind, event.address, event.value, int(event.cpu.pc))
        self._machine.end_run(Stop("watchpoint", event.value, access))

    def remove(self) -> None:
        """Take it out; nothing happens if it is out already."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Watchpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        first, last = self.addresses.start, self.addresses.stop - 1
        where = f"${first:04x}" if first == last else f"${first:04x} to ${last:04x}"
        return f"<watchpoint: {self.kind} of {where}{'' if self._hooks else ', removed'}>"
