"""Address translation: Sv39, Sv48 and Sv57 (Privileged Architecture, 12.3 to 12.6), PMP, A and D bits."""

from polyvisor.adl import FETCH, READ, WRITE, Trap, bit, bits, function, u8, u32, u64, unlikely

from .architecture import rv64
from .causes import FETCH_ACCESS, FETCH_PAGE, LOAD_ACCESS, LOAD_PAGE, STORE_ACCESS, STORE_PAGE
from .pmp import PMP_GRAIN, pmp_check, pmp_open
from .trap import MPRV, MXR, SUM

# Translation contexts.
USER, SUPERVISOR, SUPERVISOR_SUM, MACHINE = 0, 1, 2, 3

# Page table entries
V, R, W, X, U, G, A, D = (1 << n for n in range(8))
RESERVED = 0x3FF << 54  # 63 N, 62:61 PBMT, 60:54 reserved: Svnapot and Svpbmt are absent
ADUE = 61  # in menvcfg


@rv64.hook("data_context")
def data_context(cpu) -> u32:
    """The rules for loads and stores; MPRV lets machine mode use those of a lower one (3.1.6.3)."""
    privilege = cpu.privilege
    if privilege == 3 and cpu.mstatus & MPRV != 0:
        privilege = u8(bits(cpu.mstatus, 12, 11))
    if privilege == 3:
        return u32(MACHINE)
    if privilege == 0:
        return u32(USER)
    return u32(SUPERVISOR_SUM) if cpu.mstatus & SUM != 0 else u32(SUPERVISOR)


@rv64.hook("fetch_context")
def fetch_context(cpu) -> u32:
    """The rules for instruction fetches; supervisor mode never executes user pages."""
    if cpu.privilege == 3:
        return u32(MACHINE)
    return u32(USER) if cpu.privilege == 0 else u32(SUPERVISOR)


@function
def page_fault(vaddr: u64, access: u32):
    """Raise the page fault of this kind of access."""
    if access == FETCH:
        raise Trap(FETCH_PAGE, vaddr)
    if access == READ:
        raise Trap(LOAD_PAGE, vaddr)
    raise Trap(STORE_PAGE, vaddr)


@function
def access_fault(vaddr: u64, access: u32):
    """Raise the access fault of this kind of access."""
    if access == FETCH:
        raise Trap(FETCH_ACCESS, vaddr)
    if access == READ:
        raise Trap(LOAD_ACCESS, vaddr)
    raise Trap(STORE_ACCESS, vaddr)


@rv64.hook("translate")
def translate(cpu, vaddr: u64, access: u32, context: u32) -> tuple[u64, u32]:
    """The physical address, and the size of its page."""
    physical = vaddr
    page_bits = u32(12)
    privilege = u8(3)
    if context != MACHINE:
        privilege = u8(0) if context == USER else u8(1)
        if bits(cpu.satp, 63, 60) != 0:
            physical, page_bits = walk(cpu, vaddr, access, context)
    if unlikely(physical >> 56 != 0):
        access_fault(vaddr, access)
    if pmp_open(cpu):
        return physical, page_bits
    allowed, uniform = pmp_check(cpu, physical, access, privilege)
    if not allowed:
        access_fault(vaddr, access)
    return physical, page_bits if uniform else u32(PMP_GRAIN)


@function(inline=False)
def walk(cpu, vaddr: u64, access: u32, context: u32) -> tuple[u64, u32]:
    """Find the leaf page table entry (12.3.2): the physical address, and log2 of the page's size."""
    levels = bits(cpu.satp, 63, 60) - 5  # 8: Sv39, 9: Sv48, 10: Sv57
    width = levels * 9 + 12
    # The bits above the highest one that is translated must equal it.
    above = u64(i64_shift(vaddr, width - 1))
    if above != 0 and above != 2**64 - 1:
        page_fault(vaddr, access)
    table = bits(cpu.satp, 43, 0) << 12
    shift = width - 9
    while True:
        where = table + ((vaddr >> shift) & 511) * 8
        if not entry_allowed(cpu, where, u32(READ)):
            access_fault(vaddr, access)
        entry, there = cpu.phys_load(u64, where)
        if not there:
            access_fault(vaddr, access)
        if entry & V == 0 or entry & (R | W) == W or entry & RESERVED != 0:
            page_fault(vaddr, access)
        if entry & (R | X) != 0:
            updated = leaf(cpu, vaddr, access, context, entry, shift)
            if updated == entry:
                offset = (u64(1) << shift) - 1
                return ((bits(entry, 53, 10) << 12) & ~offset) | (vaddr & offset), u32(shift)
            # A and D are updated as one step with the check that the entry is still what it was.
            if not entry_allowed(cpu, where, u32(WRITE)):
                access_fault(vaddr, access)
            old, _ = cpu.phys_compare_exchange(u64, where, entry, updated)
            if old == entry:
                offset = (u64(1) << shift) - 1
                return ((bits(entry, 53, 10) << 12) & ~offset) | (vaddr & offset), u32(shift)
        else:
            if entry & (D | A | U) != 0 or shift == 12:
                page_fault(vaddr, access)
            table = bits(entry, 53, 10) << 12
            shift = shift - 9


@function
def entry_allowed(cpu, where: u64, access: u32) -> bool:
    """Whether the PMP lets the page table entry at ``where`` be read or written: all of its 8 bytes."""
    if pmp_open(cpu):
        return True
    allowed, uniform = pmp_check(cpu, where, access, u8(1))
    if unlikely(allowed and not uniform):
        allowed, _ = pmp_check(cpu, where + 4, access, u8(1))
    return allowed


@function
def i64_shift(value: u64, amount: u64) -> u64:
    """An arithmetic shift to the right."""
    sign = u64(0) - (value >> 63)
    return (value >> amount) | (sign & ~(u64(2**64 - 1) >> amount))


@function
def leaf(cpu, vaddr: u64, access: u32, context: u32, entry: u64, shift: u64) -> u64:
    """Check a leaf entry; gives it with the A and D bits that the access sets."""
    if context == USER:
        if entry & U == 0:
            page_fault(vaddr, access)
    elif entry & U != 0 and (access == FETCH or context != SUPERVISOR_SUM):
        page_fault(vaddr, access)
    if access == FETCH:
        if entry & X == 0:
            page_fault(vaddr, access)
    elif access == READ:
        if entry & R == 0 and (cpu.mstatus & MXR == 0 or entry & X == 0):
            page_fault(vaddr, access)
    elif entry & W == 0:
        page_fault(vaddr, access)
    # The low page number bits of a superpage must be zero.
    if bits(entry, 53, 10) & ((u64(1) << (shift - 12)) - 1) != 0:
        page_fault(vaddr, access)
    wanted = entry | A
    if access == WRITE:
        wanted = wanted | D
    if wanted != entry and not bit(cpu.menvcfg, ADUE):
        page_fault(vaddr, access)
    return wanted
