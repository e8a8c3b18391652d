"""Tier 1, the reference executor: CPython runs the description as it stands.

Slow, and obviously right: no caches of translations or decoded code, one instruction at a time.  Everything
else is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from polyvisor.adl import FETCH, READ, WRITE, Architecture, Instruction, Int, Trap, i8, i16, i32, i64, u8, u16, u32, u64
from polyvisor.adl.state import checked

from .memory import BusError, Memory

_SIGNED = {u8: i8, u16: i16, u32: i32, u64: i64}

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "swap": lambda old, value: value,
    "add": lambda old, value: old + value,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "min": lambda old, value: value if _SIGNED[type(value)](value) < _SIGNED[type(old)](old) else old,
    "max": lambda old, value: value if _SIGNED[type(value)](value) > _SIGNED[type(old)](old) else old,
    "minu": lambda old, value: min(old, value),
    "maxu": lambda old, value: max(old, value),
}


class Observer(Protocol):
    """Is told of what a CPU does: see :mod:`polyvisor.engine.hooks`."""

    def begins(self, cpu: Any) -> None:
        """An instruction begins: it was fetched and decoded."""

    def ends(self, cpu: Any, instruction: Instruction) -> None:
        """It has completed; ``cpu.next_pc`` is where it leads."""

    def loaded(self, cpu: Any, address: Int, value: Int) -> None:
        """Memory was read."""

    def stored(self, cpu: Any, address: Int, value: Int) -> None:
        """Memory was written."""

    def traps(self, cpu: Any, values: Sequence[int]) -> None:
        """A trap is about to be entered."""

    def enters(self, cpu: Any) -> None:
        """It was: ``cpu.next_pc`` is where it leads."""

    def cycled(self, cpu: Any, access: int, address: Int) -> None:
        """The CPU had the bus for a clock cycle."""

    def noted(self, cpu: Any, event: str, values: Sequence[Int]) -> None:
        """The description called ``cpu.note``."""


class ReferenceCpu:
    """The primitives of a described CPU, over ``memory``; mixed with the described state by `reference_cpu`."""

    architecture: Architecture
    memory: Memory
    pc: Any
    block: memoryview

    def prepare(self, architecture: Architecture, memory: Memory, clock: Callable[[], int] | None = None) -> None:
        """Set up what is beside the described state; ``clock`` gives the time counter, by default instructions."""
        self.architecture = architecture
        self.memory = memory
        self._address_mask = (1 << architecture.address_bits) - 1
        self.retired = 0  # instructions, or clock cycles
        self.word = 0
        self.reason: str | None = None
        self.peers: Sequence[Any] = [self]  # the CPUs of the machine
        self.on_signal: Callable[[], None] = lambda: None
        self.observer: Observer | None = None
        self.next_pc: Any = self.pc
        self._clock = clock or (lambda: self.retired)

    # Execution

    def step(self) -> str | None:
        """Poll for interrupts, then execute one instruction or enter a trap. Gives `leave`'s reason, if it left."""
        hooks = self.architecture.hooks
        self.reason = None
        try:
            if "poll" in hooks:
                self.next_pc = self.pc
                hooks["poll"](self)
            word = self.fetch()
            found = self.architecture.decode(word)
            if found is None:
                self.next_pc = self.pc
                hooks["on_illegal"](self, u64(word))
                raise AssertionError("on_illegal must raise a Trap")
            length = found.encoding.length
            self.word = word & ((1 << 8 * length) - 1)
            self.next_pc = type(self.pc)(int(self.pc) + length & self._address_mask)
            values = found.operand_values(self.word)
            if self.observer is not None:
                self.observer.begins(self)
            found.function.python(self, *(t(values[name]) for name, t in found.types.items()))
            if self.observer is not None:
                self.observer.ends(self, found)
            self.pc = type(self.pc)(int(self.next_pc) & self._address_mask)
            if not self.architecture.clocked:
                self.retired += 1
        except Trap as trap:
            self.enter_trap(trap)
        return self.reason

    def enter_trap(self, trap: Trap) -> None:
        """Let the architecture enter ``trap`` at the current pc."""
        on_trap = self.architecture.hooks["on_trap"]
        hints = on_trap.hints
        names = on_trap.parameters[1:]
        if self.observer is not None:
            self.observer.traps(self, trap.values)
        on_trap(self, *(hints[name](value) for name, value in zip(names, trap.values, strict=True)))
        if self.observer is not None:
            self.observer.enters(self)
        self.pc = self.next_pc

    def fetch(self) -> int:
        """The bytes at pc as a little-endian number: as many as an instruction can have, if they can be fetched.

        A unit is fetched only when those before it do not make a whole instruction, so that an instruction at
        the end of a page does not fault for bytes it does not have.
        """
        architecture = self.architecture
        word = 0
        for offset in range(0, architecture.max_length, architecture.unit):
            address = type(self.pc)(int(self.pc) + offset & self._address_mask)
            paddr = self._translate(address, architecture.unit, FETCH)
            data = self._read(address, paddr, architecture.unit, FETCH, devices=False)
            word |= int.from_bytes(data, "little") << (8 * offset)
            if architecture.complete(word, offset + architecture.unit):
                break
        return word

    # Primitives: virtual memory

    def _translate(self, address: Int, size: int, access: int) -> int:
        hooks = self.architecture.hooks
        if "translate" not in hooks:
            return int(address)
        name = "fetch_context" if access == FETCH else "data_context"
        context = hooks[name](self) if name in hooks else u32(0)
        paddr, page_bits = hooks["translate"](self, address, u32(access), context)
        if page_bits < self.architecture.page_bits:
            # Parts of the page have different rules: all that the access touches must be allowed.
            granule = 1 << int(page_bits)
            for part in range((int(address) | granule - 1) + 1, int(address) + size, granule):
                hooks["translate"](self, type(address)(part), u32(access), context)
        return int(paddr)

    def _pieces(self, address: Int, size: int, access: int) -> list[tuple[Int, int, int]]:
        """(virtual, physical, size) of the parts of an access, all translated before any is made."""
        page = 1 << self.architecture.page_bits
        first = min(size, page - int(address) % page)
        pieces = [(address, self._translate(address, first, access), first)]
        if first < size:
            second = type(address)(int(address) + first)
            pieces.append((second, self._translate(second, size - first, access), size - first))
            # Devices do not answer halves of an access.
            for vaddr, paddr, part in pieces:
                if not self.memory.is_ram(paddr, part):
                    self.architecture.hooks["on_bus_error"](self, vaddr, u32(access))
                    raise AssertionError("on_bus_error must raise a Trap")
        return pieces

    def load(self, type: type[Int], address: Int) -> Int:
        data = b""
        for vaddr, paddr, size in self._pieces(address, type.bits // 8, READ):
            data += self._read(vaddr, paddr, size, READ)
        value = type(int.from_bytes(data, self.architecture.byte_order))  # type: ignore[arg-type]
        if self.observer is not None:
            self.observer.loaded(self, address, value)
        return value

    def store(self, type: type[Int], address: Int, value: Int) -> None:
        value = checked(type, value, "the stored value")
        size = type.bits // 8
        data = (int(value) & ((1 << type.bits) - 1)).to_bytes(size, self.architecture.byte_order)  # type: ignore[arg-type]
        pieces = self._pieces(address, size, WRITE)
        for vaddr, paddr, part in pieces:
            if not self.memory.is_ram(paddr, part):
                self._write(vaddr, paddr, data[:part])
            else:
                self.memory.write(paddr, data[:part])
            data = data[part:]
        if self.observer is not None:
            self.observer.stored(self, address, value)

    def _read(self, vaddr: Int, paddr: int, size: int, access: int, devices: bool = True) -> bytes:
        """Bytes of memory, or of a device: only of a described one if ``devices`` is False."""
        try:
            if self.memory.is_ram(paddr, size):
                return self.memory.read(paddr, size)
            if "read_device" in self.architecture.hooks:
                value, answered = self.architecture.hooks["read_device"](self, u64(paddr), u64(size))
                if answered:
                    return int(value).to_bytes(8, "little")[:size]
            if not devices:
                raise BusError(paddr, size)
            device, offset = self.memory.device_at(paddr, size)
            if size not in (1, 2, 4, 8) or paddr % size:
                raise BusError(paddr, size)
            return device.read(offset, size).to_bytes(size, "little")
        except BusError:
            self.architecture.hooks["on_bus_error"](self, vaddr, u32(access))
            raise AssertionError("on_bus_error must raise a Trap") from None

    def _write(self, vaddr: Int, paddr: int, data: bytes) -> None:
        if "write_device" in self.architecture.hooks:
            value = int.from_bytes(data, "little")
            if self.architecture.hooks["write_device"](self, u64(paddr), u64(len(data)), u64(value)):
                return
        try:
            if len(data) not in (1, 2, 4, 8) or paddr % len(data):
                raise BusError(paddr, len(data))
            device, offset = self.memory.device_at(paddr, len(data))
            device.write(offset, len(data), int.from_bytes(data, "little"))
        except BusError:
            self.architecture.hooks["on_bus_error"](self, vaddr, u32(WRITE))
            raise AssertionError("on_bus_error must raise a Trap") from None

    def _modify(self, type: type[Int], address: Int, change: Callable[[Any], Any]) -> Int:
        size = type.bits // 8
        paddr = self._translate(address, size, WRITE)
        order: Any = self.architecture.byte_order
        if not self.memory.is_ram(paddr, size):
            self.architecture.hooks["on_bus_error"](self, address, u32(WRITE))
            raise AssertionError("on_bus_error must raise a Trap")
        old = type(int.from_bytes(self.memory.read(paddr, size), order))
        new = change(old)
        if new is not None:
            self.memory.write(paddr, int(new).to_bytes(size, order))
        if self.observer is not None:
            self.observer.loaded(self, address, old)
            if new is not None:
                self.observer.stored(self, address, type(int(new)))
        return old

    def atomic(self, operation: str, type: type[Int], address: Int, value: Int) -> Int:
        return self._modify(type, address, lambda old: _OPERATIONS[operation](old, checked(type, value, "operand")))

    def compare_exchange(self, type: type[Int], address: Int, expected: Int, new: Int) -> Int:
        return self._modify(type, address, lambda old: new if old == expected else None)

    # Primitives: physical memory

    def phys_load(self, type: type[Int], address: Int) -> tuple[Int, bool]:
        try:
            data = self.memory.read(int(address), type.bits // 8)
        except BusError:
            return type(0), False
        return type(int.from_bytes(data, self.architecture.byte_order)), True  # type: ignore[arg-type]

    def phys_store(self, type: type[Int], address: Int, value: Int) -> bool:
        try:
            data = int(checked(type, value, "the stored value")).to_bytes(type.bits // 8, self.architecture.byte_order)  # type: ignore[arg-type]
            self.memory.write(int(address), data)
        except BusError:
            return False
        return True

    def phys_compare_exchange(self, type: type[Int], address: Int, expected: Int, new: Int) -> tuple[Int, bool]:
        old, there = self.phys_load(type, address)
        if there and old == expected:
            self.memory.write(int(address), int(new).to_bytes(type.bits // 8, self.architecture.byte_order))  # type: ignore[arg-type]
        return old, there

    # Primitives: time

    def cycle(self, access: int, address: Int) -> None:
        if "bus" in self.architecture.hooks:
            self.architecture.hooks["bus"](self, u32(access), address)
        self.retired += 1
        if self.observer is not None:
            self.observer.cycled(self, access, address)

    def stall(self, count: Int) -> None:
        self.retired += int(count)

    def cycles(self) -> Int:
        return u64(self.retired)

    # Primitives: the rest

    def has(self, feature: str) -> bool:
        return feature in self.architecture.features

    def fence(self) -> None:
        pass

    def flush_tlb(self) -> None:
        pass

    def flush_tlb_page(self, address: Int) -> None:
        pass

    def flush_code(self) -> None:
        pass

    def clock(self) -> Int:
        return u64(self._clock())

    def instructions(self) -> Int:
        return u64(self.retired)

    def encoding(self) -> Int:
        return u64(self.word)

    def leave(self, reason: str) -> None:
        self.reason = reason

    wait = leave

    def cpus(self) -> Int:
        return u64(len(self.peers))

    def signal(self, number: Int, member: str, value: Int) -> None:
        peer = self.peers[int(number)]
        setattr(peer, member, value)
        peer.on_signal()

    def flush_others(self, first: Int, mask: Int) -> None:
        pass

    def note(self, event: str, *values: Int) -> None:
        """Tell the observer, if there is one."""
        if self.observer is not None:
            self.observer.noted(self, event, values)


def reference_cpu(
    architecture: Architecture,
    memory: Memory,
    block: memoryview | bytearray | None = None,
    clock: Callable[[], int] | None = None,
) -> Any:
    """A CPU of ``architecture`` that runs under CPython, on its state in ``block`` (a new one, reset, if None)."""
    assert architecture.state_type is not None
    kind = type(f"{architecture.state_type.__name__}Reference", (ReferenceCpu, architecture.state_type), {})
    cpu: Any = kind(block)
    if block is None:
        cpu.reset()
    cpu.prepare(architecture, memory, clock)
    return cpu
