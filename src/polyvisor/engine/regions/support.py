"""Described functions that compiled regions call, and those that install them."""

from __future__ import annotations

from polyvisor.adl import READ, WRITE, u8, u32, u64, unlikely
from polyvisor.adl.host import attempt, host_atomic, peek, poke

from .. import layout as at
from ..access import cached_host, engine, find_ram, load_across, lock, page_of, reach, unlock
from ..clocks import bound_turn
from ..layout import PAGE_CODE, RAM_FLAGS


@engine()
def load_ram(cpu, arch, layout, kind, vaddr: u64) -> tuple[u64, bool]:
    """A load by way of translation: the value, and whether there was RAM."""
    size = kind.bits // 8
    if vaddr & (size - 1) != 0:
        cached = cached_host(cpu, arch, layout, vaddr, size, 0)
        if cached != 0:
            return u64(peek(kind, cached)), True
    if size > 1 and unlikely(vaddr & (layout.page_size - 1) > layout.page_size - size):
        return load_across(cpu, arch, layout, vaddr, u64(size)), True
    host, _ = reach(cpu, arch, layout, vaddr, u64(size), u32(READ))
    if host == 0:
        return u64(0), False
    return u64(peek(kind, host)), True


@engine()
def region_load(cpu, arch, layout, kind, vaddr: u64) -> tuple[u64, bool]:
    """A load that missed the TLB: the value, and whether the interpreter must do it (a trap, a device)."""
    trapped, value, found = attempt(load_ram, cpu, arch, layout, kind, vaddr)
    return value, trapped or not found


@engine()
def store_ram(cpu, arch, layout, kind, vaddr: u64, value: u64) -> bool:
    """A store by way of translation; gives whether it was done."""
    size = kind.bits // 8
    if vaddr & (size - 1) != 0:
        cached = cached_host(cpu, arch, layout, vaddr, size, 8)
        if cached != 0:
            poke(kind, cached, kind(value))
            return True
    if size > 1 and unlikely(vaddr & (layout.page_size - 1) > layout.page_size - size):
        return False
    host, physical = reach(cpu, arch, layout, vaddr, u64(size), u32(WRITE))
    if host == 0:
        return False
    descriptor = find_ram(cpu, physical)
    if peek(u8, peek(u64, descriptor + RAM_FLAGS) + page_of(arch, descriptor, physical)) & PAGE_CODE != 0:
        # It may be this very region's code.
        return False
    poke(kind, host, kind(value))
    return True


@engine()
def region_store(cpu, arch, layout, kind, vaddr: u64, value: u64) -> bool:
    """A store that missed the TLB: whether the interpreter must do it (a trap, a device, a page with decoded code)."""
    trapped, done = attempt(store_ram, cpu, arch, layout, kind, vaddr, value)
    return trapped or not done


@engine()
def region_sync(cpu, arch) -> bool:
    """Whether contexts have changed, or an interrupt is to be taken: the region is left for the dispatcher."""
    if "data_context" in arch.hooks and arch.hooks["data_context"](cpu) != cpu.data_context:
        return True
    if "fetch_context" in arch.hooks and arch.hooks["fetch_context"](cpu) != cpu.fetch_context:
        return True
    if cpu.clock_virtual != 0 and bound_turn(cpu, arch):
        return True
    if "poll" in arch.hooks:
        return attempt(arch.hooks["poll"], cpu)
    return False


@engine()
def link_region(cpu, layout, slot: u64, link: u64) -> None:
    """From now on, writes to parts of a page make a region forgotten."""
    header = slot + layout.header_offset
    lock(header)
    poke(u64, link + at.LINK_NEXT, peek(u64, header + at.HEADER_REGIONS))
    poke(u64, header + at.HEADER_REGIONS, link)
    unlock(header)


@engine()
def install_region(cpu, layout, record: u64, region: u64, handler: u64) -> bool:
    """Put a region's handler into a record, if the region is still valid and the record decoded; gives whether."""
    header = (record & ~u64(layout.slot_size - 1)) + layout.header_offset
    lock(header)
    fine = peek(u64, region + at.REGION_VALID) != 0 and peek(u64, record) != cpu.decode_handler
    if fine:
        poke(u64, record, handler)
        cpu.fence()
        if peek(u64, region + at.REGION_VALID) == 0:
            # Forgotten at the same moment, for a write to another page.
            poke(u64, record, cpu.decode_handler)
            fine = False
    unlock(header)
    return fine


@engine()
def forget_region(cpu, region: u64, handler: u64) -> None:
    """Make a region's records decode again, if it is still valid."""
    if host_atomic("swap", u64, region + at.REGION_VALID, u64(0)) != 0:
        record = region + at.REGION_RECORDS
        end = record + peek(u64, region + at.REGION_COUNT) * 8
        while record != end:
            poke(u64, peek(u64, record), handler)
            record = record + 8
