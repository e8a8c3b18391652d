"""What instructions compute: with a value read, and for those that change memory, the value written back."""

from polyvisor.adl import Function, function, u8, u16

from .flags import set_nz

# What the undocumented ANE and LXA, whose outcome depends on the chip, mix in.
MAGIC = 0xEE


def load(register: str) -> Function:
    """The operation that loads a register."""

    @function
    def execute(cpu, value: u8) -> None:
        setattr(cpu, register, value)
        set_nz(cpu, value)

    return execute


lda, ldx, ldy = load("a"), load("x"), load("y")


@function
def and_(cpu, value: u8) -> None:
    lda(cpu, cpu.a & value)


@function
def ora(cpu, value: u8) -> None:
    lda(cpu, cpu.a | value)


@function
def eor(cpu, value: u8) -> None:
    lda(cpu, cpu.a ^ value)


@function
def bit(cpu, value: u8) -> None:
    cpu.n = value
    cpu.v = value >> 6 & 1
    cpu.z = cpu.a & value


def compare(register: str) -> Function:
    """The operation that compares a register."""

    @function
    def execute(cpu, value: u8) -> None:
        cpu.c = u8(getattr(cpu, register) >= value)
        set_nz(cpu, getattr(cpu, register) - value)

    return execute


cmp, cpx, cpy = compare("a"), compare("x"), compare("y")


# Sums. In decimal mode NMOS sets Z as in binary mode, and N and V from what is there before the high digit is corrected
# (Bruce Clark, "Decimal Mode in NMOS 6500 series", appendix A); CMOS sets N and Z by the result and takes a cycle more,
# which the instructions see to.


@function
def adc(cpu, value: u8) -> None:
    total = u16(cpu.a) + u16(value) + u16(cpu.c)
    if cpu.d == 0:
        add_binary(cpu, value, total)
    else:
        add_decimal(cpu, value, total)


@function
def add_binary(cpu, value: u8, total: u16) -> None:
    result = u8(total)
    cpu.v = (cpu.a ^ result) & (value ^ result) & 0x80
    cpu.v = cpu.v >> 7
    cpu.c = u8(total >> 8)
    lda(cpu, result)


@function(inline=False)
def add_decimal(cpu, value: u8, total: u16) -> None:
    low = (u16(cpu.a) & 0x0F) + (u16(value) & 0x0F) + u16(cpu.c)
    if low >= 0x0A:
        low = (low + 0x06 & 0x0F) + 0x10
    result = (u16(cpu.a) & 0xF0) + (u16(value) & 0xF0) + low
    cpu.v = (cpu.a ^ u8(result)) & ~(cpu.a ^ value) & 0x80
    cpu.v = cpu.v >> 7
    cpu.n = u8(result)
    cpu.z = u8(total)
    if result >= 0xA0:
        result = result + 0x60
    cpu.c = u8(result >= 0x100)
    cpu.a = u8(result)
    if cpu.has("cmos"):
        set_nz(cpu, cpu.a)


@function
def sbc(cpu, value: u8) -> None:
    if cpu.d == 0:
        add_binary(cpu, ~value, u16(cpu.a) + u16(~value) + u16(cpu.c))
    else:
        subtract_decimal(cpu, value)


@function(inline=False)
def subtract_decimal(cpu, value: u8) -> None:
    before, borrow = cpu.a, u16(1 - cpu.c)
    add_binary(cpu, ~value, u16(before) + u16(~value) + u16(cpu.c))
    low = (u16(before) & 0x0F) - (u16(value) & 0x0F) - borrow
    if cpu.has("cmos"):
        result = u16(before) - u16(value) - borrow
        if result >= 0x8000:
            result = result - 0x60
        if low >= 0x8000:
            result = result - 0x06
        cpu.a = u8(result)
        set_nz(cpu, cpu.a)
    else:
        if low >= 0x8000:
            low = (low - 0x06 & 0x0F) - 0x10
        result = (u16(before) & 0xF0) - (u16(value) & 0xF0) + low
        if result >= 0x8000:
            result = result - 0x60
        cpu.a = u8(result)


# Changes of memory or the accumulator


@function
def asl(cpu, value: u8) -> u8:
    cpu.c = value >> 7
    result = value << 1
    set_nz(cpu, result)
    return result


@function
def lsr(cpu, value: u8) -> u8:
    cpu.c = value & 1
    result = value >> 1
    set_nz(cpu, result)
    return result


@function
def rol(cpu, value: u8) -> u8:
    result = value << 1 | cpu.c
    cpu.c = value >> 7
    set_nz(cpu, result)
    return result


@function
def ror(cpu, value: u8) -> u8:
    result = value >> 1 | cpu.c << 7
    cpu.c = value & 1
    set_nz(cpu, result)
    return result


@function
def inc(cpu, value: u8) -> u8:
    set_nz(cpu, value + 1)
    return value + 1


@function
def dec(cpu, value: u8) -> u8:
    set_nz(cpu, value - 1)
    return value - 1


# Undocumented ones of NMOS: two operations at once. Source: C. Meisl and others, "No More Secrets", NMOS 6510
# Unintended Opcodes.


def both(first: Function, second: Function) -> Function:
    """The operation that changes memory by one, and does another with the result."""

    @function
    def execute(cpu, value: u8) -> u8:
        result = first(cpu, value)
        second(cpu, result)
        return result

    return execute


slo, rla, sre, rra = both(asl, ora), both(rol, and_), both(lsr, eor), both(ror, adc)
dcp, isc = both(dec, cmp), both(inc, sbc)


@function
def lax(cpu, value: u8) -> None:
    cpu.x = value
    lda(cpu, value)


@function
def nop(cpu, value: u8) -> None:
    pass


@function
def las(cpu, value: u8) -> None:
    cpu.s = value & cpu.s
    cpu.x = cpu.s
    lda(cpu, cpu.s)


@function
def anc(cpu, value: u8) -> None:
    and_(cpu, value)
    cpu.c = cpu.a >> 7


@function
def alr(cpu, value: u8) -> None:
    cpu.a = lsr(cpu, cpu.a & value)


@function
def arr(cpu, value: u8) -> None:
    both = cpu.a & value
    result = both >> 1 | cpu.c << 7
    set_nz(cpu, result)
    cpu.v = (result ^ result << 1) >> 6 & 1
    if cpu.d == 0:
        cpu.c = result >> 6 & 1
    else:
        if (both & 0x0F) + (both & 0x01) > 5:
            result = result & 0xF0 | result + 6 & 0x0F
        if u16(both & 0xF0) + u16(both & 0x10) > 0x50:
            result = result + 0x60
            cpu.c = u8(1)
        else:
            cpu.c = u8(0)
    cpu.a = result


@function
def sbx(cpu, value: u8) -> None:
    both = cpu.a & cpu.x
    cpu.c = u8(both >= value)
    cpu.x = both - value
    set_nz(cpu, cpu.x)


@function
def ane(cpu, value: u8) -> None:
    lda(cpu, (cpu.a | MAGIC) & cpu.x & value)


@function
def lxa(cpu, value: u8) -> None:
    lax(cpu, (cpu.a | MAGIC) & value)
