"""A stack machine of our own: described, assembled for, and run in every tier. See docs/describe-a-cpu.md."""

from polyvisor.adl import Architecture, Field, State, Trap, function, i8, u8, u32, u64
from polyvisor.adl.assembler import assemble
from polyvisor.engine.bare import BareMachine

# Not in a page with code: writes to one take longer, as the engine looks whether they change the program.
STACK, VARIABLES = 0x1000, 0x2000

stack = Architecture("stack", max_length=2)
stack.kind("target", pc=True, after=2)
stack.reasons += ["halt", "illegal"]


@stack.state
class Stack(State):
    """Where it executes, and where the next free place of the stack is: numbers of 32 bits, growing upwards."""

    pc = Field(u64)
    sp = Field(u64, reset=STACK)


@function
def push(cpu, value: u32) -> None:
    cpu.store(u32, cpu.sp, value)
    cpu.sp = cpu.sp + 4


@function
def pop(cpu) -> u32:
    value = cpu.load(u32, cpu.sp - 4)
    cpu.sp = cpu.sp - 4
    return value


@stack.instruction("00000001 / value:8", "push {value}")
def push_value(cpu, value: i8):
    push(cpu, u32(value))


@stack.instruction("00000010", "add")
def add(cpu):
    right = pop(cpu)
    push(cpu, pop(cpu) + right)


@stack.instruction("00000011", "mul")
def mul(cpu):
    right = pop(cpu)
    push(cpu, pop(cpu) * right)


@stack.instruction("00000100 / slot:8", "load {slot}")
def load(cpu, slot: u8):
    push(cpu, cpu.load(u32, u64(slot) * 4 + VARIABLES))


@stack.instruction("00000101 / slot:8", "store {slot}")
def store(cpu, slot: u8):
    cpu.store(u32, u64(slot) * 4 + VARIABLES, pop(cpu))


@stack.instruction("00000110 / target:8", "jnz {target:target}")
def jnz(cpu, target: i8):
    if pop(cpu) != 0:
        cpu.next_pc = cpu.next_pc + u64(target)


@stack.instruction("00000000", "halt")
def halt(cpu):
    cpu.leave("halt")


@stack.hook("on_illegal")
def on_illegal(cpu, word: u64):
    raise Trap(1)


@stack.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32):
    raise Trap(2)


@stack.hook("on_trap")
def on_trap(cpu, cause: u64):
    cpu.leave("illegal")


PROGRAM = """
        push 1
        store 0         # the product so far; in slot 1 is how many factors remain
    next:
        load 0
        push 3
        mul
        store 0
        load 1
        push -1
        add
        store 1
        load 1
        jnz next
        load 0
        halt
"""


def power(tier: str, exponent: int) -> int:
    """A power of 3, modulo 2**32."""
    with BareMachine(stack, tier=tier) as machine:
        machine.load(assemble(stack, PROGRAM).bytes)
        machine.memory.write(VARIABLES + 4, exponent.to_bytes(4, "little"))
        found = machine.run()
        result = int.from_bytes(machine.memory.read(STACK, 4), "little")
        if machine.regions is not None:
            print(f"{int(machine.cpu.engine.region_instructions)} instructions in compiled regions")
        print(f"{tier}: {found.reason} after {machine.cpu.retired} instructions, {result}")
        assert result == pow(3, exponent, 2**32)
        return result


if __name__ == "__main__":
    power("reference", 100)
    power("interpreter", 3_000_000)
    power("jit", 30_000_000)
