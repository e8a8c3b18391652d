"""The block of bytes that is a CPU to native code: engine state, described state, TLBs.

Offsets are fixed when an architecture is prepared.  All fields are in host byte order.
"""

from __future__ import annotations

import math
import zlib

from polyvisor.adl import Architecture, Field, Registers, State, u8, u32, u64

# Software TLB: per translation context, TLB_SIZE entries of four u64: read tag, write tag, addend, unused.
# A tag is the virtual address of the page, or all ones.
TLB_BITS = 13
TLB_SIZE = 1 << TLB_BITS
TLB_ENTRY = 32
# Code TLB: per fetch context, entries of two u64: tag, address of the page's first record.
CODE_TLB_BITS = 10
CODE_TLB_SIZE = 1 << CODE_TLB_BITS
CODE_TLB_ENTRY = 16
# The log: addresses of the entries of both that were filled since the last flush. With more, a flush empties all.
TLB_LOG = TLB_SIZE
# Second level, for all contexts: entries of two u64: key, physical page with a bit for each allowed kind of access.
# A key is the virtual address of the page; in its low bits, context and generation.  No generation is 0.
TLB2_BITS = 15
TLB2_SIZE = 1 << TLB2_BITS
TLB2_ENTRY = 16
# Pages larger than the smallest are cached in pieces; a filter of hashed bits tells which large pages those are of.
LARGE_FILTER = 8
NO_TAG = 2**64 - 1

# Flags of a page of RAM.
PAGE_CODE = 1  # has decoded records: writes must be noticed
PAGE_DIRTY = 2  # written since the flag was last cleared
PAGE_WRITABLE = 4  # some hart may have a write entry for it in its TLB

# A descriptor of RAM: five u64.
RAM_BASE, RAM_SIZE, RAM_HOST, RAM_SLOTS, RAM_FLAGS = 0, 8, 16, 24, 32
RAM_DESCRIPTOR = 40

# Why native code returned.
EXIT_STOP = 1  # asked to, by `stop`
EXIT_LEAVE = 2  # cpu.leave(reason): the argument is the reason's number
EXIT_COMPILE = 3  # an instruction has no handler yet: the argument is its index
EXIT_ACTIVATE = 4  # code runs on a page with no records: the argument is its physical address
EXIT_STEP = 5  # one instruction was executed
EXIT_BREAKPOINT = 6  # a breakpoint was reached, before its instruction
EXIT_LIMIT = 7  # `stop_at` instructions were executed


# What compiled regions call where the TLB misses: functions of the core, by their symbols.
MISSES = (
    *(f"{name}.{kind}" for name in ("region_load", "region_store") for kind in ("u8", "u16", "u32", "u64")),
    "region_sync", "region_clock",
)


def reason_number(reason: str) -> int:
    """The number that stands for a reason given to ``cpu.leave``; never 0."""
    return zlib.crc32(reason.encode()) | 1


# The most instructions in a region: no way through one is longer before it looks whether it may go on.
REGION_INSTRUCTIONS = 320
MAX_BREAKPOINTS = 64
# User functions that can be installed at a time; each has four u64 of its own: the address of its state, and for
# ranges of memory the first address and the length, and for callbacks the address of a C function.
MAX_HOOKS = 16
HOOK_STATE, HOOK_START, HOOK_LENGTH, HOOK_CALL = 0, 1, 2, 3
HOOK_DATA = 4
SAMPLES = 256  # a power of two
JUMP_SAMPLE_BITS = 5


class EngineState(State):
    """What the engine keeps per CPU, in front of the described state."""

    retired = Field(
        u64, doc="instructions executed, or clock cycles; current only when native code has returned or called out"
    )
    event_at = Field(u64, doc="a clocked CPU polls after the instruction in which `retired` reaches this")
    limit = Field(u64, doc="taken jumps look for work when `retired` reaches this; 0: at once")
    region_limit = Field(u64, doc="regions never come this far: to `stop_at`, or far behind the limit")
    stop_at = Field(u64, reset=NO_TAG, doc="return when this many instructions were executed")
    break_at = Field(u64, reset=NO_TAG, doc="return, as for `stop`, when this many instructions were executed")
    slice = Field(u64, reset=1 << 14, doc="instructions between looks at the clock")
    sample_at = Field(u64, doc="when `retired` reaches this, where execution is is noted; requests do not change it")
    next_pc = Field(u64)
    base = Field(u64, doc="pc of a record = base + (its address >> shift)")
    tlb = Field(u64, doc="address of the TLB of the current data context")
    code_tlb = Field(u64, doc="address of the code TLB of the current fetch context")
    data_context = Field(u32)
    fetch_context = Field(u32)
    trap_values = Registers(u64, 4, doc="of the trap being raised")
    exit_reason = Field(u32)
    exit_argument = Field(u64)
    left = Field(u32, doc="number of the reason given to cpu.leave, 0: none")
    stepping = Field(u32, doc="1: return after one instruction")
    resuming = Field(u8, doc="1: native code is entered where it left for something of its own, between instructions")
    inside = Field(u8, doc="1 while native code runs; it looks at `limit` after setting this")
    # Requests from other threads: one byte each, so that no one has to read before writing.
    stop = Field(u8)
    flush_all = Field(u8, doc="forget all translations")
    flush_writes = Field(u8, doc="forget all permissions to write")
    device_fault = Field(u32, doc="set by device_read and device_write where nothing answers")
    ram_table = Field(u64, doc="address of the first RAM descriptor")
    ram_end = Field(u64)
    device_read = Field(u64, doc="C function (block, physical address, size) -> value")
    device_write = Field(u64, doc="C function (block, physical address, size, value)")
    clock_gettime = Field(u64, doc="the C library's function")
    timespec = Registers(u64, 2)
    clock_virtual = Field(u32, doc="1: time follows executed instructions")
    clock_frequency = Field(u64, doc="ticks per second")
    virtual_base = Field(u64, doc="nanoseconds that virtual time is ahead of `retired`")
    clock_scale = Field(u64, doc="ticks per nanosecond of the host's clock, times 2^32")
    clock_offset = Field(u64, doc="ticks added")
    decode_table = Field(u64, doc="address of the handlers' addresses, by index of instruction")
    scratch = Field(u64, doc="address of this hart's own records, all `cross` but one, for what is fetched each time")
    step_slot = Field(u64, doc="address of this hart's own records, all `stopped`, for single steps")
    scratch_record = Field(u64, doc="address of the one among the records at `scratch` that holds an instruction")
    cross_handler = Field(u64, doc="address of the handler behind a page's end")
    stopped_handler = Field(u64, doc="address of the handler that ends a step")
    breakpoint_handler = Field(u64, doc="address of the handler that stands where a breakpoint is")
    breakpoint_count = Field(u32)
    breakpoint_addresses = Registers(u64, MAX_BREAKPOINTS)
    decode_handler = Field(u64, doc="address of the handler that decodes")
    translations = Field(u64, doc="TLB misses so far")
    region_instructions = Field(u64, doc="of the instructions executed, those in compiled regions")
    region_entries = Field(u64, doc="how often a compiled region was entered")
    region_drops = Field(u64, doc="regions forgotten as their code was written to")
    jump_count = Field(u64, doc="how often a region was left by a jump to other code")
    jump_records = Registers(u64, SAMPLES, doc="of every 32nd such jump: the region's first record")
    jump_addresses = Registers(u64, SAMPLES, doc="and where it went")
    sample_count = Field(u64, doc="samples taken so far")
    sample_records = Registers(u64, SAMPLES, doc="records that execution went on at when it was time to look around")
    sample_addresses = Registers(u64, SAMPLES, doc="the virtual addresses of their instructions")
    # Emptied by the first flush, whatever is there.
    tlb_log_count = Field(u64, reset=TLB_LOG + 1, doc="entries in the log of filled TLB entries; more: it overflowed")
    tlb_generation = Field(u64, reset=NO_TAG, doc="generation of the entries of the second level that hold")
    large_sizes = Field(u64, doc="a bit for log2 of each size of large pages cached since the last flush")
    large_filter = Registers(u64, LARGE_FILTER, doc="bits for the large pages cached since the last flush, hashed")
    # Waiting, and other CPUs (see `waiting`).
    waits = Field(u8, doc="1: `left` was set by cpu.wait")
    waits_inside = Field(u8, doc="1: cpu.wait sleeps in native code instead of returning")
    asleep = Field(u32, doc="1 while it sleeps, or is about to; the word that the host's futex looks at")
    timeout = Registers(u64, 2, doc="how long to sleep: a struct timespec")
    clock_period = Field(u64, doc="nanoseconds (or instructions) per tick, times 2^32")
    syscall = Field(u64, doc="the C library's function")
    sched_yield = Field(u64, doc="the C library's function")
    cpu_count = Field(u64, doc="CPUs of the machine")
    peers = Field(u64, doc="address of the addresses of their blocks")
    # Hooks (see `hooks`).
    trap_hook = Field(u64, doc="C function (block) called before a trap is entered, 0: none")
    entry_hook = Field(u64, doc="C function (block) called when `next_pc` is where a trap leads, 0: none")
    hook_start = Field(u64, doc="address of the handler that runs what is hooked to the start of instructions")
    hook_table = Field(u64, doc="address of the handlers' addresses that it goes on with")
    hook_index = Field(u32, doc="which of them")
    hook_stops = Field(u8, doc="1: a callback asked to stop behind the instruction that called it")
    hook_data = Registers(u64, HOOK_DATA * MAX_HOOKS, doc="of each installed function")


class Layout:
    """Where everything of one architecture's CPU is.

    ``operand_bytes`` is the room for operands in a record, if it is known: to find it takes all instructions.
    """

    def __init__(self, architecture: Architecture, operand_bytes: int | None = None) -> None:
        assert architecture.state_type is not None
        state = architecture.state_type
        self.architecture = architecture
        self.state_offset = -(-EngineState.size // 64) * 64
        self.members: dict[str, Field | Registers] = {**EngineState.members, **state.members}
        clash = EngineState.members.keys() & state.members.keys()
        if clash:
            raise ValueError(f"{state.__name__} declares {', '.join(sorted(clash))}, which the engine uses itself")
        self._offsets = {n: m.offset for n, m in EngineState.members.items()}
        self._offsets |= {n: m.offset + self.state_offset for n, m in state.members.items()}
        contexts = architecture.contexts
        self.tlb_offset = -(-(self.state_offset + state.size) // 4096) * 4096
        self.code_tlb_offset = self.tlb_offset + contexts * TLB_SIZE * TLB_ENTRY
        self.tlb2_offset = -(-(self.code_tlb_offset + contexts * CODE_TLB_SIZE * CODE_TLB_ENTRY) // 4096) * 4096
        self.tlb_log_offset = self.tlb2_offset + TLB2_SIZE * TLB2_ENTRY
        self.size = self.tlb_log_offset + -(-TLB_LOG * 8 // 4096) * 4096
        self.context_bits = (contexts - 1).bit_length()
        # Generations are 1 to this, less one.
        self.generations = 1 << (architecture.page_bits - self.context_bits)
        # Records
        self.page_size = 1 << architecture.page_bits
        if operand_bytes is None:
            operand_bytes = max([8, *(operand_layout(each)[1] for each in architecture.instructions)])
        self.operand_bytes = operand_bytes
        self.record_size = 1 << math.ceil(math.log2(8 + self.operand_bytes))
        self.shift = int(math.log2(self.record_size // architecture.unit))
        self.records = self.page_size // architecture.unit
        # Behind a page's records: those reached by running off its end, then the header.
        self.extra_records = architecture.max_length // architecture.unit
        self.header_offset = (self.records + self.extra_records) * self.record_size
        self.slot_bytes = -(-(self.header_offset + HEADER_SIZE) // 4096) * 4096
        self.slot_size = 1 << (self.slot_bytes - 1).bit_length()

    def offset(self, name: str) -> int:
        """Bytes from the start of the block to member ``name``."""
        return self._offsets[name]


# Header of a page's records, after the last record: u64s.
HEADER_LOCK = 0  # taken with an atomic exchange
HEADER_HOST = 8  # host address of the page's bytes
HEADER_FLAGS = 16  # host address of the page's flags
HEADER_WRITES = 24  # how many writes hit the page since it was activated
HEADER_PHYSICAL = 32  # physical address
HEADER_REGIONS = 40  # address of the first link to a region that was compiled from the page's bytes, 0: none
HEADER_SIZE = 64


# A link: the next link, the region's descriptor, and a mask of the parts of the page that the region was made of.
LINK_NEXT, LINK_REGION, LINK_MASK = 0, 8, 16
LINK_SIZE = 24
PAGE_PARTS = 64
# A region's descriptor: whether it is valid, how often it refused to run, how many records it was installed at, and
# these.
REGION_VALID, REGION_REFUSALS, REGION_COUNT, REGION_RECORDS = 0, 8, 16, 24


def operand_layout(instruction: object) -> tuple[dict[str, tuple[int, int]], int]:
    """Where an instruction's operands are in a record, from offset 8: name to (offset, bytes); and bytes in all."""
    operands = sorted(instruction.encoding.operands, key=lambda o: -_storage(o))  # type: ignore[attr-defined]
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for operand in operands:
        size = _storage(operand)
        at = -(-at // size) * size
        places[operand.name] = (at, size)
        at += size
    return places, at


def _storage(operand: object) -> int:
    bits = operand.bits + (1 if operand.add and not operand.signed else 0)  # type: ignore[attr-defined]
    return next(size for size in (1, 2, 4, 8) if bits <= 8 * size)
