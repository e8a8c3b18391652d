"""The engine's own described functions: dispatch, decoded pages; `access` has those for memory, `clocks` for time.

They are written in the description language, with host memory (peek, poke) added, and are compiled once per
architecture.  ``arch`` and ``layout`` are compile-time constants.
"""

from __future__ import annotations

from polyvisor.adl import FETCH, u8, u32, u64, unlikely
from polyvisor.adl.host import attempt, cpu_address, host_call, peek, poke

from . import layout as at
from . import waiting
from .access import (
    cached_translate,
    drop_writes,
    engine,
    find_ram,
    flush_tlb,
    lock,
    log_fill,
    page_of,
    phys_host,
    reset_records,
    unlock,
)
from .clocks import bound_regions, bound_turn, bus_cycle, clock, wakes_at  # noqa: F401  (handlers and the core call some of them)
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
    RAM_SLOTS,
    TLB_ENTRY,
    TLB_SIZE,
)

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
    if unlikely(cpu.trap_hook != 0):
        host_call(cpu, "trap_hook", cpu_address(cpu))
    on_trap(cpu, *trap_arguments(cpu, on_trap))
    if unlikely(cpu.entry_hook != 0):
        host_call(cpu, "entry_hook", cpu_address(cpu))
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
    if cpu.sample_at > cpu.retired and cpu.sample_at < limit:
        limit = cpu.sample_at
    if limit > cpu.break_at:
        limit = cpu.break_at
    cpu.limit = limit if limit < cpu.stop_at else cpu.stop_at
    bound_regions(cpu)
    cpu.fence()
    serve_flushes(cpu, arch, layout)
    if cpu.stop != 0 or cpu.retired >= cpu.break_at:
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
    sampled = False
    resuming = cpu.resuming != 0
    cpu.resuming = u8(0)
    if resuming:
        # Not a place of the program's: native code returned here for something of its own.
        cpu.region_limit = u64(0)  # until the next look: the turn may be another one
        cpu.fence()
        serve_flushes(cpu, arch, layout)
    elif not arch.clocked:  # noqa: SIM102  (a clocked one takes its events where they are due, in native code)
        if cpu.clock_virtual != 0:
            bound_turn(cpu, arch)
    if not resuming and cpu.retired >= cpu.limit:
        if look_around(cpu, arch, layout):
            return u64(0)
        # Not at every request: those of a device come at the same place each time. (Less than 0 is much, too.)
        if cpu.sample_at - cpu.retired - 1 >= cpu.slice:
            cpu.sample_at = cpu.retired + cpu.slice
            sampled = True
    if cpu.stepping != 0:
        cpu.limit = u64(0)
        if cpu.stepping == 2:
            cpu.exit_argument = u64(1)
            cpu.exit_reason = u32(EXIT_STEP)
            return u64(0)
    if arch.clocked and not resuming:
        # The entry of an interrupt accesses memory, and the state may have been put here from outside.
        enter_contexts(cpu, arch, layout)
    if "poll" in arch.hooks and not resuming:
        cpu.next_pc = cpu.pc
        if attempt(arch.hooks["poll"], cpu):
            deliver(cpu, arch)
            if cpu.stepping != 0:
                cpu.exit_argument = u64(1)
                cpu.exit_reason = u32(EXIT_STEP)
                return u64(0)
    if arch.clocked and not resuming:
        cpu.event_at = arch.hooks["deadline"](cpu) if "deadline" in arch.hooks else u64(NO_TAG)
    enter_contexts(cpu, arch, layout)
    trapped, slot = attempt(find_slot, cpu, arch, layout, cpu.pc)
    while trapped:
        deliver(cpu, arch)
        enter_contexts(cpu, arch, layout)
        if cpu.stepping != 0:
            cpu.exit_argument = u64(1)
            cpu.exit_reason = u32(EXIT_STEP)
            return u64(0)
        if cpu.retired >= cpu.limit and look_around(cpu, arch, layout):
            return u64(0)
        trapped, slot = attempt(find_slot, cpu, arch, layout, cpu.pc)
    if slot == 0:
        return u64(0)
    page = u64(cpu.pc) & ~u64(layout.page_size - 1)
    cpu.base = page - (slot >> layout.shift)
    record = slot + ((u64(cpu.pc) & (layout.page_size - 1)) << layout.shift)
    if sampled and slot != cpu.scratch:
        number = u32(cpu.sample_count) & (at.SAMPLES - 1)
        cpu.sample_records[number] = record
        cpu.sample_addresses[number] = u64(cpu.pc)
        cpu.sample_count = cpu.sample_count + 1
    return record


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
    physical, page_bits = cached_translate(cpu, arch, layout, pc, u32(FETCH), cpu.fetch_context)
    if unlikely(page_bits < arch.page_bits):
        use_scratch(cpu, cpu.scratch + ((pc & (layout.page_size - 1)) << layout.shift), cpu.decode_handler)
        return cpu.scratch
    descriptor = find_ram(cpu, physical)
    if descriptor == 0:
        if "read_device" in arch.hooks:
            # What a described device answers is decoded each time.
            use_scratch(cpu, cpu.scratch + ((pc & (layout.page_size - 1)) << layout.shift), cpu.decode_handler)
            return cpu.scratch
        arch.hooks["on_bus_error"](cpu, pc, u32(FETCH))
    slot = peek(u64, peek(u64, descriptor + RAM_SLOTS) + page_of(arch, descriptor, physical) * 8)
    if slot == 0:
        cpu.exit_reason = u32(EXIT_ACTIVATE)
        cpu.exit_argument = physical
        return slot
    if peek(u64, entry) == NO_TAG:
        log_fill(cpu, layout, entry)
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
def fetch_unit(cpu, arch, address: u64) -> u64:
    """One unit of instruction bytes, by translation."""
    pc = address & (1 << arch.address_bits) - 1
    physical, _ = fetch_translate(cpu, arch, pc)
    host = phys_host(cpu, physical, u64(arch.unit))
    if host == 0:
        if "read_device" in arch.hooks:
            found, answered = arch.hooks["read_device"](cpu, physical, u64(arch.unit))
            if answered:
                return found
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
    while have == 0 or (have < arch.max_length and not complete(cpu, arch, word, have)):
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
    if found & ~u64(layout.slot_size - 1) == cpu.scratch:
        cpu.exit_argument = u64(1)  # otherwise it would come by the dispatcher after this instruction
    if peek(u64, found) == cpu.decode_handler:
        found = decode_at(cpu, arch, layout, decode_word, found, cpu.base)
        if found <= 1:
            cpu.stepping = u32(2)
            return found
    pc = cpu.pc
    record = cpu.step_slot + ((pc & (layout.page_size - 1)) << layout.shift)
    # In the record may be a breakpoint or a region, so the instruction is decoded anew.
    index = decode_word(cpu, encoding(cpu, arch, layout), record)
    handler = peek(u64, cpu.decode_table + index * 8)
    if handler == 0:
        cpu.exit_reason = u32(EXIT_COMPILE)
        cpu.exit_argument = index
        return u64(0)
    poke(u64, record, handler)
    # An earlier step may have left its instruction in what follows.
    for following in range(1, arch.max_length // arch.unit + 1):
        poke(u64, record + following * layout.record_size, cpu.stopped_handler)
    cpu.base = pc - (record >> layout.shift)
    cpu.limit = u64(0)
    cpu.stepping = u32(2)
    return record
