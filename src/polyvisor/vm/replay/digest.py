"""Digests of a machine's memory, registers and devices, for checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from polyvisor.adl import Registers
from polyvisor.boards.virt import Virt
from polyvisor.devices.virtio.p9 import P9Device
from polyvisor.devices.virtio.transport import Transport
from polyvisor.engine.memory import PAGE_SIZE, Ram

from ..snapshot.codec import to_plain

_ZERO = bytes(PAGE_SIZE)
_BYTES = 16
_MODULUS = 1 << 8 * _BYTES


class MemoryDigest:
    """The digest of all RAM: the sum of those of its pages that are not zero.

    So only pages that were written since the last time are looked at.
    """

    def __init__(self, board: Virt) -> None:
        self._board = board
        self._pages: dict[int, int] = {}
        self._sum = 0
        self._mark = 0  # before everything

    def take(self) -> bytes:
        """The digest now. While all harts stand still."""
        for ram, offset in self._changed():
            page = ram.view[offset : offset + PAGE_SIZE]
            number = (ram.base + offset) // PAGE_SIZE
            value = 0
            if page != _ZERO:
                found = hashlib.sha256(number.to_bytes(8, "little"))
                found.update(page)
                value = int.from_bytes(found.digest()[:_BYTES], "little")
            self._sum += value - self._pages.get(number, 0)
            self._pages[number] = value
        return (self._sum % _MODULUS).to_bytes(_BYTES, "little")

    def _changed(self) -> Iterator[tuple[Ram, int]]:
        """The pages that may differ from what they were the last time."""
        pages, rams = self._board.pages, self._board.memory.ram
        runs = [[(0, ram.size // PAGE_SIZE)] for ram in rams]
        if pages is not None:
            runs = pages.written_since(self._mark)
            self._mark = pages.mark()
        for ram, written in zip(rams, runs, strict=True):
            for first, count in written:
                for page in range(first, first + count):
                    yield ram, page * PAGE_SIZE


def registers_digest(board: Virt) -> bytes:
    """Of the described state of all harts, and of what they have executed."""
    found = hashlib.sha256()
    for hart in board.harts:
        found.update(f"hart {hart.hart_id} {hart.started} {hart.cpu.retired}\n".encode())
        for name, value in state_of(hart.state).items():
            found.update(f"{name} {value}\n".encode())
    return found.digest()[:_BYTES]


def state_of(state: Any) -> dict[str, int | list[int]]:
    """The members of a CPU's described state."""
    return {
        name: [int(v) for v in getattr(state, name)] if isinstance(member, Registers) else int(getattr(state, name))
        for name, member in type(state).members.items()
    }


def set_state(state: Any, values: dict[str, int | list[int]]) -> None:
    """The other way round. Raises KeyError for members that are missing."""
    for name, member in type(state).members.items():
        if isinstance(member, Registers):
            registers = getattr(state, name)
            for index, value in enumerate(values[name]):  # type: ignore[arg-type]
                if index != member.zero:
                    registers[index] = value
        else:
            setattr(state, name, values[name])


def devices_digest(board: Virt) -> bytes:
    """Of what the guest can change in devices."""
    found = hashlib.sha256()
    devices: list[Any] = [board.plic, board.aclint, board.uart, board.rtc, board.test, *board.virtio]
    for device in devices:
        state = to_plain(device.state)
        if isinstance(device, Transport) and isinstance(device.device, P9Device):
            state["device"] = None  # the host's files, which a replay has not
        _add(found, state)
    return found.digest()[:_BYTES]


def _add(found: Any, value: Any) -> None:
    """Add plain data in a form that does not depend on the process."""
    if isinstance(value, dict):
        found.update(b"{")
        for key in sorted(value):
            found.update(f"{key}=".encode())
            _add(found, value[key])
        found.update(b"}")
    elif isinstance(value, list):
        found.update(b"[")
        for item in value:
            _add(found, item)
        found.update(b"]")
    elif isinstance(value, bytes):
        found.update(b"b%d:" % len(value))
        found.update(value)
    else:
        found.update(f"{value!r};".encode())
