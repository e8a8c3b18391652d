"""RISC-V F and D under the reference executor, against QEMU, and by the text of the specification."""

import random
import shutil
import struct
import subprocess

import pytest

import polyvisor.isa.riscv.compressed_float
import polyvisor.isa.riscv.double
import polyvisor.isa.riscv.float
import polyvisor.isa.riscv.state  # noqa: F401
from polyvisor.adl import Trap, u64
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.riscv import rv64 as full_rv64
from polyvisor.isa.riscv.architecture import rv64

QEMU = shutil.which("qemu-riscv64")
BOX = 0xFFFF_FFFF_0000_0000
MASK = 2**64 - 1
FS_SHIFT = 13

# The guest program's memory: code, a record per item, what it dumps, and a page that loads and stores use.
CODE, RECORDS, OUTPUT, SCRATCH = 0x10000, 0x800000, 0xC00000, 0x1000000
SCRATCH_SIZE = 2 * 4096  # from its middle, what an immediate reaches, and the bytes of the last access

ITEMS = [
    i for i in rv64.instructions
    if i.extension in ("F", "D") or i.name in ("c.fld", "c.fsd", "c.fldsp", "c.fsdsp")
]


def new_cpu():
    memory = Memory()
    memory.add_ram(SCRATCH, SCRATCH_SIZE)
    cpu = reference_cpu(rv64, memory)
    cpu.mstatus = 1 << FS_SHIFT
    return cpu


def execute(cpu, code):
    """run the instruction in the bytes ``code`` on ``cpu``"""
    cpu.word = int.from_bytes(code, "little")
    found = rv64.decode(cpu.word)
    assert found is not None, code.hex()
    values = found.operand_values(cpu.word)
    found.function.python(cpu, *(t(values[name]) for name, t in found.types.items()))


def encode(name, **values):
    (found,) = rv64.named(name)
    return found.encoding.encode(values)


def pattern32(rng):
    e = rng.choice([0, 0, 1, 2, 254, 255, rng.randrange(256), 127 + rng.randrange(-30, 70), 127 + rng.randrange(-3, 4)])
    f = rng.choice([0, 1, 2**23 - 1, 2**22, 2**22 - 1, rng.getrandbits(23), rng.getrandbits(6) << rng.randrange(17)])
    return rng.getrandbits(1) << 31 | e << 23 | f & 2**23 - 1


def pattern64(rng):
    e = rng.choice([0, 0, 1, 2, 2046, 2047, rng.randrange(2048), 1023 + rng.randrange(-60, 70),
                    1023 + rng.randrange(-3, 4), 1023 + rng.choice([-149, -127, -126, -125, 127, 128])])
    f = rng.choice([0, 1, 2**52 - 1, 2**51, 2**51 - 1, rng.getrandbits(52), rng.getrandbits(6) << rng.randrange(46),
                    2**28, 2**29 - 1, rng.getrandbits(23) << 29, rng.getrandbits(23) << 29 | 2**28])
    return rng.getrandbits(1) << 63 | e << 52 | f


def operand(rng, single):
    if single and rng.random() < 0.9:
        return pattern32(rng) | BOX
    if rng.random() < 0.1:
        return pattern32(rng) | rng.getrandbits(32) << 32
    return pattern64(rng)


def integer(rng):
    return rng.choice([
        rng.getrandbits(64), rng.getrandbits(64) >> rng.randrange(64), -(rng.getrandbits(63) >> rng.randrange(63)),
        (1 << rng.randrange(64)) + rng.randrange(-2, 3), 0, 1, -1,
    ]) & MASK


class Item:
    """One instruction with what is in its registers before."""

    def __init__(self, instruction, rng):
        self.instruction = instruction
        kinds = dict(part for part in instruction.syntax.parts if not isinstance(part, str))
        memory = any(name in kinds for name in ("imm", "uimm"))
        self.values, self.loads = {}, []  # loads: (kind, register, value), made in this order
        single = instruction.name.endswith(".s")
        for o in instruction.encoding.operands:
            if o.name == "rm":
                self.values["rm"] = rng.choice([0, 0, 1, 2, 3, 4, 7, 7])
            elif o.name in ("imm", "uimm"):
                top = 1 << o.bits - o.signed
                self.values[o.name] = rng.randrange(-top if o.signed else 0, top, 8 if o.name == "uimm" else 4)
            else:
                low, high = (8, 16) if o.add else (0, 32)
                if kinds[o.name] == "x":
                    low = 10
                number = rng.randrange(low, high)
                if kinds[o.name] == "x" and o.name == "rd" and rng.random() < 0.05:
                    number = 0
                self.values[o.name] = number
                if kinds[o.name] == "f" and o.name != "rd":
                    self.loads.append(("f", number, operand(rng, single)))
                elif o.name != "rd":
                    self.loads.append(("x", number, SCRATCH + SCRATCH_SIZE // 2 if memory else integer(rng)))
        if "sp" in instruction.name:
            self.loads.append(("x", 2, SCRATCH + SCRATCH_SIZE // 2))
        self.result = (kinds["rd"], self.values["rd"]) if "rd" in kinds else ("x", 0)
        self.frm = rng.randrange(5)
        self.flags = rng.choice([0, 0, 1, 1, rng.getrandbits(5)])
        self.code = instruction.encoding.encode(self.values)

    def __str__(self):
        return (
            f"{rv64.disassemble(int.from_bytes(self.code, 'little'))} frm {self.frm} fflags {self.flags:05b} "
            f"with {[(k + str(n), hex(v)) for k, n, v in self.loads]}"
        )


# Instructions of the program around the items, by the manual's encodings (no part of what is tested).


def i_type(opcode, funct3, rd, rs1, imm):
    return struct.pack("<I", (imm & 0xFFF) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode)


def s_type(opcode, funct3, rs2, rs1, imm):
    return struct.pack("<I", (imm >> 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (imm & 31) << 7 | opcode)


def li(rd, value):
    upper = value + 0x800 >> 12
    return struct.pack("<I", upper << 12 | rd << 7 | 0x37) + i_type(0x13, 0, rd, rd, value - (upper << 12))


FCSR = 3


def program(items):
    """an ELF executable that runs the items and writes three words for each of them, then the scratch page"""
    code, records = bytearray(), bytearray()
    code += li(5, RECORDS) + li(9, OUTPUT)
    for item in items:
        start = len(records)
        for kind, number, value in [*item.loads, ("x", 6, item.frm << 5 | item.flags)]:
            code += i_type(0x03 if kind == "x" else 0x07, 3, number, 5, len(records) - start)
            records += struct.pack("<Q", value)
        code += i_type(0x73, 1, 0, 6, FCSR)
        code += item.code
        kind, number = item.result
        code += s_type(0x23 if kind == "x" else 0x27, 3, number, 9, 0)
        code += i_type(0x73, 2, 6, 0, FCSR) + s_type(0x23, 3, 6, 9, 8)
        code += i_type(0x13, 0, 9, 9, 16) + i_type(0x13, 0, 5, 5, len(records) - start)
    for address, length in ((OUTPUT, 16 * len(items)), (SCRATCH, SCRATCH_SIZE)):
        code += li(10, 1) + li(11, address) + li(12, length) + li(17, 64) + struct.pack("<I", 0x73)
    code += li(10, 0) + li(17, 94) + struct.pack("<I", 0x73)
    segments = [(CODE, bytes(code)), (RECORDS, bytes(records)), (OUTPUT, bytes(16 * len(items))),
                (SCRATCH, scratch())]
    offset = 0x1000
    headers, body = b"", b""
    for address, data in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), address, address, len(data), len(data), 0x1000)
        body += data + bytes(-len(data) % 0x1000)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    flags = 5  # compressed instructions, double-precision registers
    header += struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, CODE, 64, 0, flags, 64, 56, len(segments), 0, 0, 0)
    return (header + headers).ljust(0x1000, b"\0") + body


def scratch():
    return random.Random("scratch").randbytes(SCRATCH_SIZE)


def compare(items, directory):
    path = directory / "program"
    path.write_bytes(program(items))
    path.chmod(0o755)
    done = subprocess.run([QEMU, str(path)], capture_output=True, timeout=60)
    assert done.returncode == 0, done
    assert len(done.stdout) == 16 * len(items) + SCRATCH_SIZE
    cpu = new_cpu()
    cpu.memory.write(SCRATCH, scratch())
    wrong = []
    for n, item in enumerate(items):
        for kind, number, value in item.loads:
            (cpu.x if kind == "x" else cpu.f)[number] = value
        cpu.frm, cpu.fflags = item.frm, item.flags
        cpu.mstatus = 1 << FS_SHIFT
        execute(cpu, item.code)
        kind, number = item.result
        ours = int((cpu.x if kind == "x" else cpu.f)[number]), int(cpu.frm << 5 | cpu.fflags)
        theirs = struct.unpack_from("<QQ", done.stdout, 16 * n)
        if ours != theirs:
            wrong.append(f"{item}: {ours[0]:#x} {ours[1]:08b}, QEMU {theirs[0]:#x} {theirs[1]:08b}")
        dirty = int(cpu.mstatus) >> FS_SHIFT == 3
        if dirty != (kind == "f" or cpu.fflags != item.flags) and not (dirty and item.flags):
            wrong.append(f"{item}: FS is {int(cpu.mstatus) >> FS_SHIFT}")
    assert not wrong, f"{len(wrong)} of {len(items)}:\n" + "\n".join(wrong[:20])
    assert cpu.memory.read(SCRATCH, SCRATCH_SIZE) == done.stdout[16 * len(items) :]
    natively = run_natively(path.read_bytes())
    for n, item in enumerate(items):
        ours, theirs = (struct.unpack_from("<QQ", output, 16 * n) for output in (natively, done.stdout))
        if ours != theirs:
            wrong.append(f"{item}: native {ours[0]:#x} {ours[1]:08b}, QEMU {theirs[0]:#x} {theirs[1]:08b}")
    assert not wrong, f"{len(wrong)} of {len(items)}:\n" + "\n".join(wrong[:20])
    assert natively == done.stdout


def run_natively(program):
    """what the program writes, by polyvisor's native interpreter"""
    memory = Memory()
    for _, _, offset, address, _, size, _, _ in struct.iter_unpack("<IIQQQQQQ", program[64 : 64 + 56 * 4]):
        memory.add_ram(address, -(-size // 4096) * 4096)
        memory.write(address, program[offset : offset + size])
    code = native_code(full_rv64)
    cpu = Cpu(code, memory, CodePages(code, memory, 512))
    cpu.state.pc, cpu.state.mstatus, cpu.state.mtvec = CODE, 1 << FS_SHIFT, 0
    output = b""
    # Each system call becomes a wfi, which leaves.
    data = memory.read(CODE, memory.ram[0].size)
    for call in (64, 94):
        wanted, instead = (li(17, call) + struct.pack("<I", word) for word in (0x73, 0x1050_0073))
        data = data.replace(wanted, instead)
    memory.write(CODE, data)
    while True:
        found = cpu.run(50_000_000)
        assert found.reason == "wfi" and cpu.state.mcause == 0, (found, cpu.state.values())
        if cpu.state.x[17] == 94:
            memory.close()
            return output
        output += memory.read(int(cpu.state.x[11]), int(cpu.state.x[12]))


@pytest.mark.skipif(QEMU is None, reason="needs qemu-riscv64")
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 20))])
def test_against_qemu(seed, tmp_path):
    rng = random.Random(seed)
    items = [Item(instruction, rng) for instruction in ITEMS for _ in range(60)]
    rng.shuffle(items)
    compare(items, tmp_path)


def test_all_instructions_are_there():
    names = {i.name for i in ITEMS}
    per_format = "fmadd fmsub fnmsub fnmadd fadd fsub fmul fdiv fsqrt fsgnj fsgnjn fsgnjx fmin fmax feq flt fle fclass"
    expected = {f"{n}.{x}" for n in per_format.split() for x in "sd"}
    expected |= {f"fcvt.{t}.{x}" for t in ("w", "wu", "l", "lu") for x in "sd"}
    expected |= {f"fcvt.{x}.{t}" for t in ("w", "wu", "l", "lu") for x in "sd"}
    expected |= {"flw", "fsw", "fld", "fsd", "fcvt.s.d", "fcvt.d.s", "fmv.x.w", "fmv.w.x", "fmv.x.d", "fmv.d.x"}
    assert names == expected | {"c.fld", "c.fsd", "c.fldsp", "c.fsdsp"}


def sample(instruction, **given):
    values = {o.name: 8 if o.add else 0 for o in instruction.encoding.operands}
    return instruction.encoding.encode({**values, **given})


@pytest.mark.parametrize("instruction", ITEMS, ids=lambda i: i.name)
def test_illegal_when_off(instruction):
    cpu = new_cpu()
    cpu.mstatus = 0
    cpu.f[0] = 0x1234
    before = cpu.values()
    code = sample(instruction)
    with pytest.raises(Trap) as trap:
        execute(cpu, code)
    assert trap.value.values == (2, int.from_bytes(code, "little"))
    assert cpu.values() == before


@pytest.mark.parametrize("instruction", [i for i in ITEMS if "rm" in i.types], ids=lambda i: i.name)
@pytest.mark.parametrize(("rm", "frm"), [(5, 0), (6, 0), (7, 5), (7, 6), (7, 7)])
def test_illegal_rounding_mode(instruction, rm, frm):
    # Exact and inexact operands, and both states of the inexact flag.
    for value in (0, MASK, 0x3FD5_5555_5555_5555, 0xFFFF_FFFF_3EAA_AAAB):
        for flags in (0, 1):
            cpu = new_cpu()
            cpu.f[0], cpu.x[10], cpu.frm, cpu.fflags = value, value, frm, flags
            before = {**cpu.values(), "mstatus": None}
            given = {n: 10 for n, k in (p for p in instruction.syntax.parts if not isinstance(p, str)) if k == "x"}
            with pytest.raises(Trap) as trap:
                execute(cpu, sample(instruction, rm=rm, **given))
            assert trap.value.values[0] == 2
            assert {**cpu.values(), "mstatus": None} == before
            cpu.frm = 0 if rm == 7 else frm
            if rm == 7:
                execute(cpu, sample(instruction, rm=rm, **given))


def test_other_mstatus_bits_stay():
    cpu = new_cpu()
    cpu.mstatus = 0xA_0000_2088
    execute(cpu, encode("fmv.d.x", rd=1, rs1=0))
    assert cpu.mstatus == 0xA_0000_6088


@pytest.mark.parametrize(
    ("word", "text"),
    [
        # Words from the encodings in the manual, as GNU as writes them.
        (0x0031_7053, "fadd.s ft0, ft2, ft3"),
        (0x0231_0053, "fadd.d ft0, ft2, ft3, rne"),
        (0x2031_70C3, "fmadd.s ft1, ft2, ft3, ft4"),
        (0x5801_7053, "fsqrt.s ft0, ft2"),
        (0xC201_1553, "fcvt.w.d a0, ft2, rtz"),
        (0xF205_0053, "fmv.d.x ft0, a0"),
        (0xE001_0553, "fmv.x.w a0, ft2"),
        (0x4201_0053, "fcvt.d.s ft0, ft2, rne"),
        (0xA231_2553, "feq.d a0, ft2, ft3"),
        (0xFF01_3087, "fld ft1, -16(sp)"),
        (0x0011_3827, "fsd ft1, 16(sp)"),
        (0x2588, "c.fld fa0, 8(a1)"),
        (0xA58C, "c.fsd fa1, 8(a1)"),
        (0x2542, "c.fldsp fa0, 16(sp)"),
        (0xA82A, "c.fsdsp fa0, 16(sp)"),
    ],
)
def test_disassembly(word, text):
    assert rv64.disassemble(word) == text


def test_boxes():
    cpu = new_cpu()
    cpu.f[1], cpu.f[2] = 0x3F80_0000, BOX | 0x3F80_0000
    execute(cpu, encode("fadd.s", rd=3, rs1=1, rs2=2, rm=0))
    assert cpu.f[3] == BOX | 0x7FC0_0000
    execute(cpu, encode("fsgnj.s", rd=3, rs1=1, rs2=2))
    assert cpu.f[3] == BOX | 0x7FC0_0000
    execute(cpu, encode("fclass.s", rd=5, rs1=1))
    assert cpu.x[5] == 1 << 9
    # Moves and stores take the bits as they are.
    execute(cpu, encode("fmv.x.w", rd=5, rs1=1))
    assert cpu.x[5] == 0x3F80_0000
    cpu.x[6] = SCRATCH
    execute(cpu, encode("fsw", rs2=1, rs1=6, imm=4))
    assert cpu.load(u64, u64(SCRATCH)) == 0x3F80_0000 << 32
    execute(cpu, encode("flw", rd=4, rs1=6, imm=4))
    assert cpu.f[4] == BOX | 0x3F80_0000
