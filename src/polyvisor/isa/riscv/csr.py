"""Control and status registers: the tables that CSR instructions go through, and who may access what.

A register is declared by :func:`csr` (a state member with masks) or by functions for its number in the tables
``CSR_READ`` and ``CSR_WRITE``.  Writes keep what is not writable: all fields are WARL or read-only as the
Privileged Architecture (chapter 2) lists them.
"""

from polyvisor.adl import Function, Table, bit, bits, function, u8, u32, u64

from .architecture import rv64
from .causes import illegal
from .interrupts import take_in_ssip

CSR_READ = Table("CSR_READ")
CSR_WRITE = Table("CSR_WRITE")
NAMES: dict[str, int] = {}
EVERY = 2**64 - 1


@CSR_READ.otherwise
def read_unknown(cpu) -> u64:
    """No such register."""
    illegal(cpu)
    return u64(0)


@CSR_WRITE.otherwise
def write_unknown(cpu, value: u64):
    """No such register."""
    illegal(cpu)


def name_csr(number: int, name: str) -> None:
    """Let assembly call a register by name."""
    NAMES[name] = number


def csr(number: int, name: str, member: str, *, writable: int = EVERY, constant: int = 0) -> None:
    """A register kept in a state member: only ``writable`` bits change; ``constant`` bits always read 1."""
    name_csr(number, name)

    def read(cpu) -> u64:
        return getattr(cpu, member) | constant if constant else getattr(cpu, member)

    def write(cpu, value: u64):
        setattr(cpu, member, value if writable == EVERY else value & writable)

    CSR_READ.entry(number)(read)
    CSR_WRITE.entry(number)(write)


def constant_csr(number: int, name: str, value: int = 0) -> None:
    """A register with one legal value: writes change nothing."""
    name_csr(number, name)

    def read(cpu) -> u64:
        return u64(value)

    def write(cpu, value: u64):
        pass

    CSR_READ.entry(number)(read)
    CSR_WRITE.entry(number)(write)


def csr_functions(number: int, name: str, read: Function, write: Function | None = None) -> None:
    """A register with functions of its own; without ``write``, a read-only one."""
    name_csr(number, name)
    CSR_READ.entry(number)(read)
    if write is not None:
        CSR_WRITE.entry(number)(write)


@function
def check_access(cpu, number: u32, writes):
    """Raise unless the register may be accessed from here: privilege in bits 9:8, read-only if 11:10 are 3 (2.1)."""
    if bits(number, 9, 8) > u32(cpu.privilege):
        illegal(cpu)
    if writes and bits(number, 11, 10) == 3:
        illegal(cpu)


# Each table is gone through in one place, because that is most of what there is to compile.


@function(inline=False)
def value_of(cpu, number: u32) -> u64:
    """A register's value."""
    return CSR_READ[number](cpu)


@function(inline=False)
def set_value(cpu, number: u32, value: u64):
    """Write a register."""
    CSR_WRITE[number](cpu, value)
    cpu.note("csr_write", number, value)


@function(inline=False)
def read_csr(cpu, number: u32) -> u64:
    """A register's value for a CSR instruction that does not write."""
    check_access(cpu, number, False)
    return value_of(cpu, number)


@function(inline=False)
def exchange_csr(cpu, number: u32, operation: u32, operand: u64) -> u64:
    """Write (0), set bits (1) or clear bits (2); gives the old value."""
    check_access(cpu, number, True)
    old = value_of(cpu, number)
    # What the platform drives is not written back by setting and clearing (3.1.9).
    base = old
    if number == 0x344 or number == 0x144:
        base = cpu.mip
    new = operand
    if operation == 1:
        new = base | operand
    elif operation == 2:
        new = base & ~operand
    set_value(cpu, number, new)
    return old


@function(inline=False)
def write_csr(cpu, number: u32, value: u64):
    """Write a register without reading it."""
    check_access(cpu, number, True)
    if number == 0x344 or number == 0x144:
        take_in_ssip(cpu)
    set_value(cpu, number, value)


# Zicsr (Unprivileged ISA, "Zicsr")


@rv64.instruction("csr:12 rs1:5 001 rd:5 1110011", "csrrw {rd}, {csr}, {rs1}", extension="Zicsr")
def csrrw(cpu, rd, rs1, csr):
    """Exchange; with rd = x0 the register is not read."""
    if rd == 0:
        write_csr(cpu, csr, cpu.x[rs1])
    else:
        cpu.x[rd] = exchange_csr(cpu, csr, 0, cpu.x[rs1])


@rv64.instruction("csr:12 rs1:5 010 rd:5 1110011", "csrrs {rd}, {csr}, {rs1}", extension="Zicsr")
def csrrs(cpu, rd, rs1, csr):
    """Read and set bits; with rs1 = x0 the register is not written."""
    if rs1 == 0:
        cpu.x[rd] = read_csr(cpu, csr)
    else:
        cpu.x[rd] = exchange_csr(cpu, csr, 1, cpu.x[rs1])


@rv64.instruction("csr:12 rs1:5 011 rd:5 1110011", "csrrc {rd}, {csr}, {rs1}", extension="Zicsr")
def csrrc(cpu, rd, rs1, csr):
    """Read and clear bits; with rs1 = x0 the register is not written."""
    if rs1 == 0:
        cpu.x[rd] = read_csr(cpu, csr)
    else:
        cpu.x[rd] = exchange_csr(cpu, csr, 2, cpu.x[rs1])


@rv64.instruction("csr:12 imm:5 101 rd:5 1110011", "csrrwi {rd}, {csr}, {imm}", extension="Zicsr")
def csrrwi(cpu, rd, csr, imm: u64):
    """Exchange with an immediate; with rd = x0 the register is not read."""
    if rd == 0:
        write_csr(cpu, csr, imm)
    else:
        cpu.x[rd] = exchange_csr(cpu, csr, 0, imm)


@rv64.instruction("csr:12 imm:5 110 rd:5 1110011", "csrrsi {rd}, {csr}, {imm}", extension="Zicsr")
def csrrsi(cpu, rd, csr, imm: u64):
    """Read and set bits of an immediate; 0 does not write."""
    if imm == 0:
        cpu.x[rd] = read_csr(cpu, csr)
    else:
        cpu.x[rd] = exchange_csr(cpu, csr, 1, imm)


@rv64.instruction("csr:12 imm:5 111 rd:5 1110011", "csrrci {rd}, {csr}, {imm}", extension="Zicsr")
def csrrci(cpu, rd, csr, imm: u64):
    """Read and clear bits of an immediate; 0 does not write."""
    if imm == 0:
        cpu.x[rd] = read_csr(cpu, csr)
    else:
        cpu.x[rd] = exchange_csr(cpu, csr, 2, imm)


# Floating-point control and status (Unprivileged ISA, "F", 20.2)

_FS = 3 << 13


@function
def need_fp(cpu):
    """Illegal while mstatus.FS is off."""
    if cpu.mstatus & _FS == 0:
        illegal(cpu)


@function
def read_fflags(cpu) -> u64:
    need_fp(cpu)
    return u64(cpu.fflags)


@function
def write_fflags(cpu, value: u64):
    need_fp(cpu)
    cpu.mstatus = cpu.mstatus | _FS
    cpu.fflags = u8(value & 31)


@function
def read_frm(cpu) -> u64:
    need_fp(cpu)
    return u64(cpu.frm)


@function
def write_frm(cpu, value: u64):
    need_fp(cpu)
    cpu.mstatus = cpu.mstatus | _FS
    cpu.frm = u8(value & 7)


@function
def read_fcsr(cpu) -> u64:
    need_fp(cpu)
    return u64(cpu.frm) << 5 | u64(cpu.fflags)


@function
def write_fcsr(cpu, value: u64):
    need_fp(cpu)
    cpu.mstatus = cpu.mstatus | _FS
    cpu.fflags = u8(value & 31)
    cpu.frm = u8(bits(value, 7, 5))


csr_functions(0x001, "fflags", read_fflags, write_fflags)
csr_functions(0x002, "frm", read_frm, write_frm)
csr_functions(0x003, "fcsr", read_fcsr, write_fcsr)

# Counters (Unprivileged ISA, "Zicntr" and "Zihpm"; Privileged Architecture 3.1.10 to 3.1.12)

CY, TM, IR = 0, 1, 2


@function
def check_counter(cpu, number: u64):
    """Below machine mode mcounteren, and in user mode scounteren too, must allow the counter."""
    if cpu.privilege != 3 and (cpu.mcounteren >> number) & 1 == 0:
        illegal(cpu)
    if cpu.privilege == 0 and (cpu.scounteren >> number) & 1 == 0:
        illegal(cpu)


@function
def count_cycles(cpu) -> u64:
    """mcycle: one per instruction."""
    return cpu.cycle_base if bit(cpu.mcountinhibit, CY) else cpu.cycle_base + cpu.instructions()


@function
def count_instructions(cpu) -> u64:
    """minstret."""
    return cpu.instret_base if bit(cpu.mcountinhibit, IR) else cpu.instret_base + cpu.instructions()


@function
def read_cycle(cpu) -> u64:
    check_counter(cpu, CY)
    return count_cycles(cpu)


@function
def read_time(cpu) -> u64:
    check_counter(cpu, TM)
    return cpu.clock()


@function
def read_instret(cpu) -> u64:
    check_counter(cpu, IR)
    return count_instructions(cpu)


@function
def read_hpmcounter(number: u32, cpu) -> u64:
    check_counter(cpu, u64(number & 31))
    return u64(0)


# An instruction that writes a counter is not counted by it: what it writes is read back by the next one.


@function
def write_mcycle(cpu, value: u64):
    cpu.cycle_base = value if bit(cpu.mcountinhibit, CY) else value - cpu.instructions() - 1


@function
def write_minstret(cpu, value: u64):
    cpu.instret_base = value if bit(cpu.mcountinhibit, IR) else value - cpu.instructions() - 1


@function
def read_mcountinhibit(cpu) -> u64:
    return cpu.mcountinhibit


@function
def write_mcountinhibit(cpu, value: u64):
    cycles, instructions = count_cycles(cpu), count_instructions(cpu)
    cpu.mcountinhibit = value & (1 << CY | 1 << IR)
    cpu.cycle_base = cycles if bit(value, CY) else cycles - cpu.instructions()
    cpu.instret_base = instructions if bit(value, IR) else instructions - cpu.instructions()


csr_functions(0xC00, "cycle", read_cycle)
csr_functions(0xC01, "time", read_time)
csr_functions(0xC02, "instret", read_instret)
csr_functions(0xB00, "mcycle", count_cycles, write_mcycle)
csr_functions(0xB02, "minstret", count_instructions, write_minstret)
csr_functions(0x320, "mcountinhibit", read_mcountinhibit, write_mcountinhibit)
CSR_READ.entry(*range(0xC03, 0xC20))(read_hpmcounter)
for _n in range(3, 32):
    name_csr(0xC00 + _n, f"hpmcounter{_n}")
    constant_csr(0xB00 + _n, f"mhpmcounter{_n}")
    constant_csr(0x320 + _n, f"mhpmevent{_n}")
