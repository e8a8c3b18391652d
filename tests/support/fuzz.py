"""The native interpreter against the reference executor, bit for bit, on random instructions and programs.

Short in the tests (``tests/engine/test_differential.py``); as long as one likes by command::

    python tests/support/fuzz.py --instructions 10000000 --seed 1 --jobs 4

A program that the tiers disagree about is shrunk and printed with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import struct
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from polyvisor.adl import Instruction, Registers
from polyvisor.adl.state import Field
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import BusError, Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.csr import NAMES

PAGE = 4096
RAM = 0x2000_0000
RAM_PAGES = 16
RAM_END = RAM + RAM_PAGES * PAGE
DEVICE = 0x1000_0000
# What is where in RAM, by page. Handlers come first, then code, then data, then page tables (root, level 1, level 0).
HANDLERS, CODE, DATA, TABLES = 0, 1, 6, 13
ROOT, MIDDLE, LEAVES = (RAM + (TABLES + n) * PAGE for n in range(3))
# The level-0 table maps RAM as it is, and VIRTUAL_PAGES pages from VIRTUAL at random.
VIRTUAL, VIRTUAL_PAGES = 0x5004_0000, 32
FIRST_LEAF = VIRTUAL >> 12 & 511
_V, _R, _W, _X, _U, _A, _D = 1, 2, 4, 8, 16, 64, 128

BY_NAME = {i.name: n for n, i in enumerate(rv64.instructions)}
BY_MNEMONIC = {i.syntax.mnemonic: i for i in rv64.instructions}


class Probe:
    """A device whose answers depend on all that was done to it before; the last quarter of it answers nothing."""

    def __init__(self) -> None:
        self.log = 0

    def _note(self, *what: int) -> None:
        if what[0] >= 0xC00:
            raise BusError(DEVICE + what[0], what[1])
        for value in what:
            self.log = (self.log * 0x9E37_79B9_7F4A_7C15 + value + 1) & (2**64 - 1)

    def read(self, offset: int, size: int) -> int:
        self._note(offset, size)
        return self.log & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self._note(offset, size, value)


class Mismatch(AssertionError):  # noqa: N818
    """The tiers disagree."""


class Pair:
    """A native CPU and a reference CPU, each with memory and a device of its own, brought into the same states."""

    def __init__(self) -> None:
        self.probes = Probe(), Probe()
        self.memories = Memory(), Memory()
        for memory, probe in zip(self.memories, self.probes, strict=True):
            memory.add_ram(RAM, RAM_PAGES * PAGE)
            memory.add_device(DEVICE, PAGE, probe)
        code = native_code(rv64)
        for index in range(len(rv64.instructions) + 1):
            code.handler(index)  # now, so that no run takes long
        # Few pages, so that all are discarded now and then.
        self.native = Cpu(code, self.memories[0], CodePages(code, self.memories[0], 7), virtual=True)
        self.reference = reference_cpu(rv64, self.memories[1])
        self.offset = code.layout.state_offset
        self.size = len(self.reference.block)
        self.watch = Watchdog(self.native)

    def close(self) -> None:
        self.watch.end()
        for memory in self.memories:
            memory.close()

    def set(self, state: bytes, ram: bytes | None = None) -> None:
        """Make this the state of both, and forget translations."""
        self.native.block[self.offset : self.offset + self.size] = state
        self.reference.block[: self.size] = state
        self.native.engine.retired = 0
        self.native.engine.left = 0
        self.native.engine.resuming = 0  # what it was in the midst of is no more
        self.reference.retired = 0
        self.native.flush()
        if ram is not None:
            self.write(RAM, ram)
            for probe in self.probes:
                probe.log = 0

    def write(self, address: int, data: bytes) -> None:
        for memory in self.memories:
            if memory.read(address, len(data)) != data:
                memory.write(address, data)

    def states(self) -> tuple[bytes, bytes]:
        return bytes(self.native.block[self.offset : self.offset + self.size]), bytes(self.reference.block[: self.size])

    def difference(self, memory: bool = True) -> str:
        """What differs; empty if nothing does."""
        found = []
        mine, theirs = self.states()
        if mine != theirs:
            found += state_differences(mine, theirs)
        if self.native.retired != self.reference.retired:
            found.append(f"retired: native {self.native.retired}, reference {self.reference.retired}")
        if memory:
            rams = [m.read(RAM, RAM_PAGES * PAGE) for m in self.memories]
            if rams[0] != rams[1]:
                where = [i for i in range(len(rams[0])) if rams[0][i] != rams[1][i]]
                found += [
                    f"RAM at {RAM + i:#x}: native {rams[0][i]:#x}, reference {rams[1][i]:#x}" for i in where[:8]
                ]
            if self.probes[0].log != self.probes[1].log:
                found.append("the devices saw different accesses")
        return "\n".join(found)

    def step(self) -> str:
        """One step of both; gives what differs in state afterwards."""
        expected = self.reference.step()
        exit = self.native.step()
        found = self.difference(memory=False)
        if exit.kind != ("step" if expected is None else "leave") or exit.reason != (expected or ""):
            found += f"\nexit: native {exit}, reference {expected}"
        return found.strip()

    def run(self, instructions: int, most_traps: int = 2000) -> str:
        """The native one runs at its own pace; the reference must then get to the same state."""
        with self.watch:
            exit = self.native.run(instructions)
        target = self.native.retired
        if exit.kind == "stop":
            # Where every step is a trap, no instructions are counted: that is a hang of both.
            return "native code hangs" if progresses(self, instructions + 60) else "endless traps"
        reason = None
        for _ in range(target - self.reference.retired + most_traps):
            if self.reference.retired > target:
                break
            if self.reference.retired == target:
                mine, theirs = self.states()
                if mine == theirs and (exit.kind == "leave") == (reason is not None):
                    return ""
            reason = self.reference.step()
            if reason is not None and self.reference.retired < target:
                return f"the reference leaves after {self.reference.retired} instructions, native went on to {target}"
        return self.difference() or f"exit: native {exit}, reference {reason}"


class Watchdog:
    """Stops a CPU that runs for too long."""

    def __init__(self, cpu: Cpu, seconds: float = 0.7) -> None:
        self.cpu, self.seconds = cpu, seconds
        self.deadline = 0.0
        self._over = threading.Event()
        threading.Thread(target=self._main, daemon=True).start()

    def _main(self) -> None:
        while not self._over.wait(0.2):
            if self.deadline and time.monotonic() > self.deadline:
                self.cpu.stop()

    def __enter__(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    def __exit__(self, *_: object) -> None:
        self.deadline = 0.0

    def end(self) -> None:
        self._over.set()


def state_differences(mine: bytes, theirs: bytes) -> list[str]:
    """The members in which two states differ."""
    kind = rv64.state_type
    assert kind is not None
    a, b = kind(bytearray(mine)), kind(bytearray(theirs))
    found = []
    for name, member in kind.members.items():
        if isinstance(member, Registers):
            for n in range(member.count):
                if (x := getattr(a, name)[n]) != (y := getattr(b, name)[n]):
                    found.append(f"{name}[{n}]: native {int(x):#x}, reference {int(y):#x}")
        elif (x := getattr(a, name)) != (y := getattr(b, name)):
            found.append(f"{name}: native {int(x):#x}, reference {int(y):#x}")
    return found


# Random values

_CORNERS = [0, 1, 2, 3, 4, 7, 8, 63, 64, 127, 128, 255, 4095, 4096]
_CORNERS += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1]
_CORNERS += [(2**64 - v) & (2**64 - 1) for v in _CORNERS]
_DOUBLES = [0, 1, 0x10_0000_0000_0000, 0x3FF0_0000_0000_0000, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000,
            0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 0x3FE0_0000_0000_0000, 0x43E0_0000_0000_0000,
            0x41E0_0000_0000_0000, 0x4340_0000_0000_0000, 0x000F_FFFF_FFFF_FFFF, 0x36A0_0000_0000_0000]
_SINGLES = [0, 1, 0x80_0000, 0x3F80_0000, 0x7F7F_FFFF, 0x7F80_0000, 0x7FC0_0000, 0x7F80_0001, 0x3F00_0000,
            0x5F00_0000, 0x4F00_0000, 0x4B80_0000, 0x007F_FFFF, 0x3380_0000]


def integer(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_CORNERS)
    if kind < 0.6:
        return (1 << rng.randrange(64)) + rng.randrange(-2, 3) & (2**64 - 1)
    if kind < 0.7:
        return rng.getrandbits(32) | rng.choice((0, 0xFFFF_FFFF << 32))
    return rng.getrandbits(64)


def floating(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(_DOUBLES) | rng.getrandbits(1) << 63
    if kind < 0.6:
        return 0xFFFF_FFFF << 32 | rng.choice(_SINGLES) | rng.getrandbits(1) << 31
    if kind < 0.8:
        exponent = (127 + rng.randrange(-30, 31)) << 23
        return 0xFFFF_FFFF << 32 | rng.getrandbits(1) << 31 | exponent | rng.getrandbits(23)
    if kind < 0.95:
        return rng.getrandbits(1) << 63 | (1023 + rng.randrange(-70, 71)) << 52 | rng.getrandbits(52)
    return rng.getrandbits(64)


def address(rng: random.Random, translated: bool) -> int:
    """An address near which something interesting is."""
    kind = rng.random()
    near = rng.choice((0, 0, *range(8), -1, -2, -3, -4, -5, -7, -8, rng.randrange(PAGE), rng.randrange(0, PAGE, 8)))
    if kind < 0.06:
        return DEVICE + rng.choice((0, 8, 0xBF8, 0xC00, 0xFF8)) + near
    if kind < 0.1:
        return (rng.choice((RAM, RAM_END, RAM_END, 0, 1 << 38, 2**64 - 8, 1 << 56, 1 << 63)) + near) % 2**64
    if translated:
        return VIRTUAL + rng.randrange(VIRTUAL_PAGES + 1) * PAGE + near
    return RAM + rng.randrange(CODE if kind < 0.3 else DATA, TABLES) * PAGE + near


# Page tables

_USUAL = _V | _R | _W | _A | _D


def table_entry(rng: random.Random) -> int:
    """A random leaf entry of the lowest level."""
    kind = rng.random()
    physical = RAM + rng.randrange(CODE, TABLES) * PAGE
    if kind < 0.04:
        physical = DEVICE
    elif kind < 0.06:
        physical = RAM_END
    flags = _USUAL | _X
    if kind > 0.6:
        for bit in (_R, _W, _X, _A, _D, _A, _D, _V):
            if rng.random() < 0.2:
                flags &= ~bit
    if rng.random() < 0.5:
        flags |= _U
    entry = physical >> 12 << 10 | flags
    return entry | 1 << rng.randrange(54, 64) if rng.random() < 0.01 else entry


def tables(rng: random.Random, image: bytearray, user_code: bool) -> None:
    """Write Sv39 tables into an image of RAM: RAM is as it is, by one large or by small pages; and VIRTUAL."""
    at = lambda physical: physical - RAM  # noqa: E731
    struct.pack_into("<Q", image, at(ROOT), rng.choice((_USUAL | _X, MIDDLE >> 12 << 10 | _V)))
    struct.pack_into("<Q", image, at(MIDDLE) + 8 * (RAM >> 21 & 511), LEAVES >> 12 << 10 | _V)
    for n in range(RAM_PAGES):
        struct.pack_into("<Q", image, at(LEAVES) + 8 * n, RAM + n * PAGE >> 12 << 10 | _USUAL | _X)
    struct.pack_into("<Q", image, at(ROOT) + 8, MIDDLE >> 12 << 10 | _V)
    index = VIRTUAL >> 21 & 511
    struct.pack_into("<Q", image, at(MIDDLE) + 8 * index, LEAVES >> 12 << 10 | _V)
    for n in range(VIRTUAL_PAGES):
        entry = table_entry(rng)
        if n < DATA - CODE or n in range(16, 16 + DATA - CODE):
            # The code's pages, twice, under different addresses.
            entry = RAM + (CODE + n % 16) * PAGE >> 12 << 10 | _USUAL | _X | (_U if user_code else 0)
        struct.pack_into("<Q", image, at(LEAVES) + 8 * (FIRST_LEAF + n), entry)
    if rng.random() < 0.3:
        # A page of two megabytes, aligned or not, that the RAM is in.
        entry = (RAM >> 12 << 10) + (rng.choice((0, 0, 1 << 10))) | _USUAL | rng.choice((0, _U, _X))
        struct.pack_into("<Q", image, at(MIDDLE) + 8 * (index + 1), entry)


SATP = 8 << 60 | ROOT >> 12

# Random states


@dataclass
class Setting:
    """The privileged side of a state: how code runs. ``translated`` is for S and U mode with page tables."""

    privilege: int = 3
    translated: bool = False

    @staticmethod
    def random(rng: random.Random) -> Setting:
        kind = rng.random()
        if kind < 0.4:
            return Setting()
        return Setting(rng.choice((0, 1)), kind > 0.6)


_STATE: Any = rv64.state_type
_MSTATUS = {"SIE": 1, "MIE": 3, "SPIE": 5, "MPIE": 7, "SPP": 8}
_MSTATUS |= {"MPRV": 17, "SUM": 18, "MXR": 19, "TVM": 20, "TW": 21, "TSR": 22}


def random_state(rng: random.Random, setting: Setting, pc: int) -> Any:
    """A state with interesting values everywhere; its trap vectors are the handlers'."""
    state = _STATE(bytearray(_STATE.size))
    state.reset()
    member = _STATE.members["x"]
    struct.pack_into("=31Q", state.block, member.offset + 8, *(
        address(rng, setting.translated) if rng.random() < 0.3 else integer(rng) for _ in range(31)
    ))
    struct.pack_into("=32Q", state.block, _STATE.members["f"].offset, *(floating(rng) for _ in range(32)))
    state.pc = pc
    state.fflags = rng.randrange(32)
    state.frm = rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 7))
    state.privilege = setting.privilege
    status = rng.choice((0, 1, 2, 3, 3, 3)) << 13 | rng.choice((0, 1, 3)) << 11
    for name, bit in _MSTATUS.items():
        rare = name in ("MPRV", "TVM", "TW", "TSR")
        if rng.random() < (0.03 if rare else 0.5):
            status |= 1 << bit
    state.mstatus = status
    state.medeleg = rng.choice((0, 0xB3FF, rng.getrandbits(16) & 0xB3FF))
    state.mideleg = rng.choice((0, 0x222, 0x22))
    state.mtvec, state.stvec = M_HANDLER | rng.choice((0, 0, 1)), S_HANDLER
    state.mepc, state.sepc = pc, pc
    state.mcounteren = rng.choice((0, 7, 2**32 - 1))
    state.scounteren = rng.choice((0, 7))
    state.mscratch, state.sscratch = integer(rng), integer(rng)
    state.menvcfg = rng.choice((0, 1 << 61, 1 << 61, 1 << 63, 1 << 61 | 1 << 63))
    state.mip = rng.choice((0, 0, 2, 0x222))
    state.reservation = rng.choice((2**64 - 1, address(rng, setting.translated)))
    state.reserved_value = rng.choice((0, integer(rng)))
    state.mhartid = rng.randrange(4)
    state.sbi = int(rng.random() < 0.1)
    # The last entry allows everything; there are few before it, as the reference is slow to look at them.
    last = rng.choice((0, 1, 1, 1, 2, 15)) if rng.random() < 0.15 else 0
    if rng.random() < 0.97:
        state.pmpcfg[last], state.pmpaddr[last], state.pmp_used = 0x1F, (1 << 54) - 1, last + 1
    if last:
        entry = rng.randrange(min(last, 4))
        state.pmpcfg[entry] = rng.choice((8, 0x10, 0x18)) | rng.choice((0, 1, 3, 4, 5, 7, 7)) | rng.choice((0, 0, 0x80))
        low = rng.choice((DATA, DATA, CODE + 2))
        state.pmpaddr[entry] = (RAM >> 2) + rng.randrange(low << 10, TABLES << 10) | rng.choice((0, 1, 7, 0x1FF, 0xFFF))
        state.pmp_used = max(int(state.pmp_used), entry + 1)
    if setting.translated:
        state.satp = SATP
    elif rng.random() < 0.05:
        state.satp = rng.choice((9, 10)) << 60 | ROOT >> 12
    return state


# Encodings

_REGISTERS = (0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_QUIET_CSRS = [
    NAMES[n] for n in (
        "fflags frm fcsr fflags fcsr sstatus mstatus sie mie sip mip sscratch mscratch sepc mepc scause mcause "
        "stval mtval mcounteren scounteren cycle instret time mcycle minstret mcountinhibit misa mhartid "
        "medeleg mideleg menvcfg senvcfg satp pmpcfg0 pmpaddr0 pmpaddr3 pmpcfg2 hpmcounter5 mhpmcounter7 stimecmp"
    ).split()
]
# What a random program should rather leave alone, or it is soon at its end.
_LOUD_CSRS = {NAMES[n] for n in "satp mtvec stvec pmpcfg0 pmpcfg2 pmpaddr0 pmpaddr3 medeleg mstatus".split()}


def operands(rng: random.Random, instruction: Instruction, loud: bool = True) -> dict[str, int]:
    """Random values for an instruction's operands."""
    values = {}
    for operand in instruction.encoding.operands:
        covered = sum(((1 << p.width) - 1) << p.to for p in operand.pieces)
        raw = rng.getrandbits(operand.bits)
        if rng.random() < 0.3:
            raw = rng.choice((0, -1, 1 << (operand.bits - 1), (1 << (operand.bits - 1)) - 1, 8, 16))
        if operand.name in ("rd", "rs1", "rs2", "rs3") and operand.bits == 5 and rng.random() < 0.8:
            raw = rng.choice(_REGISTERS)
        if operand.name == "csr" and rng.random() < 0.8:
            raw = rng.choice(_QUIET_CSRS)
            while not loud and raw in _LOUD_CSRS:
                raw = rng.choice(_QUIET_CSRS)
        raw &= covered
        if operand.signed and raw >> (operand.bits - 1):
            raw -= 1 << operand.bits
        values[operand.name] = raw + operand.add
    return values


def encode(instruction: Instruction, values: dict[str, int]) -> bytes:
    return instruction.encoding.encode(values)


# Instructions one at a time


def one_instruction(pair: Pair, rng: random.Random, instruction: Instruction) -> None:
    """Execute one instruction from a random state in both tiers. Raises Mismatch."""
    seed = rng.getrandbits(64)
    rng = random.Random(seed)
    values = operands(rng, instruction)
    code = encode(instruction, values)
    setting = Setting.random(rng)
    page = rng.randrange(DATA - CODE)
    offset = rng.choice((0, 2, 8, rng.randrange(0, PAGE, 2), PAGE - len(code), PAGE - 2, PAGE - 2))
    if page == DATA - CODE - 1:
        offset = min(offset, PAGE - 4)
    physical = RAM + (CODE + page) * PAGE + offset
    pc = VIRTUAL + page * PAGE + offset if setting.translated else physical
    state = random_state(rng, setting, pc)
    state.mie = rng.choice((0, 0, 0, 0xAAA))
    base = values.get("rs1", 0)
    if "imm" in values and base and rng.random() < 0.6:
        state.x[base] = (address(rng, setting.translated) - values["imm"]) % 2**64
    elif base and rng.random() < 0.5:
        state.x[base] = address(rng, setting.translated) & ~7
        if rng.random() < 0.5:
            state.reservation = state.x[base]
            state.reserved_value = rng.choice((0, int(state.reserved_value)))
    pair.set(bytes(state.block))
    pair.write(physical, code)
    for again in range(2):
        found = pair.step()
        if not found and again and rng.random() < 0.1:
            found = pair.difference()
        if found:
            what = f"{instruction.name} {code.hex()} {values} at {pc:#x} ({setting})"
            raise Mismatch(f"{what}, {'again, ' * again}seed {seed}:\n{found}")
        if again == 0:
            # Once more from here, with what the first time has left in caches.
            pair.native.state.pc = pair.reference.pc = pc
            pair.native.state.privilege = pair.reference.privilege = setting.privilege


def fresh_image(rng: random.Random, user_code: bool = False) -> bytearray:
    """The contents of RAM: random data, handlers, page tables."""
    image = bytearray(RAM_PAGES * PAGE)
    image[DATA * PAGE : TABLES * PAGE] = rng.randbytes((TABLES - DATA) * PAGE)
    image[: len(HANDLER_CODE)] = HANDLER_CODE
    tables(rng, image, user_code)
    return image


# Programs


def _li(rd: int, value: int) -> bytes:
    """lui and addi; the value is a positive number of less than 31 bits, or sign-extended from 32."""
    value &= 0xFFFF_FFFF
    upper = (value + 0x800 & 0xFFFF_FFFF) >> 12
    low = (value & 0xFFF) - ((value & 0x800) << 1)
    return struct.pack("<II", upper << 12 | rd << 7 | 0x37, (low & 0xFFF) << 20 | rd << 15 | rd << 7 | 0x1B)


@dataclass
class Item:
    """A piece of a program that is never split.

    It has the same length wherever it is; ``target`` is the number of another item that it refers to.
    """

    kind: str
    number: int = 0
    instruction: Instruction | None = None
    values: dict[str, int] = field(default_factory=dict)
    target: int | None = None
    extra: int = 0
    data: bytes = b""

    def bytes(self, here: int, addresses: dict[int, int]) -> bytes:
        """The code at address ``here``; ``addresses`` are those of all items."""
        goal = addresses.get(self.target, here) if self.target is not None else here
        if self.kind == "op" and self.instruction is not None:
            values = dict(self.values)
            if self.target is not None:
                operand = next(o for o in self.instruction.encoding.operands if o.name == "imm")
                limit = 1 << (operand.bits - 1)
                distance = goal - here
                values["imm"] = distance if -limit <= distance < limit else self.instruction.encoding.length
            return encode(self.instruction, values)
        if self.kind == "access" and self.instruction is not None:  # load an address, then use it
            return _li(self.values["rs1"], self.extra) + encode(self.instruction, self.values)
        if self.kind == "jump":  # to another item, by register, perhaps under another address
            rs1 = self.values["rs1"]
            alias = goal + self.extra
            return _li(rs1, alias) + struct.pack("<I", rs1 << 15 | self.values["rd"] << 7 | 0x67)
        if self.kind == "patch":  # overwrite another item's beginning
            a, b = self.values["rs1"], self.values["rs2"]
            word = int.from_bytes(self.data, "little")
            width = self.values["width"]
            code = _li(a, goal + self.extra) + _li(b, word) + struct.pack("<I", b << 20 | a << 15 | width << 12 | 0x23)
            code += b"\x0f\x10\x00\x00" if self.values["fence"] else b""
            if self.values["go"]:  # and run it
                code += _li(a, goal) + _i(0x67, 0, self.values["rd"], a, 0)
            return code
        if self.kind == "remap":  # change a page table entry, and say so; use the page before and after
            a, b = self.values["rs1"], self.values["rs2"]
            use = _s(3, b, a, 8) if self.values["store"] else _i(0x03, 3, b, a, 8)
            code = _li(a, VIRTUAL + self.extra * PAGE) + use
            code += _li(a, LEAVES + 8 * (FIRST_LEAF + self.extra)) + _li(b, self.values["entry"]) + _s(3, b, a, 0)
            code += _li(a, VIRTUAL + self.extra * PAGE)
            code += struct.pack("<I", 0x1200_0073 | (a << 15 if self.values["one"] else 0))
            return code + use + _li(a, 0)
        return self.data


@dataclass
class Program:
    """Items, where they are, and the state they start from."""

    items: list[Item]
    seed: int
    setting: Setting
    start: int  # offset of the first item from the first code page
    state: bytes
    image: bytes
    gaps: dict[int, int]  # items before which there is a jump over that many bytes
    lines: list[tuple[int, str, int]] = field(default_factory=list)  # after how many steps which line changes to what
    base: int = RAM + CODE * PAGE
    recover: tuple[int, ...] = ()  # items at which execution goes on after failed fetches

    def layout(self) -> tuple[bytes, dict[int, int]]:
        """The code, and the items' addresses."""
        addresses: dict[int, int] = {}
        for _ in range(2):
            code = bytearray()
            for item in self.items:
                gap = self.gaps.get(item.number, 0)
                if gap:
                    code += _jump_over(gap) + b"\x02\x90" * (gap // 2 - 2)  # c.ebreak
                here = self.base + self.start + len(code)
                addresses[item.number] = here
                code += item.bytes(here, addresses)
        return bytes(code) + WFI, addresses

    def load(self, pair: Pair) -> None:
        code, addresses = self.layout()
        image = bytearray(self.image)
        for n, number in enumerate(self.recover):
            struct.pack_into("<I", image, RECOVER + 4 * n, addresses.get(number, self.base + self.start))
        at = CODE * PAGE + self.start
        room = DATA * PAGE - at
        image[at : at + min(len(code), room)] = code[:room]
        pair.set(self.state, bytes(image))

    def text(self) -> str:
        lines = [f"seed {self.seed}, {self.setting}, {len(self.items)} items from {self.base + self.start:#x}"]
        addresses: dict[int, int] = {}
        for _ in range(2):
            at = self.base + self.start
            shown = []
            for item in self.items:
                at += self.gaps.get(item.number, 0)
                addresses[item.number] = at
                data = item.bytes(at, addresses)
                name = item.instruction.name if item.instruction else ""
                shown.append(f"  {at:#x}: {data.hex():24} {item.kind} {name} {item.values} {item.extra:#x}")
                at += len(data)
        state = _STATE(bytearray(self.state))
        registers = ", ".join(f"x{n}={int(v):#x}" for n, v in enumerate(state.x) if v)
        return "\n".join([*lines, *shown, f"  lines: {self.lines}", f"  {registers}"])


def _jump_over(distance: int) -> bytes:
    return encode(BY_MNEMONIC["jal"], {"rd": 0, "imm": distance})


WFI = struct.pack("<I", 0x1050_0073)


def _csr(number: int, operation: int, rd: int, rs1: int) -> bytes:
    return struct.pack("<I", number << 20 | rs1 << 15 | operation << 12 | rd << 7 | 0x73)


def _i(opcode: int, funct3: int, rd: int, rs1: int, imm: int) -> bytes:
    return struct.pack("<I", (imm & 0xFFF) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode)


def _s(funct3: int, rs2: int, rs1: int, imm: int) -> bytes:
    return struct.pack("<I", (imm >> 5 & 0x7F) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (imm & 31) << 7 | 0x23)


# In the handlers' page: where traps lead, where execution goes on, one after the other, and what the handlers keep.
M_HANDLER, S_HANDLER = RAM + 0x100, RAM + 0x400
RECOVER, RECOVER_COUNT, COUNTER, KEPT = 0x700, 16, 0x7E8, 0x7F0


def _handler(mode: str, ret: int) -> bytes:
    """A trap handler: interrupts are disabled, failed fetches go on elsewhere, other instructions are skipped."""
    n = {k: NAMES[mode + k] for k in ("scratch", "cause", "epc", "ie")}
    base = struct.pack("<I", RAM | 5 << 7 | 0x37)
    end = _csr(n["scratch"], 2, 5, 0) + struct.pack("<I", ret)
    skip = _csr(n["epc"], 2, 5, 0) + _i(0x13, 0, 5, 5, 4) + _csr(n["epc"], 1, 0, 5) + end
    elsewhere = base + _s(3, 6, 5, KEPT) + _i(0x03, 2, 6, 5, COUNTER) + _i(0x13, 0, 6, 6, 4)
    elsewhere += _i(0x13, 7, 6, 6, 4 * (RECOVER_COUNT - 1)) + _s(2, 6, 5, COUNTER)
    elsewhere += struct.pack("<I", 6 << 20 | 5 << 15 | 5 << 7 | 0x33) + _i(0x03, 6, 5, 5, RECOVER)
    elsewhere += _csr(n["epc"], 1, 0, 5) + base + _i(0x03, 3, 6, 5, KEPT) + end
    quiet = _csr(n["ie"], 1, 0, 0) + end
    code = _csr(n["scratch"], 1, 0, 5) + _csr(n["cause"], 2, 5, 0)
    code += encode(BY_MNEMONIC["blt"], {"rs1": 5, "rs2": 0, "imm": 24 + len(skip) + len(elsewhere)})
    # 3 is a breakpoint, of which gaps are full; 0, 1 and 12 are failed fetches; 13 comes along, which is a load.
    beq = BY_MNEMONIC["beq"]
    code += _i(0x13, 0, 5, 5, -3) + encode(beq, {"rs1": 5, "rs2": 0, "imm": 16 + len(skip)})
    code += _i(0x13, 0, 5, 5, 3)
    code += _i(0x13, 7, 5, 5, -14) + encode(beq, {"rs1": 5, "rs2": 0, "imm": 4 + len(skip)})
    return code + skip + elsewhere + quiet


HANDLER_CODE = (bytes(0x100) + _handler("m", 0x3020_0073)).ljust(0x400, b"\0") + _handler("s", 0x1020_0073)

_GROUPS: dict[str, list[Instruction]] = {"branch": [], "access": [], "csr": [], "float": [], "system": [], "plain": []}
for _one in rv64.instructions:
    _names = {o.name for o in _one.encoding.operands}
    _text = _one.function.python.__code__.co_names
    if _one.name in "mret sret wfi ecall ebreak c.ebreak".split() or _one.name.startswith(("sf", "si", "fence")):
        _GROUPS["system"].append(_one)
    elif "csr" in _names:
        _GROUPS["csr"].append(_one)
    elif "imm" in _names and "next_pc" in _text:
        _GROUPS["branch"].append(_one)
    elif "rs1" in _names and _one.encoding.length == 4 and _one.encoding.mask & 0x7F == 0x7F and (
        _one.encoding.value & 0x7F in (0x03, 0x07, 0x23, 0x27, 0x2F)
    ):
        _GROUPS["access"].append(_one)
    elif _one.extension in ("F", "D"):
        _GROUPS["float"].append(_one)
    else:
        _GROUPS["plain"].append(_one)


def random_item(rng: random.Random, number: int, count: int, setting: Setting) -> Item:
    kind = rng.random()
    free = lambda: rng.choice(_REGISTERS[1:])  # noqa: E731
    target = min(count - 1, max(0, number + round(rng.gauss(5, 8))))
    if kind < 0.40:
        chosen = rng.choice(_GROUPS["plain"])
        return Item("op", number, chosen, operands(rng, chosen, False))
    if kind < 0.48:
        chosen = rng.choice(_GROUPS["float"])
        return Item("op", number, chosen, operands(rng, chosen, False))
    if kind < 0.68:
        chosen = rng.choice(_GROUPS["access"])
        values = operands(rng, chosen, False)
        if rng.random() < 0.85:
            values["rs1"] = free()
            goal = address(rng, setting.translated)
            if rng.random() < 0.3:
                goal &= ~7
            return Item("access", number, chosen, values, extra=(goal - values.get("imm", 0)) % 2**32)
        return Item("op", number, chosen, values)
    if kind < 0.80:
        chosen = rng.choice(_GROUPS["branch"])
        return Item("op", number, chosen, operands(rng, chosen, False), target)
    alias = rng.choice((0, 0, 16 * PAGE)) if setting.translated else 0
    if kind < 0.84:
        return Item("jump", number, None, {"rs1": free(), "rd": rng.choice((0, 1, 5, 10))}, target, alias)
    if kind < 0.90:
        chosen = rng.choice(_GROUPS["plain"] + _GROUPS["float"])
        width, fence = rng.choice((0, 1, 2, 2, 2, 3)), int(rng.random() < 0.3)
        values = {"rs1": free(), "rs2": free(), "width": width, "fence": fence, "go": 0, "rd": free()}
        values["go"] = int(rng.random() < 0.5)
        data = encode(chosen, operands(rng, chosen, False))
        target = min(count - 1, max(0, number + rng.randrange(-12, 13)))
        return Item("patch", number, None, values, target, alias + rng.choice((0, 0, 0, -2, 2, -1)), data=data)
    if kind < 0.95:
        chosen = rng.choice(_GROUPS["csr"])
        return Item("op", number, chosen, operands(rng, chosen, False))
    if kind < 0.98 and setting.translated:
        page = rng.randrange(DATA - CODE, 16)
        values = {"rs1": free(), "rs2": 16, "entry": table_entry(rng) % 2**31, "one": int(rng.random() < 0.5)}
        values["store"] = rng.getrandbits(1)
        return Item("remap", number, None, values, extra=page)
    chosen = rng.choice(_GROUPS["system"])
    return Item("op", number, chosen, operands(rng, chosen, False))


def random_program(seed: int) -> Program:
    rng = random.Random(seed)
    setting = Setting.random(rng)
    count = rng.randrange(20, 200)
    start = rng.choice((0, 0, 2, PAGE - 2, PAGE - 6, rng.randrange(0, PAGE, 2)))
    base = VIRTUAL if setting.translated else RAM + CODE * PAGE
    state = random_state(rng, setting, base + start)
    image = fresh_image(rng, setting.translated and setting.privilege == 0)
    items = [random_item(rng, n, count, setting) for n in range(count)]
    gaps = {rng.randrange(count): rng.choice((8, 500, 2048, 4096 - 6, 4094, 4090)) for _ in range(rng.randrange(7))}
    recover = tuple(rng.randrange(count) for _ in range(RECOVER_COUNT))
    program = Program(items, seed, setting, start, bytes(state.block), bytes(image), gaps, base=base, recover=recover)
    moment = 0
    for _ in range(rng.choice((0, 0, 3, 12))):
        moment += rng.randrange(1, 30)
        line = rng.choice("line_msip line_mtip line_meip line_seip raise_ssip".split())
        program.lines.append((moment, line, rng.getrandbits(1)))
    return program


def try_program(pair: Pair, program: Program, steps: int, mode: str) -> str:
    """Run a program in both tiers; gives what differs, empty if nothing does."""
    program.load(pair)
    rng = random.Random(program.seed)
    if mode == "step":
        lines = list(program.lines)
        for n in range(steps):
            while lines and lines[0][0] == n:
                _, line, level = lines.pop(0)
                setattr(pair.native.state, line, level)
                setattr(pair.reference, line, level)
            if found := pair.step():
                return f"step {n}:\n{found}"
        return pair.difference()
    while pair.reference.retired < steps:
        before = pair.reference.retired
        chunk = rng.choice((1, 2, 7, 30, 200))
        if mode == "mixed" and rng.random() < 0.3:
            for n in range(rng.randrange(1, 20)):
                if found := pair.step():
                    return f"step {n} after {before} instructions:\n{found}"
            continue
        if found := pair.run(chunk):
            if found == "endless traps":
                return ""
            return f"run({chunk}) after {before} instructions:\n{found}"
        if found := pair.difference():
            return f"run({chunk}) after {before} instructions:\n{found}"
        if rng.random() < 0.1:
            # What a device or another hart might do: write code and page tables from outside.
            at = rng.randrange(CODE * PAGE, (CODE + 1) * PAGE, 2)
            pair.write(RAM + at, rng.randbytes(rng.choice((1, 2, 4))))
            if program.setting.translated:
                leaf = LEAVES + 8 * (FIRST_LEAF + rng.randrange(VIRTUAL_PAGES))
                pair.write(leaf, struct.pack("<Q", table_entry(rng)))
            pair.native.flush()
    return ""


def progresses(pair: Pair, instructions: int) -> bool:
    """Whether that many instructions would be executed before long: not where every step is a trap."""
    reference = pair.reference
    memory = pair.memories[1]
    ram = memory.read(RAM, RAM_PAGES * PAGE)
    kept = bytes(reference.block[: pair.size]), ram, reference.retired, pair.probes[1].log
    for _ in range(3 * instructions):
        reference.step()
        if reference.retired >= kept[2] + instructions:
            break
    found: bool = reference.retired >= kept[2] + instructions
    reference.block[: pair.size] = kept[0]
    memory.write(RAM, kept[1])
    reference.retired, pair.probes[1].log = kept[2], kept[3]
    return found


def shrink(pair: Pair, program: Program, steps: int, mode: str, seconds: float = 30.0) -> Program:
    """A smaller program that the tiers still disagree about."""
    deadline = time.monotonic() + seconds

    def fails(candidate: Program) -> bool:
        return time.monotonic() < deadline and bool(try_program(pair, candidate, steps, mode))

    size = max(1, len(program.items) // 2)
    while size:
        at = 0
        while at < len(program.items):
            smaller = replace(program, items=program.items[:at] + program.items[at + size :])
            if fails(smaller):
                program = smaller
            else:
                at += size
        size //= 2
    for change in ({"gaps": {}}, {"lines": []}):
        if fails(smaller := replace(program, **change)):
            program = smaller
    for name, member in _STATE.members.items():
        for n in range(member.count if isinstance(member, Registers) else 1):
            state = _STATE(bytearray(program.state))
            if isinstance(member, Field):
                if name == "pc" or getattr(state, name) == member.reset:
                    continue
                setattr(state, name, member.reset)
            elif getattr(state, name)[n] == 0:
                continue
            else:
                getattr(state, name)[n] = 0
            smaller = replace(program, state=bytes(state.block))
            if fails(smaller):
                program = smaller
    return program


def check_program(pair: Pair, seed: int, steps: int, mode: str) -> None:
    """Run the program of a seed. Raises Mismatch, with the program shrunk."""
    program = random_program(seed)
    found = try_program(pair, program, steps, mode)
    if found:
        small = shrink(pair, program, steps, mode)
        found = try_program(pair, small, steps, mode) or f"(not again) {found}"
        raise Mismatch(f"mode {mode}, {steps} steps: {small.text()}\n{found}")


MODES = ("step", "run", "mixed")


def campaign(seed: int, instructions: int, report: Any = None) -> tuple[int, list[str]]:
    """Single instructions and programs until about that many were executed; gives how many, and the mismatches."""
    rng = random.Random(seed)
    pair = Pair()
    done, problems = 0, []
    try:
        while done < instructions and len(problems) < 5:
            try:
                if rng.random() < 0.2:
                    pair.set(bytes(random_state(rng, Setting(), RAM).block), bytes(fresh_image(rng)))
                    for instruction in rv64.instructions:
                        one_instruction(pair, rng, instruction)
                        done += 2
                else:
                    check_program(pair, rng.getrandbits(48), 400, rng.choice(MODES))
                    done += pair.reference.retired
            except Mismatch as error:
                problems.append(str(error))
            if report is not None:
                report(done, problems)
    finally:
        pair.close()
    return done, problems


def _job(arguments: tuple[int, int]) -> tuple[int, list[str]]:
    seed, instructions = arguments
    last = [time.monotonic()]

    def report(done: int, problems: list[str]) -> None:
        if time.monotonic() - last[0] > 15:
            last[0] = time.monotonic()
            print(f"seed {seed}: {done:,} instructions, {len(problems)} mismatches", flush=True)

    return campaign(seed, instructions, report)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the native interpreter with the reference executor.")
    parser.add_argument("--instructions", type=int, default=1_000_000, help="about how many, in all jobs together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--program", type=int, help="run the program of this seed only, in all modes")
    parser.add_argument("--steps", type=int, default=400, help="for --program")
    given = parser.parse_args()
    if given.program is not None:
        for mode in MODES:
            check_program(Pair(), given.program, given.steps, mode)
        return 0
    started = time.monotonic()
    share = -(-given.instructions // given.jobs)
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        results = pool.map(_job, [(given.seed * 1000 + n, share) for n in range(given.jobs)])
    problems = [p for _, found in results for p in found]
    for problem in problems:
        print(f"{'-' * 70}\n{problem}")
    total = sum(n for n, _ in results)
    print(f"{total:,} instructions in {time.monotonic() - started:.0f} s, {len(problems)} mismatches")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
