"""The engine's described functions for memory: translation, the TLB, slow paths, what follows from a write.

See :mod:`polyvisor.engine.runtime`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyvisor.adl import READ, WRITE, Function, ctz, u8, u32, u64, unlikely
from polyvisor.adl.host import cpu_address, host_atomic, host_call, peek, poke

from . import layout as at
from .layout import (
    CODE_TLB_ENTRY,
    CODE_TLB_SIZE,
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
def page_of(arch, descriptor, physical):
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
    page = page_of(arch, descriptor, physical)
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
    if peek(u64, header + at.HEADER_REGIONS) != 0:
        part = layout.page_size // at.PAGE_PARTS
        last = (offset + size - 1) // part
        upto = u64(2**64 - 1) if last >= 63 else (u64(1) << (last + 1)) - 1
        mask = upto & ~((u64(1) << (first // part)) - 1)
        drop_regions(cpu, header, u64(2**64 - 1) if writes == arch.data_after else mask)
    if writes == arch.data_after:
        # Data, by all appearance: give the page back to plain writes until code runs on it again.
        host_atomic("and", u8, flag, u8(255 - PAGE_CODE))
        reset_records(cpu, layout, slot, u64(0), u64(layout.records))
    else:
        reset_records(cpu, layout, slot, first // arch.unit, (offset + size + (arch.unit - 1)) // arch.unit)
    unlock(header)


@engine()
def drop_regions(cpu, header: u64, mask: u64) -> None:
    """Forget the regions made of the parts of a page in ``mask``: their entries decode again. The page is locked."""
    link = peek(u64, header + at.HEADER_REGIONS)
    while link != 0:
        if peek(u64, link + at.LINK_MASK) & mask != 0:
            region = peek(u64, link + at.LINK_REGION)
            if host_atomic("swap", u64, region + at.REGION_VALID, u64(0)) != 0:
                cpu.region_drops = cpu.region_drops + 1
                record = region + at.REGION_RECORDS
                end = record + peek(u64, region + at.REGION_COUNT) * 8
                while record != end:
                    poke(u64, peek(u64, record), cpu.decode_handler)
                    record = record + 8
        link = peek(u64, link + at.LINK_NEXT)


@engine()
def mark_dirty(cpu, layout, ram: u64, segments: u64, count: u64) -> u64:
    """Note that ``count`` segments were written, up to the first on a page with decoded code; gives how many were.

    ``segments`` has a physical address and a length for each; ``ram`` describes the RAM that they are in (see
    `CodePages.descriptors`): one elsewhere ends it, too.
    """
    base = peek(u64, ram)
    size = peek(u64, ram + 8)
    flags = peek(u64, ram + 32)
    done = u64(0)
    while done < count:
        start = peek(u64, segments + done * 16) - base
        length = peek(u64, segments + done * 16 + 8)
        if length != 0:
            if start >= size or length > size - start:
                return done
            page = start // layout.page_size
            last = (start + length - 1) // layout.page_size
            while page <= last:
                # The flags are read after the write that is noted: code may begin to run here at the same moment.
                if host_atomic("or", u8, flags + page, u8(PAGE_DIRTY)) & PAGE_CODE != 0:
                    return done
                page = page + 1
        done = done + 1
    return done


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


@engine(inline=True)
def log_fill(cpu, layout, entry):
    """Note that an empty entry of the TLB or the code TLB is about to be filled."""
    count = cpu.tlb_log_count
    if count < at.TLB_LOG:
        poke(u64, cpu_address(cpu) + layout.tlb_log_offset + count * 8, entry)
        cpu.tlb_log_count = count + 1
    else:
        cpu.tlb_log_count = u64(at.TLB_LOG + 1)


@engine()
def note_large(cpu, arch, vaddr: u64, page_bits: u32) -> None:
    """A piece of a page larger than the smallest is about to be cached: remember which page."""
    cpu.large_sizes = cpu.large_sizes | u64(1) << page_bits
    bit = large_bit(vaddr, page_bits)
    cpu.large_filter[bit >> 6] = cpu.large_filter[bit >> 6] | u64(1) << (bit & 63)


@engine(inline=True)
def large_bit(vaddr, page_bits):
    """The number of a large page's bit in the filter."""
    number = vaddr >> page_bits
    return (number ^ number >> 9 ^ u64(page_bits)) & (64 * at.LARGE_FILTER - 1)


@engine(inline=True)
def second_level(cpu, arch, layout, vaddr, context):
    """The entry of the second level for an address, and the key that it must have."""
    entry = cpu_address(cpu) + layout.tlb2_offset + ((vaddr >> arch.page_bits) & (at.TLB2_SIZE - 1)) * at.TLB2_ENTRY
    rules = cpu.tlb_generation << layout.context_bits | u64(context)
    return entry, vaddr & ~u64(layout.page_size - 1) | rules


@engine()
def cached_translate(cpu, arch, layout, vaddr: u64, access: u32, context: u32) -> tuple[u64, u32]:
    """What the `translate` hook gives, from the second level of the TLB where it is there."""
    if "translate" not in arch.hooks:
        return vaddr, u32(arch.page_bits)
    entry, key = second_level(cpu, arch, layout, vaddr, context)
    allowed = u64(1) << access
    offset = vaddr & (layout.page_size - 1)
    known = u64(0)
    if peek(u64, entry) == key:
        known = peek(u64, entry + 8)
        if known & allowed != 0:
            return known & ~u64(layout.page_size - 1) | offset, u32(arch.page_bits)
    physical, page_bits = arch.hooks["translate"](cpu, vaddr, access, context)
    if page_bits >= arch.page_bits:
        if page_bits > arch.page_bits:
            note_large(cpu, arch, vaddr, page_bits)
        page = physical - offset
        if (known ^ page) >> arch.page_bits != 0:
            known = page
        poke(u64, entry, key)
        poke(u64, entry + 8, known | allowed)
    return physical, page_bits


@engine()
def reach(cpu, arch, layout, vaddr: u64, size: u64, access: u32) -> tuple[u64, u64]:
    """Translate an access in one page and remember it; gives the host address (0: not RAM) and the physical one."""
    cpu.translations = cpu.translations + 1
    physical, page_bits = cached_translate(cpu, arch, layout, vaddr, access, cpu.data_context)
    if "translate" in arch.hooks and unlikely(page_bits < arch.page_bits):
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
    tag = vaddr & ~u64(layout.page_size - 1)
    entry = cpu.tlb + ((vaddr >> arch.page_bits) & (TLB_SIZE - 1)) * TLB_ENTRY
    addend = host - vaddr
    if peek(u64, entry) == NO_TAG and peek(u64, entry + 8) == NO_TAG:
        log_fill(cpu, layout, entry)
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
        flag = peek(u64, descriptor + RAM_FLAGS) + page_of(arch, descriptor, physical)
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
    if "read_device" in arch.hooks:
        value, answered = arch.hooks["read_device"](cpu, physical, size)
        if answered:
            if arch.clocked:
                cpu.event_at = u64(0)  # what is due next may be different now
            return value
    if physical & (size - 1) == 0:
        value = host_call(cpu, "device_read", cpu_address(cpu), physical, size)
        if cpu.device_fault == 0:
            return value
    cpu.device_fault = u32(0)
    arch.hooks["on_bus_error"](cpu, vaddr, u32(READ))
    return value


@engine()
def device_store(cpu, arch, vaddr: u64, physical: u64, size: u64, value: u64) -> None:
    if "write_device" in arch.hooks:  # noqa: SIM102  (a constant decides whether the rest is compiled)
        if arch.hooks["write_device"](cpu, physical, size, value):
            if arch.clocked:
                cpu.event_at = u64(0)
            return
    if physical & (size - 1) == 0:
        host_call(cpu, "device_write", cpu_address(cpu), physical, size, value)
        if cpu.device_fault == 0:
            return
    cpu.device_fault = u32(0)
    arch.hooks["on_bus_error"](cpu, vaddr, u32(WRITE))


@engine(inline=True)
def cached_host(cpu, arch, layout, vaddr, size, column):
    """Where the first level of the TLB has these bytes of one page; 0: it has not."""
    entry = cpu.tlb + ((vaddr >> arch.page_bits) & (TLB_SIZE - 1)) * TLB_ENTRY
    offset = vaddr & (layout.page_size - 1)
    host = u64(0)
    if offset <= layout.page_size - size and peek(u64, entry + column) == vaddr - offset:
        host = peek(u64, entry + 16) + vaddr
    return host


@engine()
def slow_load(cpu, arch, layout, kind, vaddr: u64) -> u64:
    """A load by way of translation, wherever it is. One that is not aligned misses even what is cached."""
    size = kind.bits // 8
    if vaddr & (size - 1) != 0:
        cached = cached_host(cpu, arch, layout, vaddr, size, 0)
        if cached != 0:
            return u64(peek(kind, cached))
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
    host = cached_host(cpu, arch, layout, vaddr, first, 0)
    if host == 0:
        host, _ = reach(cpu, arch, layout, vaddr, first, u32(READ))
    host2 = cached_host(cpu, arch, layout, vaddr + first, size - first, 0)
    if host2 == 0:
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
    """A store by way of translation, wherever it is. One that is not aligned misses even what is cached."""
    size = kind.bits // 8
    if vaddr & (size - 1) != 0:
        cached = cached_host(cpu, arch, layout, vaddr, size, 8)
        if cached != 0:
            poke(kind, cached, kind(value))
            return
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
    physical, physical2 = u64(NO_TAG), u64(NO_TAG)
    host = cached_host(cpu, arch, layout, vaddr, first, 8)
    if host == 0:
        host, physical = reach(cpu, arch, layout, vaddr, first, u32(WRITE))
    host2 = cached_host(cpu, arch, layout, vaddr + first, size - first, 8)
    if host2 == 0:
        host2, physical2 = reach(cpu, arch, layout, vaddr + first, size - first, u32(WRITE))
    if host == 0 or host2 == 0:
        arch.hooks["on_bus_error"](cpu, vaddr if host == 0 else vaddr + first, u32(WRITE))
    i = u64(0)
    while i < size:
        target = host + i if i < first else host2 + (i - first)
        poke(u8, target, u8(value >> (i * 8)))
        i = i + 1
    # What the TLB lets be written needs no note.
    if physical != NO_TAG:
        phys_changed(cpu, arch, layout, physical, first)
    if physical2 != NO_TAG:
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
    """Forget all cached translations: those that were filled since this was last done."""
    block = cpu_address(cpu)
    if cpu.tlb_log_count <= at.TLB_LOG:
        place = block + layout.tlb_log_offset
        end = place + cpu.tlb_log_count * 8
        while place != end:
            # Of an entry of the code TLB this empties the second half as well, which then nobody reads.
            entry = peek(u64, place)
            poke(u64, entry, u64(NO_TAG))
            poke(u64, entry + 8, u64(NO_TAG))
            place = place + 8
    else:
        entry = block + layout.tlb_offset
        end = entry + arch.contexts * TLB_SIZE * TLB_ENTRY
        while entry != end:
            poke(u64, entry, u64(NO_TAG))
            poke(u64, entry + 8, u64(NO_TAG))
            entry = entry + TLB_ENTRY
        entry = block + layout.code_tlb_offset
        end = entry + arch.contexts * CODE_TLB_SIZE * CODE_TLB_ENTRY
        while entry != end:
            poke(u64, entry, u64(NO_TAG))
            entry = entry + CODE_TLB_ENTRY
    cpu.tlb_log_count = u64(0)
    next_generation(cpu, arch, layout)
    if cpu.large_sizes != 0:
        cpu.large_sizes = u64(0)
        for i in range(at.LARGE_FILTER):
            cpu.large_filter[i] = u64(0)


@engine()
def next_generation(cpu, arch, layout) -> None:
    """Forget the second level of the TLB."""
    generation = cpu.tlb_generation + 1
    if generation - 1 >= layout.generations - 2:
        # The first time, or all generations were used: entries of old ones must not come back.
        entry = cpu_address(cpu) + layout.tlb2_offset
        end = entry + at.TLB2_SIZE * at.TLB2_ENTRY
        while entry != end:
            if peek(u64, entry) != 0:  # pages of memory that were never used stay so
                poke(u64, entry, u64(0))
            entry = entry + at.TLB2_ENTRY
        generation = u64(1)
    cpu.tlb_generation = generation


@engine()
def flush_tlb_page(cpu, arch, layout, vaddr: u64) -> None:
    """Forget cached translations of one page, and of all pieces of a large page that may hold it."""
    sizes = cpu.large_sizes
    while sizes != 0:
        page_bits = u32(ctz(sizes))
        sizes = sizes & (sizes - 1)
        bit = large_bit(vaddr, page_bits)
        if cpu.large_filter[bit >> 6] >> (bit & 63) & 1 != 0:
            flush_range(cpu, arch, layout, vaddr, page_bits)
    block = cpu_address(cpu)
    page = vaddr >> arch.page_bits
    for context in range(arch.contexts):
        entry = block + (layout.tlb_offset + context * TLB_SIZE * TLB_ENTRY) + (page & (TLB_SIZE - 1)) * TLB_ENTRY
        poke(u64, entry, u64(NO_TAG))
        poke(u64, entry + 8, u64(NO_TAG))
        code = layout.code_tlb_offset + context * CODE_TLB_SIZE * CODE_TLB_ENTRY
        poke(u64, block + code + (page & (CODE_TLB_SIZE - 1)) * CODE_TLB_ENTRY, u64(NO_TAG))
    # The second level's entries of all contexts are one.
    poke(u64, block + layout.tlb2_offset + (page & (at.TLB2_SIZE - 1)) * at.TLB2_ENTRY, u64(0))


@engine()
def flush_range(cpu, arch, layout, vaddr: u64, page_bits: u32) -> None:
    """Forget cached translations of a large page, and the second level."""
    if cpu.tlb_log_count > at.TLB_LOG:
        flush_tlb(cpu, arch, layout)
        return
    place = cpu_address(cpu) + layout.tlb_log_offset
    end = place + cpu.tlb_log_count * 8
    while place != end:
        # Of an entry of the code TLB the second half is no tag; to lose one that looks like it does no harm.
        entry = peek(u64, place)
        if (peek(u64, entry) ^ vaddr) >> page_bits == 0:
            poke(u64, entry, u64(NO_TAG))
        if (peek(u64, entry + 8) ^ vaddr) >> page_bits == 0:
            poke(u64, entry + 8, u64(NO_TAG))
        place = place + 8
    next_generation(cpu, arch, layout)


@engine()
def drop_writes(cpu, arch, layout) -> None:
    """Forget all cached permissions to write, so that the next write to each page is noticed.

    The second level stays: `reach` looks at the page's flags before it makes an entry of the first one.
    """
    entry = cpu_address(cpu) + layout.tlb_offset
    end = entry + arch.contexts * TLB_SIZE * TLB_ENTRY
    if cpu.tlb_log_count <= at.TLB_LOG:
        place = cpu_address(cpu) + layout.tlb_log_offset
        last = place + cpu.tlb_log_count * 8
        while place != last:
            logged = peek(u64, place)
            if logged < end:
                poke(u64, logged + 8, u64(NO_TAG))
            place = place + 8
        return
    while entry != end:
        poke(u64, entry + 8, u64(NO_TAG))
        entry = entry + TLB_ENTRY
