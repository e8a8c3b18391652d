"""Hooks of a VM: with Linux, whose programs run meanwhile, and with small programs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor import hooks
from polyvisor.adl import DescriptionError
from polyvisor.hooks import Field, Registers, Ring, u64
from polyvisor.vm.errors import VMError
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image
from support.programs import POWER_OFF, elf


@pytest.fixture(scope="module")
def vm() -> Iterator[VM]:
    with VM(guest_image(), cpus=2, timeout=60) as machine:
        yield machine


class Events(hooks.State):
    total = Field(u64)
    by = Registers(u64, 512)
    last = Ring(u64, 64)


@hooks.on_write
def writes(hook, size):
    hook.total += 1
    hook.by[size] += 1


@hooks.on_syscall
def calls(hook, number):
    hook.total += 1
    if number < 512:
        hook.by[number] += 1


@hooks.on_trap
def traps(hook, cause, value):
    hook.total += 1
    if cause < 512:
        hook.by[cause] += 1


@hooks.on_instruction
def reached(hook, cpu):
    hook.total += 1
    hook.last.append(cpu.x[11])


@hooks.on_block
def blocks(hook):
    hook.total += 1


LOOP = "i=0; while [ $i -lt {} ]; do i=$((i+1)); done; echo $i"


def test_both_harts_count(vm: VM) -> None:
    with vm.hooks.add(writes, Events) as told:
        outputs = []
        threads = [
            threading.Thread(target=lambda: outputs.append(vm.run(LOOP.format(2000)).stdout)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outputs == ["2000\n", "2000\n"]
    assert told.total == sum(told.by) == sum(int(hart.total) for hart in told.harts) > 100_000
    assert all(int(hart.total) for hart in told.harts)
    assert {size for size, count in enumerate(told.by) if count} == {1, 2, 4, 8}
    before = told.total
    vm.run("true")
    assert told.total == before  # it is out
    told.remove()
    told.reset()
    assert told.total == 0


def test_system_calls_and_traps(vm: VM) -> None:
    with vm.hooks.add((calls, blocks), Events) as called, vm.hooks.add(traps, Events) as trapped:
        vm.run("for i in 1 2 3 4 5 6 7; do umask 77; done")
    # umask, in the numbers of asm-generic; the shell reads the old mask by setting it to 0 and back.
    assert called.by[166] == 3 * 7
    assert sum(called.by) <= trapped.by[8]  # ecall from user mode
    assert trapped.by[13] > 0  # page faults


def test_a_function_of_the_kernel(vm: VM) -> None:
    at = vm.symbols["do_sys_openat2"]
    names: list[str] = []
    with (
        vm.hooks.add(reached, Events, at=at) as compiled,
        vm.hooks.add(lambda event: names.append(event.text(event.cpu.x[11])), on="instruction", at=at) as called,
    ):
        vm.run("cat /etc/passwd")
        assert repr(called) == "<hook instruction>"
    assert "/etc/passwd" in names
    assert compiled.total == len(names) == len(compiled.last)


def test_callbacks_for_system_calls_and_writes(vm: VM) -> None:
    told = []
    with vm.hooks.add(lambda event: told.append((event.number, event.arg0, event.hart)), on="syscall"):
        vm.run("umask 77; umask 22")
    assert [arg for number, arg, _ in told if number == 166] == [0, 0o22, 0o77, 0, 0o77, 0o22]
    with pytest.raises(AttributeError, match="an event syscall has no 'size'; it has number, arg0"):
        hooks_event(vm).size  # noqa: B018


def hooks_event(vm: VM):
    found = []
    with vm.hooks.add(found.append, on="syscall"):
        vm.run("true")
    assert repr(found[0]).startswith("<syscall on hart ")
    return found[0]


def test_a_callback_may_remove_itself_and_cannot_wait_for_its_hart(vm: VM) -> None:
    told, errors = [], []

    def once(event):
        told.append(event)
        added.remove()
        for wait in (vm.pause, lambda: vm.cpu[0].pc, lambda: vm.hooks.add(traps, Events)):
            try:
                wait()
            except VMError as error:
                errors.append(str(error))

    added = vm.hooks.add(once, on="syscall")
    assert vm.run("echo fine").stdout == "fine\n"
    assert len(told) == 1
    assert len(errors) == 3 and all("stand" in error and "still" in error for error in errors)
    while len(vm.hooks):
        time.sleep(0.01)


def test_forks_have_the_hooks_of_their_parent(vm: VM) -> None:
    with vm.hooks.add(calls, Events) as told:
        vm.run("umask 77")
        (fork,) = vm.fork(1)
        try:
            before = fork.hooks[0].total
            assert before >= 3
            assert fork.run("umask 22; echo $?").stdout == "0\n"
            after = fork.hooks[0].total
            assert after > before
            fork.hooks[0].remove()
            assert fork.run("umask 22; echo $?").stdout == "0\n"
            assert len(fork.hooks) == 0
        finally:
            fork.kill()
        assert told.by[166] == 3  # not those of the fork
        assert len(vm.hooks) == 1


def test_what_is_wrong_is_said_at_once(vm: VM) -> None:
    with pytest.raises(ValueError, match="say what <lambda> is called on"):
        vm.hooks.add(lambda event: None)
    with pytest.raises(ValueError, match="there is no event 'writes'; there are instruction, block, read"):
        vm.hooks.add(lambda event: None, on="writes")
    with pytest.raises(ValueError, match="writes says itself what it is called on: write"):
        vm.hooks.add(writes, Events, on="read")
    with pytest.raises(ValueError, match="needs no state"):
        vm.hooks.add(lambda event: None, Events, on="read")
    with pytest.raises(DescriptionError, match=r"test_vm_hooks.py:.*the hook has no state"):
        vm.hooks.add(writes)
    assert len(vm.hooks) == 0
    assert vm.run("echo fine").stdout == "fine\n"


def test_an_error_in_a_callback_stops_the_machine() -> None:
    with VM(guest_image(), timeout=60) as machine:

        def broken(event):
            raise LookupError("of mine")

        machine.hooks.add(broken, on="trap")
        with pytest.raises(LookupError, match="of mine"):
            machine.run("true")


def test_hooks_from_the_start_and_over_a_reset() -> None:
    machine = VM(guest_image(), timeout=60, tier="interpreter")
    told = machine.hooks.add(traps, Events)
    assert told.total == 0
    with machine:
        first = told.total
        assert first > 1000  # the kernel's boot
        machine.restart()
        machine.boot()
        assert machine.run("echo again").stdout == "again\n"
        assert told.total > first + 1000


# Counts in s3 what it does, until it is told to stop by a byte of memory.
COUNTING = """
    li s2, 0x80010000
    li s3, 0
again:
    addi s3, s3, 1
    sd s3, 0(s2)
    lbu t0, 8(s2)
    beqz t0, again
    li a0, 3
""" + POWER_OFF
FLAG = 0x8001_0008


@hooks.on_read
def reads(hook):
    hook.total += 1


def test_counts_are_exact_in_compiled_code(tmp_path: Path) -> None:
    """By the JIT with its workers and caches: without hooks, with them from the start, and without again."""
    program = tmp_path / "counting.elf"
    program.write_bytes(elf(COUNTING))
    for kinds in ((), (writes,), (reached, blocks), ()):
        vm = VM(program=program, memory="16M")
        told = [vm.hooks.add(kind, Events) for kind in kinds]
        vm.start()
        hart = vm.machine.board.harts[0]
        while int(hart.cpu.engine.region_instructions) == 0 and not vm.has_ended(0.02):
            pass
        vm.memory[FLAG] = 1
        vm.wait(60)
        assert vm.exit_code == 3
        turns = int(hart.state.x[19])
        assert turns > 1000
        if kinds == (writes,):
            assert told[0].total == turns + 1  # and what ends the machine
        elif kinds:
            # It may have begun to wait for its end in a loop.
            assert told[0].total == hart.cpu.retired
            assert 0 <= told[1].total - turns < told[0].total - 4 * turns


def test_hooks_that_come_and_go_are_exact(tmp_path: Path) -> None:
    program = tmp_path / "counting.elf"
    program.write_bytes(elf(COUNTING))
    vm = VM(program=program, memory="16M").start()
    for _ in range(6):
        time.sleep(0.05)
        vm.pause()
        first = vm.cpu[0].x[19]
        both = [vm.hooks.add(kind, Events) for kind in (writes, reads)]
        vm.resume()
        while both[0].total < 100_000:  # what is not compiled yet, is first
            time.sleep(0.02)
        vm.pause()
        for each in both:
            each.remove()
        last = vm.cpu[0].x[19]
        vm.resume()
        # It may stand between a store, or a load, and the end of the turn.
        assert all(abs(each.total - (last - first)) <= 1 for each in both)
    vm.kill()
