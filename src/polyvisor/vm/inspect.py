"""Looking into a machine: registers, physical and virtual memory, symbols.

The machine stands still while something is looked at or changed, so what is seen is one moment of one hart.
"""

from __future__ import annotations

import io
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from polyvisor.adl import READ, Registers, Trap, u32, u64
from polyvisor.engine.hart import Hart
from polyvisor.engine.memory import Memory

Still = Callable[[], AbstractContextManager[object]]
"""Makes a machine stand still for a ``with`` block."""
PAGE = 4096


# Virtual memory


def translate(hart: Hart, address: int, context: int | None = None) -> int:
    """Where a hart's loads find a virtual address, without changing anything the guest can see. Raises Trap.

    ``context``: those of another context of its architecture than the one it is in. The hart stands still.
    """
    hooks = hart.cpu.architecture.hooks
    if "translate" not in hooks:
        return address
    view = _likeness(hart.cpu)
    view.block[:] = hart.state.block[: len(view.block)]
    now = int(hooks["data_context"](view)) if context is None else context
    # A kernel's own rules may forbid it to see its program's memory: then by those of less privileged contexts.
    for each in (now, *range(now)):
        try:
            return int(hooks["translate"](view, u64(address), u32(READ), u32(each))[0])
        except Trap as trap:
            failure = trap
    raise failure


_likenesses: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _likeness(cpu: Any) -> Any:
    """Another CPU, to be given the same state and then changed in its place: even while a CPU stands still, devices
    drive its interrupt lines, which are part of its state."""
    if cpu not in _likenesses:
        from polyvisor.engine.reference import reference_cpu  # only for a look at memory, not for every start

        same: Any = weakref.ref(cpu)
        view = reference_cpu(cpu.architecture, cpu.memory, bytearray(len(cpu.state.block)), lambda: same().clock)
        # No A bits are set for a look from outside.
        view.phys_compare_exchange = lambda kind, where, expected, new: (expected, True)
        _likenesses[cpu] = view
    return _likenesses[cpu]


def physical_pieces(
    hart: Hart, address: int, length: int, context: int | None = None
) -> Iterator[tuple[int, int]]:
    """(physical address, length) of a virtual range, page by page; ``context`` is that of :func:`translate`.

    Raises Trap where nothing is mapped.
    """
    while length:
        part = min(length, PAGE - address % PAGE)
        yield translate(hart, address, context), part
        address, length = (address + part) & (2**64 - 1), length - part


class _Bytes:
    """Bytes by address: ``memory[a]`` is a number, ``memory[a:b]`` bytes; both can be assigned."""

    def __getitem__(self, where: int | slice) -> Any:
        start, length = _range(where)
        data = self.read(start, length)
        return data[0] if isinstance(where, int) else data

    def __setitem__(self, where: int | slice, value: int | bytes) -> None:
        data = bytes([value]) if isinstance(value, int) else bytes(value)
        start, length = _range(where) if isinstance(where, int) or where.stop is not None else (where.start, len(data))
        if len(data) != length:
            raise ValueError(f"{len(data)} bytes for a range of {length}")
        self.write(start, data)

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at ``address``."""
        raise NotImplementedError

    def write(self, address: int, data: bytes) -> None:
        """Replace the bytes at ``address``."""
        raise NotImplementedError


def _range(where: int | slice) -> tuple[int, int]:
    if isinstance(where, int):
        return where, 1
    if where.step is not None or where.start is None or where.stop is None or where.stop < where.start:
        raise ValueError("give a range of addresses as memory[start:end]")
    return where.start, where.stop - where.start


Allowed = Callable[[], None]
"""Called before something is changed; raises VMError if that must not be."""


class PhysicalMemory(_Bytes):
    """RAM by physical address. Reading needs no pause. Raises BusError outside RAM."""

    def __init__(
        self, memory: Callable[[], Memory], virtual: Callable[[int], VirtualMemory], allowed: Allowed = lambda: None
    ) -> None:
        self._memory = memory
        self._allowed = allowed
        self.virtual = virtual
        """``virtual(cpu=0)``: memory by the virtual addresses that hart uses now."""

    def read(self, address: int, length: int) -> bytes:
        return self._memory().read(address, length)

    def write(self, address: int, data: bytes) -> None:
        self._allowed()
        self._memory().write(address, data)


class VirtualMemory(_Bytes):
    """Memory by the virtual addresses of one hart, as its page tables are at that moment.

    Raises LookupError where nothing is mapped.
    """

    def __init__(
        self, memory: Callable[[], Memory], hart: Callable[[], Hart], still: Still, allowed: Allowed = lambda: None
    ) -> None:
        self._memory = memory
        self._allowed = allowed
        self._hart = hart
        self._still = still

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        try:
            return list(physical_pieces(self._hart(), address, length))
        except Trap as error:
            raise LookupError(f"nothing is mapped at some of {address:#x}..{address + length - 1:#x}") from error

    def read(self, address: int, length: int) -> bytes:
        with self._still():
            return b"".join(self._memory().read(*piece) for piece in self._pieces(address, length))

    def write(self, address: int, data: bytes) -> None:
        self._allowed()
        with self._still():
            for physical, length in self._pieces(address, len(data)):
                self._memory().write(physical, data[:length])
                data = data[length:]


# Registers


class CpuView:
    """One hart: every member of its described state is an attribute, for example ``cpu.pc``, ``cpu.x[10]``,
    ``cpu.x["a0"]``; all can be assigned. Values are ints."""

    def __init__(self, hart: Callable[[], Hart], still: Still, allowed: Allowed = lambda: None) -> None:
        self.__dict__["_hart"] = hart
        self.__dict__["_allowed"] = allowed
        self.__dict__["_still"] = still

    def __getattr__(self, name: str) -> Any:
        hart = self._hart()
        member = type(hart.state).members.get(name)
        if member is None:
            raise AttributeError(f"a hart has no {name!r}; it has {', '.join(sorted(type(hart.state).members))}")
        if isinstance(member, Registers):
            return RegisterFile(self._hart, self._still, name, self._allowed)
        with self._still():
            return int(getattr(hart.state, name))

    def __setattr__(self, name: str, value: int) -> None:
        hart = self._hart()
        if name not in type(hart.state).members:
            raise AttributeError(f"a hart has no {name!r}")
        self._allowed()
        with self._still():
            setattr(hart.state, name, value)

    @property
    def started(self) -> bool:
        """Whether it executes: others wait to be started by the guest."""
        return bool(self._hart().started)

    @property
    def instructions(self) -> int:
        """How many it has executed."""
        with self._still():
            return int(self._hart().cpu.retired)

    def __dir__(self) -> list[str]:
        return [*type(self._hart().state).members, "started", "instructions"]


class RegisterFile:
    """An array of registers, by number or name."""

    def __init__(
        self, hart: Callable[[], Hart], still: Still, member: str, allowed: Allowed = lambda: None
    ) -> None:
        self._hart = hart
        self._allowed = allowed
        self._still = still
        self._member = member

    def _registers(self) -> Any:
        return getattr(self._hart().state, self._member)

    @property
    def names(self) -> tuple[str, ...]:
        """What the registers are called."""
        return tuple(type(self._hart().state).members[self._member].names)

    def _index(self, which: int | str) -> int:
        if isinstance(which, int):
            return which
        if which not in self.names:
            raise KeyError(f"no register is called {which!r}; they are {', '.join(self.names)}")
        return self.names.index(which)

    def __getitem__(self, which: int | str) -> int:
        with self._still():
            return int(self._registers()[self._index(which)])

    def __setitem__(self, which: int | str, value: int) -> None:
        self._allowed()
        with self._still():
            self._registers()[self._index(which)] = value

    def __len__(self) -> int:
        return len(self._registers())

    def __iter__(self) -> Iterator[int]:
        with self._still():
            values = [int(value) for value in self._registers()]
        return iter(values)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{n}: {v:#x}" for n, v in zip(self.names, self, strict=False)) + "}"


# Symbols


class Symbols(Mapping[str, int]):
    """Addresses by name, and names by address."""

    def __init__(self, symbols: Mapping[str, int]) -> None:
        self._symbols = dict(symbols)
        self._sorted: list[tuple[int, str]] | None = None

    def __getitem__(self, name: str) -> int:
        return self._symbols[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._symbols)

    def __len__(self) -> int:
        return len(self._symbols)

    def find(self, address: int) -> tuple[str, int] | None:
        """The symbol at or before ``address``, and how far behind it the address is; None before all symbols."""
        if self._sorted is None:
            self._sorted = sorted((value, name) for name, value in self._symbols.items() if value)
        place = bisect_right(self._sorted, address, key=lambda entry: entry[0]) - 1
        if place < 0:
            return None
        value, name = self._sorted[place]
        return name, address - value

    @classmethod
    def from_elf(cls, file: str | Path) -> Symbols:
        """The symbols of an ELF file, such as a kernel's ``vmlinux``. Raises OSError, ValueError."""
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection

        try:
            elf = ELFFile(io.BytesIO(Path(file).read_bytes()))
            tables = [s for s in elf.iter_sections() if isinstance(s, SymbolTableSection)]
            return cls({s.name: int(s["st_value"]) for table in tables for s in table.iter_symbols() if s.name})
        except ELFError as error:
            raise ValueError(f"{file}: not an ELF file: {error}") from error

    @classmethod
    def from_kallsyms(cls, text: str) -> Symbols:
        """The symbols in a System.map or /proc/kallsyms; those of modules are called ``module:name``."""
        found: dict[str, int] = {}
        for line in text.splitlines():
            words = line.split()
            if len(words) >= 3:
                name = f"{words[3].strip('[]')}:{words[2]}" if len(words) > 3 else words[2]
                found.setdefault(name, int(words[0], 16))
        return cls(found)
