"""Physical memory protection (Privileged Architecture, 3.7): 16 entries of 4-byte granularity."""

from polyvisor.adl import FETCH, READ, bit, bits, ctz, function, u8, u32, u64

from .state import PMP_ENTRIES, Hart

OFF, TOR, NA4, NAPOT = 0, 1, 2, 3
LOCKED = 1 << 7
OPEN = NAPOT << 3 | 7
ADDRESS_MASK = (1 << 54) - 1
PAGE = 4096
PMP_GRAIN = 2  # log2 of the bytes that always have the same rules


@function
def _range(cpu, config: u8, entry: u32) -> tuple[u64, u64]:
    """The first address of an entry and the one after its last."""
    address = cpu.pmpaddr[entry]
    mode = bits(config, 4, 3)
    if mode == TOR:
        low = u64(0)
        if entry != 0:
            low = cpu.pmpaddr[entry - 1]
        return low << 2, address << 2
    if mode == NA4:
        return address << 2, (address << 2) + 4
    ones = ctz(~address)
    low = (address & ~((u64(1) << ones) - 1)) << 2
    return low, low + (u64(8) << ones)


@function
def _permits(config: u8, access: u32) -> bool:
    if access == FETCH:
        return bit(config, 2)
    if access == READ:
        return bit(config, 0)
    return bit(config, 1)


@function
def pmp_open(cpu) -> bool:
    """Whether the first entry lets every privilege access everything, as most often: then nothing need be checked."""
    return cpu.pmpaddr[0] == ADDRESS_MASK and cpu.pmpcfg[0] & 0x1F == OPEN


@function(inline=False)
def pmp_check(cpu, physical: u64, access: u32, privilege: u8) -> tuple[bool, bool]:
    """Whether an access of the byte at ``physical`` is allowed, and whether all of its page has the same rules."""
    if cpu.pmp_used == 0:
        # With no entry on, only machine mode may access anything.
        return privilege == 3, True
    page = physical & ~u64(PAGE - 1)
    uniform = True
    entry = u32(0)
    while entry < cpu.pmp_used:
        config = cpu.pmpcfg[entry]
        if bits(config, 4, 3) != OFF:
            low, end = _range(cpu, config, entry)
            if physical >= low and physical < end:
                if low > page or end < page + PAGE:
                    uniform = False
                if privilege == 3 and not bit(config, 7):
                    return True, uniform
                return _permits(config, access), uniform
            if low < page + PAGE and end > page:
                uniform = False
        entry = entry + 1
    return privilege == 3, uniform


@function(inline=False)
def pmp_update(cpu):
    """Derive what depends on the configuration, after it was written."""
    used = u32(0)
    for entry in range(PMP_ENTRIES):
        if bits(cpu.pmpcfg[entry], 4, 3) != OFF:
            used = u32(entry + 1)
    cpu.pmp_used = used
    cpu.flush_tlb()


@function
def write_config(cpu, entry, value: u8):
    """Write one entry's configuration: bits 6:5 are zero, W without R is reserved, locked ones stay."""
    legal = value & 0x9F
    if bits(legal, 1, 0) == 2:
        legal = legal & 0xFC
    if not bit(cpu.pmpcfg[entry], 7):
        cpu.pmpcfg[entry] = legal


@function
def write_address(cpu, entry, value: u64):
    """Write one entry's address, unless it, or a locked TOR entry above that uses it, is locked."""
    locked = bit(cpu.pmpcfg[entry], 7)
    if entry + 1 < PMP_ENTRIES:
        above = cpu.pmpcfg[entry + 1]
        if bit(above, 7) and bits(above, 4, 3) == TOR:
            locked = True
    if not locked:
        cpu.pmpaddr[entry] = value & ADDRESS_MASK


def open_pmp(hart: Hart) -> None:
    """Let every privilege access all memory, as firmware does for the kernel it starts."""
    hart.pmpcfg[0] = OPEN
    hart.pmpaddr[0] = ADDRESS_MASK
    hart.pmp_used = 1
