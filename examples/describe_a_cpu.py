"""Describe a 16-bit CPU, assemble a program for it, and run it in both tiers."""

from polyvisor.adl import Architecture, Field, Registers, State, Trap, i16, u16, u32, u64
from polyvisor.adl.assembler import assemble
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.executor import ReferenceExecutor
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code

toy = Architecture("toy16", byte_order="big", unit=2, max_length=4, default_kinds={"rd": "r", "rs": "r"})
toy.kind("r", [f"r{i}" for i in range(8)])
toy.kind("pc", pc=True)
toy.reasons += ["halt", "trap"]


@toy.state
class Cpu16(State):
    """Eight registers of 16 bits; the engine wants the program counter to have 64."""

    pc = Field(u64)
    r = Registers(u16, 8)


@toy.instruction("0001 rd:4 rs:4 xxxx", "add {rd}, {rs}")
def add(cpu, rd, rs):
    cpu.r[rd & 7] = cpu.r[rd & 7] + cpu.r[rs & 7]


@toy.instruction("0010 rd:4 xxxxxxxx / imm:16", "addi {rd}, {imm}")
def addi(cpu, rd, imm: i16):
    cpu.r[rd & 7] = cpu.r[rd & 7] + u16(imm)


@toy.instruction("0011 rs:4 distance:8", "bnz {rs}, {distance:pc}")
def bnz(cpu, rs, distance: i16):
    if cpu.r[rs & 7] != 0:
        cpu.next_pc = (cpu.pc + u64(distance)) & 0xFFFF


@toy.instruction("0100 rd:4 rs:4 xxxx", "store {rd}, {rs}")
def store(cpu, rd, rs):
    cpu.store(u16, u64(cpu.r[rd & 7]), cpu.r[rs & 7])


@toy.instruction("11111111 11111111", "halt")
def halt(cpu):
    cpu.leave("halt")


@toy.hook("on_illegal")
def on_illegal(cpu, word: u64):
    raise Trap(1)


@toy.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32):
    raise Trap(2)


@toy.hook("on_trap")
def on_trap(cpu, cause: u64):
    cpu.leave("trap")


program = assemble(
    toy,
    """
        addi  r1, 300        # how far
    loop:
        add   r2, r1         # the sum so far, modulo 65536
        addi  r1, -1
        bnz   r1, loop
        addi  r3, 0x800
        store r3, r2
        halt
    """,
)


def main() -> None:
    """Run the program in the reference executor and natively, and print what each computed."""
    for tier in ("reference", "interpreter"):
        memory = Memory()
        memory.add_ram(0, 0x1000)
        memory.write(0, program.bytes)
        cpu: ReferenceExecutor | Cpu
        if tier == "reference":
            cpu = ReferenceExecutor(toy, memory)
        else:
            code = native_code(toy)
            cpu = Cpu(code, memory, CodePages(code, memory, limit=16))
        found = cpu.run()
        stored = int.from_bytes(memory.read(0x800, 2), "big")
        print(f"{tier}: {found.reason} after {cpu.retired} instructions, r2 = {int(cpu.state.r[2])}, stored {stored}")


if __name__ == "__main__":
    main()
