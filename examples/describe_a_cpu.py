"""Describe a small CPU, assemble a program for it, and run it in both tiers."""

from polyvisor.adl import Architecture, Field, Registers, State, Trap, i32, u32, u64
from polyvisor.adl.assembler import assemble
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.executor import ReferenceExecutor
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code

toy = Architecture("toy", unit=4, max_length=4, default_kinds={"rd": "r", "ra": "r", "rb": "r"})
toy.kind("r", [f"r{i}" for i in range(16)])
toy.kind("pc", pc=True)


@toy.state
class Cpu16(State):
    """Sixteen registers; r0 is zero."""

    pc = Field(u64)
    r = Registers(u32, 16, zero=0)


@toy.instruction("00000001 rd:4 ra:4 rb:4 xxxx xxxxxxxx", "add {rd}, {ra}, {rb}")
def add(cpu, rd, ra, rb):
    cpu.r[rd] = cpu.r[ra] + cpu.r[rb]


@toy.instruction("00000010 rd:4 ra:4 imm:16", "addi {rd}, {ra}, {imm}")
def addi(cpu, rd, ra, imm: i32):
    cpu.r[rd] = cpu.r[ra] + u32(imm)


@toy.instruction("00000011 ra:4 rb:4 imm:16", "bne {ra}, {rb}, {imm:pc}")
def bne(cpu, ra, rb, imm: i32):
    if cpu.r[ra] != cpu.r[rb]:
        cpu.next_pc = cpu.pc + u64(imm)


@toy.instruction("00000100 xxxxxxxx xxxxxxxx xxxxxxxx", "halt")
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


toy.reasons += ["halt", "trap"]

program = assemble(
    toy,
    """
        addi r1, r0, 1000    # how far
    loop:
        add  r2, r2, r1      # the sum so far
        addi r1, r1, -1
        bne  r1, r0, loop
        halt
    """,
)


def main() -> None:
    """Run the program in the reference executor and natively, and print what each computed."""
    for tier in ("reference", "interpreter"):
        memory = Memory()
        memory.add_ram(0, 0x1000)
        memory.write(0, program.bytes)
        if tier == "reference":
            cpu = ReferenceExecutor(toy, memory)
        else:
            code = native_code(toy)
            cpu = Cpu(code, memory, CodePages(code, memory, limit=16))
        found = cpu.run()
        print(f"{tier}: {found.reason} after {cpu.retired} instructions, r2 = {int(cpu.state.r[2])}")


if __name__ == "__main__":
    main()
