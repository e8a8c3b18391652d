"""What a command makes a machine do, counted by functions that are compiled into the code that executes the guest."""

import polyvisor
from polyvisor import hooks
from polyvisor.hooks import Field, Registers, u64


class Counts(hooks.State):
    instructions = Field(u64)
    written = Registers(u64, 9)  # writes by their size in bytes
    traps = Registers(u64, 16)  # by their cause


@hooks.on_instruction
def instruction(hook):
    hook.instructions += 1


@hooks.on_write
def write(hook, size):
    hook.written[size] += 1


@hooks.on_trap
def trap(hook, cause):
    if cause < 16:  # interrupts have the highest bit
        hook.traps[cause] += 1


with polyvisor.VM("debian", cpus=2) as vm:
    with vm.hooks.add([instruction, write, trap], Counts) as counts:
        vm.run("ls -lR /bin", check=True)
    print(f"{counts.instructions} instructions, by hart {[int(hart.instructions) for hart in counts.harts]}")
    print("writes:", {size: count for size, count in enumerate(counts.written) if count})
    print(f"system calls: {counts.traps[8]}, page faults: {sum(counts.traps[12:])}")
    print("plausible:", counts.instructions > sum(counts.written) > 1000 < 20 * counts.traps[8])
