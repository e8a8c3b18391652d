"""The engine's own described functions: translation, slow paths of memory, dispatch, decoded pages.

They are written in the description language, with host memory (peek, poke) added, and are compiled once per
architecture.  ``arch`` and ``layout`` are compile-time constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyvisor.adl import FETCH, READ, WRITE, Function, u8, u32, u64, u128, unlikely
from polyvisor.adl.host import attempt, cpu_address, host_atomic, host_call, peek, poke

from . import layout as at
from . import waiting
from .layout import (
    CODE_TLB_ENTRY,
    CODE_TLB_SIZE,
    EXIT_ACTIVATE,
    EXIT_COMPILE,
    EXIT_LEAVE,
    EXIT_LIMIT,
    EXIT_STEP,
    EXIT_STOP,
    NO_TAG,
    PAGE_CODE,
    PAGE_DIRTY,
    PAGE_WRITABLE,
    RAM_BASE,
    RAM_DESCRIPTOR,
    RAM_FLAGS,
    RAM_HOST,
    RAM_SIZE,
    RAM_SLOTS,
    TLB_ENTRY,
    TLB_SIZE,
)


def engine(*, inline: bool = False) -> Callable[[Callable[..., Any]], Function]:
    """Like `function`, for the engine: may write cpu.pc."""

    def make(python: Callable[..., Any]) -> Function:
        made = Function(python, inline=inline)
        made.engine = True
        return made

    return make


# Physical memory


@engine()
def find_ram(cpu: Any, physical: u64) -> u64:
    """The address of the descriptor of the RAM at a physical address; 0 if there is none."""
    descriptor = cpu.ram_table
    while descriptor != cpu.ram_end:
        if physical - peek(u64, descriptor + RAM_BASE) < peek(u64, descriptor + RAM_SIZE):
            return descriptor
        descriptor = descriptor + RAM_DESCRIPTOR
    return u64(0)


@engine(inline=True)
def _page_of(arch, descriptor, physical):
    return (physical - peek(u64, descriptor + RAM_BASE)) >> arch.page_bits


@engine()
def phys_host(cpu, physical: u64, size: u64) -> u64:
    """The host address of ``size`` bytes of RAM; 0 where there is none."""
    descriptor = find_ram(cpu, physical)
    if descriptor == 0:
        return u64(0)
    offset = physical - peek(u64, descriptor + RAM_BASE)
    if peek(u64, descriptor + RAM_SIZE) - offset < size:
        return u64(0)
    return peek(u64, descriptor + RAM_HOST) + offset


@engine()
def phys_changed(cpu, arch, layout, physical: u64, size: u64) -> None:
    """RAM at a physical address was written by other means than a store: note it."""
    descriptor = find_ram(cpu, physical)
    if descriptor != 0:
        note_write(cpu, arch, layout, descriptor, physical, size)


# Writes to pages with decoded code


@engine(inline=True)
def lock(slot_header):
    while host_atomic("swap", u32, slot_header + at.HEADER_LOCK, u32(1)) != 0:
        pass


@engine(inline=True)
def unlock(slot_header):
    poke(u32, slot_header + at.HEADER_LOCK, u32(0))


@engine()
def note_write(cpu, arch, layout, descriptor: u64, physical: u64, size: u64) -> None:
    """Bytes of one page were written: mark it dirty, and forget what was decoded from them."""
    page = _page_of(arch, descriptor, physical)
    flag = peek(u64, descriptor + RAM_FLAGS) + page
    flags = peek(u8, flag)
    if flags & PAGE_DIRTY == 0:
        host_atomic("or", u8, flag, u8(PAGE_DIRTY))
    if flags & PAGE_CODE == 0:
        return
    slot = peek(u64, peek(u64, descriptor + RAM_SLOTS) + page * 8)
    if slot == 0:
        return
    header = slot + layout.header_offset
    lock(header)
    writes = peek(u64, header + at.HEADER_WRITES) + 1
    poke(u64, header + at.HEADER_WRITES, writes)
    offset = physical & (layout.page_size - 1)
    first = offset - (arch.max_length - arch.unit)
    if offset < arch.max_length - arch.unit:
        first = u64(0)
    if writes == 64:
        # Data, by all appearance: give the page back to plain writes until code runs on it again.
        host_atomic("and", u8, flag, u8(255 - PAGE_CODE))
        reset_records(cpu, layout, slot, u64(0), u64(layout.records))
    else:
        reset_records(cpu, layout, slot, first // arch.unit, (offset + size + (arch.unit - 1)) // arch.unit)
    unlock(header)


@engine()
def change_flags(cpu, flag: u64, clear: u8, set: u8) -> u8:
    """Set flags of a page, then clear others, in two atomic steps; gives what they were."""
    before = host_atomic("or", u8, flag, set)
    host_atomic("and", u8, flag, ~clear)
    return before


@engine()
def reset_records(cpu, layout, slot: u64, first: u64, end: u64) -> None:
    """Make records ``first`` ... ``end - 1`` of a page decode again when they are next executed."""
    record = slot + first * layout.record_size
    stop = slot + end * layout.record_size
    limit = slot + layout.records * layout.record_size
    if stop > limit:
        stop = limit
    decode = cpu.decode_handler
    while record < stop:
        poke(u64, record, decode)
        record = record + layout.record_size


# Translation


@engine()
def reach(cpu, arch, layout, vaddr: u64, size: u64, access: u32) -> tuple[u64, u64]:
    """Translate an access in one page and remember it; gives the host address (0: not RAM) and the physical one."""
    cpu.translations = cpu.translations + 1
    if "translate" in arch.hooks:
        physical, page_bits = arch.hooks["translate"](cpu, vaddr, access, cpu.data_context)
    else:
        physical, page_bits = vaddr, u32(arch.page_bits)
    if unlikely(page_bits < arch.page_bits):
        # Parts of the page have different rules: all that the access touches must be allowed.
        granule = u64(1) << page_bits
        part = (vaddr | (granule - 1)) + 1
        while part - vaddr < size:
            arch.hooks["translate"](cpu, part, access, cpu.data_context)
            part = part + granule
    descriptor = find_ram(cpu, physical)
    if descriptor == 0:
        return u64(0), physical
    host = peek(u64, descriptor + RAM_HOST) + (physical - peek(u64, descriptor + RAM_BASE))
    if page_bits < arch.page_bits:
        return host, physical
    if page_bits > arch.page_bits:
        cpu.large_pages = u32(1)
    tag = vaddr & ~u64(layout.page_size - 1)
    entry = cpu.tlb + ((vaddr >> arch.page_bits) & (TLB_SIZE - 1)) * TLB_ENTRY
    addend = host - vaddr
    if peek(u64, entry + 16) != addend:
        # The other tag is of another page or another place.
        poke(u64, entry, u64(NO_TAG))
        poke(u64, entry + 8, u64(NO_TAG))
        poke(u64, entry + 16, addend)
    if access == READ:
        if peek(u64, entry + 8) != tag:
            poke(u64, entry + 8, u64(NO_TAG))
        poke(u64, entry, tag)
    else:
        flag = peek(u64, descriptor + RAM_FLAGS) + _page_of(arch, descriptor, physical)
        flags = peek(u8, flag)
        if flags & PAGE_CODE == 0:
            if flags & (PAGE_DIRTY | PAGE_WRITABLE) != (PAGE_DIRTY | PAGE_WRITABLE):
                host_atomic("or", u8, flag, u8(PAGE_DIRTY | PAGE_WRITABLE))
            if peek(u64, entry) != tag:
                poke(u64, entry, u64(NO_TAG))
            poke(u64, entry + 8, tag)
            cpu.fence()
            if peek(u8, flag) & PAGE_CODE != 0:
                # Another hart has begun to run code here at the same moment.
                poke(u64, entry + 8, u64(NO_TAG))
    return host, physical


# Slow paths of loads and stores; values travel as u64 in memory order (little-endian numbers)


@engine()
def device_load(cpu, arch, vaddr: u64, physical: u64, size: u64) -> u64:
    value = u64(0)
    if physical & (size - 1) == 0:
        value = host_call(cpu, "device_read", cpu_address(cpu), physical, size)
        if cpu.device_fault == 0:
            return value
    cpu.device_fault = u32(0)
    arch.hooks["on_bus_error"](cpu, vaddr, u32(READ))
    return value


@engine()
def device_store(cpu, arch, vaddr: u64, physical: u64, size: u64, value: u64) -> None:
    if physical & (size - 1) == 0:
        host_call(cpu, "device_write", cpu_address(cpu), physical, size, value)
        if cpu.device_fault == 0:
            return
    cpu.device_fault = u32(0)
    arch.hooks["on_bus_error"](cpu, vaddr, u32(WRITE))


@engine()
def slow_load(cpu, arch, layout, kind, vaddr: u64) -> u64:
    """A load by way of translation, wherever it is."""
    size = kind.bits // 8
    if size > 1 and unlikely(vaddr & (layout.page_size - 1) > layout.page_size - size):
        return load_across(cpu, arch, layout, vaddr, u64(size))
    host, physical = reach(cpu, arch, layout, vaddr, u64(size), u32(READ))
    if host != 0:
        return u64(peek(kind, host))
    return device_load(cpu, arch, vaddr, physical, u64(size))


@engine()
def load_across(cpu, arch, layout, vaddr: u64, size: u64) -> u64:
    """A load from two pages: both are translated before any byte is read."""
    first = layout.page_size - (vaddr & (layout.page_size - 1))
    host, _ = reach(cpu, arch, layout, vaddr, first, u32(READ))
    host2, _ = reach(cpu, arch, layout, vaddr + first, size - first, u32(READ))
    if host == 0 or host2 == 0:
        arch.hooks["on_bus_error"](cpu, vaddr if host == 0 else vaddr + first, u32(READ))
    value = u64(0)
    i = u64(0)
    while i < size:
        source = host + i if i < first else host2 + (i - first)
        value = value | u64(peek(u8, source)) << (i * 8)
        i = i + 1
    return value


@engine()
def slow_store(cpu, arch, layout, kind, vaddr: u64, value: u64) -> None:
    """A store by way of translation, wherever it is."""
    size = kind.bits // 8
    if size > 1 and unlikely(vaddr & (layout.page_size - 1) > layout.page_size - size):
        store_across(cpu, arch, layout, vaddr, u64(size), value)
        return
    host, physical = reach(cpu, arch, layout, vaddr, u64(size), u32(WRITE))
    if host != 0:
        poke(kind, host, kind(value))
        phys_changed(cpu, arch, layout, physical, u64(size))
    else:
        device_store(cpu, arch, vaddr, physical, u64(size), value)


@engine()
def store_across(cpu, arch, layout, vaddr: u64, size: u64, value: u64) -> None:
    first = layout.page_size - (vaddr & (layout.page_size - 1))
    host, physical = reach(cpu, arch, layout, vaddr, first, u32(WRITE))
    host2, physical2 = reach(cpu, arch, layout, vaddr + first, size - first, u32(WRITE))
    if host == 0 or host2 == 0:
        arch.hooks["on_bus_error"](cpu, vaddr if host == 0 else vaddr + first, u32(WRITE))
    i = u64(0)
    while i < size:
        target = host + i if i < first else host2 + (i - first)
        poke(u8, target, u8(value >> (i * 8)))
        i = i + 1
    phys_changed(cpu, arch, layout, physical, first)
    phys_changed(cpu, arch, layout, physical2, size - first)


@engine()
def slow_address(cpu, arch, layout, vaddr: u64, size: u64) -> tuple[u64, u64]:
    """Where an aligned read-modify-write happens: host and physical address. Devices do not do these."""
    host, physical = reach(cpu, arch, layout, vaddr, size, u32(WRITE))
    if host == 0:
        arch.hooks["on_bus_error"](cpu, vaddr, u32(WRITE))
    return host, physical


# Flushes


@engine()
def flush_tlb(cpu, arch, layout) -> None:
    """Forget all cached translations."""
    entry = cpu_address(cpu) + layout.tlb_offset
    end = entry + arch.contexts * TLB_SIZE * TLB_ENTRY
    while entry != end:
        poke(u64, entry, u64(NO_TAG))
        poke(u64, entry + 8, u64(NO_TAG))
        entry = entry + TLB_ENTRY
    entry = cpu_address(cpu) + layout.code_tlb_offset
    end = entry + arch.contexts * CODE_TLB_SIZE * CODE_TLB_ENTRY
    while entry != end:
        poke(u64, entry, u64(NO_TAG))
        entry = entry + CODE_TLB_ENTRY
    cpu.large_pages = u32(0)


@engine()
def flush_tlb_page(cpu, arch, layout, vaddr: u64) -> None:
    """Forget cached translations of one page; of all, where a larger page may be cached in pieces."""
    if cpu.large_pages != 0:
        flush_tlb(cpu, arch, layout)
        return
    block = cpu_address(cpu)
    page = vaddr >> arch.page_bits
    for context in range(arch.contexts):
        entry = block + (layout.tlb_offset + context * TLB_SIZE * TLB_ENTRY) + (page & (TLB_SIZE - 1)) * TLB_ENTRY
        poke(u64, entry, u64(NO_TAG))
        poke(u64, entry + 8, u64(NO_TAG))
        code = layout.code_tlb_offset + context * CODE_TLB_SIZE * CODE_TLB_ENTRY
        poke(u64, block + code + (page & (CODE_TLB_SIZE - 1)) * CODE_TLB_ENTRY, u64(NO_TAG))


@engine()
def drop_writes(cpu, arch, layout) -> None:
    """Forget all cached permissions to write, so that the next write to each page is noticed."""
    entry = cpu_address(cpu) + layout.tlb_offset
    end = entry + arch.contexts * TLB_SIZE * TLB_ENTRY
    while entry != end:
        poke(u64, entry + 8, u64(NO_TAG))
        entry = entry + TLB_ENTRY


# Time


@engine()
def clock(cpu) -> u64:
    """The platform's time counter, in ticks."""
    base = cpu.retired
    if cpu.clock_virtual == 0:
        place = cpu_address(cpu) + TIMESPEC_OFFSET
        host_call(cpu, "clock_gettime", u64(1), place)  # CLOCK_MONOTONIC
        base = cpu.timespec[0] * 1_000_000_000 + cpu.timespec[1]
    return u64((u128(base) * u128(cpu.clock_scale)) >> 32) + cpu.clock_offset


TIMESPEC_OFFSET = at.EngineState.members["timespec"].offset


# Dispatch


@engine()
def enter_contexts(cpu, arch, layout) -> None:
    """Find out which translation rules hold now, after something they depend on has changed."""
    block = cpu_address(cpu)
    data = arch.hooks["data_context"](cpu) if "data_context" in arch.hooks else u32(0)
    fetch = arch.hooks["fetch_context"](cpu) if "fetch_context" in arch.hooks else u32(0)
    cpu.data_context = data
    cpu.fetch_context = fetch
    cpu.tlb = block + layout.tlb_offset + u64(data) * (TLB_SIZE * TLB_ENTRY)
    cpu.code_tlb = block + layout.code_tlb_offset + u64(fetch) * (CODE_TLB_SIZE * CODE_TLB_ENTRY)


@engine()
def deliver(cpu, arch) -> None:
    """Enter the trap whose values are in the state: cpu.pc is where it happened, and then where it leads."""
    on_trap = arch.hooks["on_trap"]
    on_trap(cpu, *trap_arguments(cpu, on_trap))
    cpu.pc = cpu.next_pc


@engine(inline=True)
def trap_arguments(cpu, on_trap):
    names = on_trap.parameters[1:]
    if len(names) == 1:
        return (cpu.trap_values[0],)
    if len(names) == 2:
        return cpu.trap_values[0], cpu.trap_values[1]
    return cpu.trap_values[0], cpu.trap_values[1], cpu.trap_values[2]


@engine()
def serve_flushes(cpu, arch, layout) -> None:
    """Forget what others want forgotten. They take a byte that is 0 for the answer: nothing is executed before."""
    if cpu.flush_all != 0:
        cpu.flush_all = u8(0)
        flush_tlb(cpu, arch, layout)
    if cpu.flush_writes != 0:
        cpu.flush_writes = u8(0)
        drop_writes(cpu, arch, layout)


@engine()
def look_around(cpu, arch, layout) -> bool:
    """Requests from other threads, and the next time to look for them; gives whether to return to the platform."""
    limit = cpu.retired + cpu.slice
    cpu.limit = limit if limit < cpu.stop_at else cpu.stop_at
    cpu.fence()
    serve_flushes(cpu, arch, layout)
    if cpu.stop != 0:
        cpu.stop = u8(0)
        cpu.exit_reason = u32(EXIT_STOP)
        return True
    if cpu.retired >= cpu.stop_at:
        cpu.exit_reason = u32(EXIT_LIMIT)
        return True
    return False


@engine()
def flush_others(cpu, arch, layout, first: u64, mask: u64) -> None:
    waiting.flush_and_wait(cpu, arch, layout, serve_flushes, first, mask)


@engine()
def wait(cpu, arch, layout) -> None:
    """Wait, when no instruction has just asked for it."""
    waiting.wait(cpu, arch, layout, look_around, clock)


@engine()
def rouse(cpu) -> None:
    waiting.rouse(cpu, cpu_address(cpu))


@engine()
def signal(cpu, layout, member, number: u64, value: u8) -> None:
    waiting.send(cpu, layout.offset(member), number, value)


@engine()
def find_code(cpu, arch, layout) -> u64:
    """Where to go on from cpu.pc: the address of a record (and `base`); 0 to return to the platform.

    All that is not straight on comes here: interrupts are polled, contexts entered, code looked up.
    """
    if cpu.left != 0:
        if cpu.waits == 0 or cpu.waits_inside == 0 or cpu.stepping != 0:
            cpu.exit_reason = u32(EXIT_LEAVE)
            return u64(0)
        cpu.left = u32(0)
        cpu.waits = u8(0)
        if waiting.wait(cpu, arch, layout, look_around, clock):
            return u64(0)
    if cpu.retired >= cpu.limit and look_around(cpu, arch, layout):
        return u64(0)
    if cpu.stepping != 0:
        cpu.limit = u64(0)
        if cpu.stepping == 2:
            cpu.exit_reason = u32(EXIT_STEP)
            return u64(0)
    if "poll" in arch.hooks:
        cpu.next_pc = cpu.pc
        if attempt(arch.hooks["poll"], cpu):
            deliver(cpu, arch)
            if cpu.stepping != 0:
                cpu.exit_reason = u32(EXIT_STEP)
                return u64(0)
    enter_contexts(cpu, arch, layout)
    trapped, slot = attempt(find_slot, cpu, arch, layout, cpu.pc)
    while trapped:
        deliver(cpu, arch)
        enter_contexts(cpu, arch, layout)
        if cpu.stepping != 0:
            cpu.exit_reason = u32(EXIT_STEP)
            return u64(0)
        if cpu.retired >= cpu.limit and look_around(cpu, arch, layout):
            return u64(0)
        trapped, slot = attempt(find_slot, cpu, arch, layout, cpu.pc)
    if slot == 0:
        return u64(0)
    page = u64(cpu.pc) & ~u64(layout.page_size - 1)
    cpu.base = page - (slot >> layout.shift)
    return slot + ((u64(cpu.pc) & (layout.page_size - 1)) << layout.shift)


@engine()
def find_slot(cpu, arch, layout, pc: u64) -> u64:
    """The records of the page that holds ``pc``, from the code TLB or by translation; 0 to activate a page.

    Where parts of the page have different rules, no records are kept: of this hart's own, the one for ``pc`` decodes
    the instruction, and all others lead back here.
    """
    tag = pc & ~u64(layout.page_size - 1)
    entry = cpu.code_tlb + ((pc >> arch.page_bits) & (CODE_TLB_SIZE - 1)) * CODE_TLB_ENTRY
    if peek(u64, entry) == tag:
        return peek(u64, entry + 8)
    physical, page_bits = fetch_translate(cpu, arch, pc)
    if unlikely(page_bits < arch.page_bits):
        use_scratch(cpu, cpu.scratch + ((pc & (layout.page_size - 1)) << layout.shift), cpu.decode_handler)
        return cpu.scratch
    descriptor = find_ram(cpu, physical)
    if descriptor == 0:
        arch.hooks["on_bus_error"](cpu, pc, u32(FETCH))
    slot = peek(u64, peek(u64, descriptor + RAM_SLOTS) + _page_of(arch, descriptor, physical) * 8)
    if slot == 0:
        cpu.exit_reason = u32(EXIT_ACTIVATE)
        cpu.exit_argument = physical
        return slot
    if page_bits > arch.page_bits:
        cpu.large_pages = u32(1)
    poke(u64, entry, tag)
    poke(u64, entry + 8, slot)
    return slot


@engine()
def use_scratch(cpu, record: u64, handler: u64) -> None:
    """Give a record of the hart's own a handler; there is one at a time that is not `cross`."""
    poke(u64, cpu.scratch_record, cpu.cross_handler)
    poke(u64, record, handler)
    cpu.scratch_record = record


@engine()
def fetch_translate(cpu, arch, pc: u64) -> tuple[u64, u32]:
    if "translate" in arch.hooks:
        return arch.hooks["translate"](cpu, pc, u32(FETCH), cpu.fetch_context)
    return pc, u32(arch.page_bits)


@engine()
def fetch_unit(cpu, arch, pc: u64) -> u64:
    """One unit of instruction bytes at ``pc``, by translation."""
    physical, _ = fetch_translate(cpu, arch, pc)
    host = phys_host(cpu, physical, u64(arch.unit))
    if host == 0:
        arch.hooks["on_bus_error"](cpu, pc, u32(FETCH))
    value = u64(0)
    for i in range(arch.unit):
        value = value | u64(peek(u8, host + i)) << (8 * i)
    return value


@engine()
def encoding(cpu, arch, layout) -> u64:
    """The bytes of the instruction at cpu.pc, as far as it goes (`cpu.encoding()`)."""
    trapped, word = attempt(fetch_unit, cpu, arch, cpu.pc)
    have = u64(arch.unit)
    while not trapped and have < arch.max_length and not complete(cpu, arch, word, have):
        trapped, more = attempt(fetch_unit, cpu, arch, cpu.pc + have)
        word = word | more << (have * 8)
        have = have + arch.unit
    return word


@engine()
def complete(cpu, arch, word: u64, have: u64) -> bool:
    """Whether the ``have`` bytes in ``word`` cannot be the start of a longer instruction."""
    if "length" in arch.hooks:
        return u64(arch.hooks["length"](cpu, word & ((1 << 8 * arch.unit) - 1))) <= have
    for length in range(arch.unit, arch.max_length, arch.unit):
        if have == length:
            for mask, value in arch.prefixes(length):
                if word & mask == value:
                    return False
    return True


# Decoding


@engine()
def decode_at(cpu, arch, layout, decode_word, record: u64, base: u64) -> u64:
    """Decode the instruction of a record. Gives the record to run; 0 to return to the platform, 1 to dispatch."""
    slot = record & ~u64(layout.slot_size - 1)
    header = slot + layout.header_offset
    offset = (record - slot) >> layout.shift
    cpu.base = base
    cpu.pc = base + (record >> layout.shift)
    if unlikely(slot == cpu.scratch):
        return decode_across(cpu, arch, layout, decode_word, offset, u64(0), u64(0))
    lock(header)
    if peek(u8, peek(u64, header + at.HEADER_FLAGS)) & PAGE_CODE == 0:
        unlock(header)
        cpu.exit_reason = u32(EXIT_ACTIVATE)
        cpu.exit_argument = peek(u64, header + at.HEADER_PHYSICAL)
        return u64(0)
    host = peek(u64, header + at.HEADER_HOST) + offset
    word = u64(0)
    have = u64(0)
    while have < arch.max_length and offset + have < layout.page_size:
        for i in range(arch.unit):
            word = word | u64(peek(u8, host + have + i)) << (have * 8 + 8 * i)
        have = have + arch.unit
        if complete(cpu, arch, word, have):
            break
    if not complete(cpu, arch, word, have) and have < arch.max_length:
        unlock(header)
        return decode_across(cpu, arch, layout, decode_word, offset, word, have)
    index = decode_word(cpu, word, record)
    handler = peek(u64, cpu.decode_table + index * 8)
    if handler != 0:
        if unlikely(cpu.breakpoint_count != 0) and is_breakpoint(cpu, layout, offset):
            poke(u64, record, cpu.breakpoint_handler)
        else:
            poke(u64, record, handler)
    unlock(header)
    if handler == 0:
        cpu.exit_reason = u32(EXIT_COMPILE)
        cpu.exit_argument = index
        return u64(0)
    return record


@engine()
def is_breakpoint(cpu, layout, offset: u64) -> bool:
    """Whether a breakpoint is at this offset in some page; which page it is, is checked when it is reached."""
    i = u32(0)
    while i < cpu.breakpoint_count:
        if cpu.breakpoint_addresses[i] & (layout.page_size - 1) == offset:
            return True
        i = i + 1
    return False


@engine()
def reset_page(cpu, layout, slot: u64) -> None:
    """Make all records of a page decode again."""
    reset_records(cpu, layout, slot, u64(0), u64(layout.records))


@engine()
def decode_across(cpu, arch, layout, decode_word, offset: u64, start: u64, known: u64) -> u64:
    """Decode an instruction that must be fetched anew each time, most often as the next page may be any by now."""
    pc = cpu.pc
    word = start
    have = known
    while have < arch.max_length and not complete(cpu, arch, word, have):
        trapped, more = attempt(fetch_unit, cpu, arch, pc + have)
        if trapped:
            deliver(cpu, arch)
            return u64(1)
        word = word | more << (have * 8)
        have = have + arch.unit
    record = cpu.scratch + (offset << layout.shift)
    index = decode_word(cpu, word, record)
    handler = peek(u64, cpu.decode_table + index * 8)
    if handler == 0:
        cpu.exit_reason = u32(EXIT_COMPILE)
        cpu.exit_argument = index
        return u64(0)
    use_scratch(cpu, record, handler)
    cpu.base = pc - (record >> layout.shift)
    return record


@engine()
def prepare_step(cpu, arch, layout, decode_word) -> u64:
    """Make one instruction at cpu.pc ready in this hart's own records: the record; 0 to return, 1 to dispatch."""
    found = find_code(cpu, arch, layout)
    if found == 0:
        return found
    if peek(u64, found) == cpu.decode_handler:
        found = decode_at(cpu, arch, layout, decode_word, found, cpu.base)
        if found <= 1:
            cpu.stepping = u32(2)
            return found
    pc = cpu.pc
    record = cpu.step_slot + ((pc & (layout.page_size - 1)) << layout.shift)
    if unlikely(peek(u64, found) == cpu.breakpoint_handler):
        # What stands there under the breakpoint.
        index = decode_word(cpu, encoding(cpu, arch, layout), record)
        handler = peek(u64, cpu.decode_table + index * 8)
        if handler == 0:
            cpu.exit_reason = u32(EXIT_COMPILE)
            cpu.exit_argument = index
            return u64(0)
        poke(u64, record, handler)
    else:
        for offset in range(0, layout.record_size, 8):
            poke(u64, record + offset, peek(u64, found + offset))
    # An earlier step may have left its instruction in what follows.
    for following in range(1, arch.max_length // arch.unit + 1):
        poke(u64, record + following * layout.record_size, cpu.stopped_handler)
    cpu.base = pc - (record >> layout.shift)
    cpu.limit = u64(0)
    cpu.stepping = u32(2)
    return record
