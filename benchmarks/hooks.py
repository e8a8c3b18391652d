"""What a hook costs for each event: a compiled one and a Python callback here, and Unicorn's Python callback.

    python -m benchmarks.hooks [--seconds 1] [--runs 3] [--json]

The same loop of 7 instructions, with a load and a store, runs with and without a hook that counts; the difference of
the times, divided by the events, is the cost of one. Without Unicorn (``polyvisor[bench]``) its part is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from polyvisor import VM, hooks
from polyvisor.adl.assembler import assemble
from polyvisor.hooks import Field, u64
from polyvisor.isa.riscv import rv64

from .loops import DRAM, LOOPS, elf

LENGTH, BODY = LOOPS["load-store"]
_LOOP = "    la t1, buffer\n    li a0, -1\n    .balign 64\nloop:\n{body}    addi a0, a0, -1\n    bnez a0, loop\n"
_DATA = "stay:\n    j stay\n    .balign 8192\nbuffer:\n    .dword 1, 2, 3, 4\n"
# Events in one turn of the loop.
EVENTS = {"write": 1, "read": 1, "block": 1, "instruction": LENGTH}


class Count(hooks.State):
    """How many events there were."""

    total = Field(u64)


@hooks.on_write
def write(hook, cpu, address: u64, value: u64):
    hook.total = hook.total + 1


@hooks.on_read
def read(hook, cpu, address: u64, value: u64):
    hook.total = hook.total + 1


@hooks.on_block
def block(hook, cpu, address: u64):
    hook.total = hook.total + 1


@hooks.on_instruction
def instruction(hook, cpu, address: u64):
    hook.total = hook.total + 1


HOOKS = {"write": write, "read": read, "block": block, "instruction": instruction}


def code() -> bytes:
    """The endless loop."""
    body = "".join(f"    {line}\n" for line in BODY.splitlines())
    return bytes(assemble(rv64, _LOOP.format(body=body) + _DATA, base=DRAM))


def turn(vm: VM, seconds: float) -> float:
    """Nanoseconds that one turn of the loop takes now."""
    cpu = vm.machine.board.harts[0].cpu
    with vm.paused():
        before, start = cpu.retired, time.perf_counter()
    time.sleep(seconds)
    with vm.paused():
        after, end = cpu.retired, time.perf_counter()
    return (end - start) * 1e9 / (after - before) * LENGTH


def costs(tier: str, runs: int, seconds: float) -> dict[str, list[float]]:
    """The cost of an event in nanoseconds, for compiled hooks and callbacks, by run."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "loop.elf")
        path.write_bytes(elf(code()))
        vm = VM(program=path, memory="64M", tier=tier).start()
        try:
            for _ in range(runs):
                for kind, events in EVENTS.items():
                    time.sleep(0.7)  # regions are compiled
                    plain = turn(vm, seconds)
                    with vm.hooks.add(HOOKS[kind], Count) as count:
                        time.sleep(0.7)
                        hooked = turn(vm, seconds)
                        assert count.total
                    found.setdefault(kind, []).append((hooked - plain) / events)
                    if kind == "write":
                        with vm.hooks.add(lambda event: None, on="write"):
                            time.sleep(0.2)
                            found.setdefault("write, Python", []).append((turn(vm, seconds) - plain) / events)
                        with vm.hooks.add(write, Count, at=range(16)):
                            time.sleep(0.7)
                            found.setdefault("write, elsewhere", []).append((turn(vm, seconds) - plain) / events)
        finally:
            vm.kill()
    return found


def unicorn_costs(runs: int) -> dict[str, list[float]]:
    """The same for Unicorn's callbacks."""
    import unicorn
    from unicorn import riscv_const

    kinds = {
        "write": (unicorn.UC_HOOK_MEM_WRITE, lambda machine, access, address, size, value, data: None),
        "read": (unicorn.UC_HOOK_MEM_READ, lambda machine, access, address, size, value, data: None),
        "block": (unicorn.UC_HOOK_BLOCK, lambda machine, address, size, data: None),
        "instruction": (unicorn.UC_HOOK_CODE, lambda machine, address, size, data: None),
    }
    image = code()
    found: dict[str, list[float]] = {}

    def wall(hook: tuple[int, Callable[..., None]] | None, turns: int) -> float:
        machine = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
        machine.mem_map(DRAM, 1 << 20)
        machine.mem_write(DRAM, image)
        if hook is not None:
            machine.hook_add(*hook)
        stay = DRAM + image.index(bytes(assemble(rv64, "j stay\n", base=0, symbols={"stay": 0})))
        machine.emu_start(DRAM, DRAM + 12)
        machine.reg_write(riscv_const.UC_RISCV_REG_A0, turns)
        start = time.perf_counter()
        machine.emu_start(machine.reg_read(riscv_const.UC_RISCV_REG_PC), stay)
        return time.perf_counter() - start

    for _ in range(runs):
        for kind, events in EVENTS.items():
            turns = 200_000 // events
            plain = wall(None, 20_000_000) / 20_000_000
            found.setdefault(kind, []).append((wall(kinds[kind], turns) / turns - plain) * 1e9 / events)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {tier: costs(tier, options.runs, options.seconds) for tier in ("jit", "interpreter")}
    try:
        results["unicorn"] = unicorn_costs(options.runs)
    except ImportError:
        print("unicorn is not installed: pip install unicorn")
    medians = {who: {kind: round(statistics.median(v), 2) for kind, v in r.items()} for who, r in results.items()}
    if options.json:
        print(json.dumps(medians, indent=2))
        return
    for who, row in medians.items():
        print(f"{who:12} ns for each event: " + ", ".join(f"{kind} {value}" for kind, value in row.items()))


if __name__ == "__main__":
    main()
