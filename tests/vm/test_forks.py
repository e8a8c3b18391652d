"""Forks: copies of a running machine, each in a process of its own."""

from __future__ import annotations

import errno
import gc
import http.server
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor import VM
from polyvisor.engine.regions.compile import RegionCompiler
from polyvisor.isa.riscv import rv64
from polyvisor.network.switch import Switch
from polyvisor.vm.equipment import Disk
from polyvisor.vm.errors import ForkError, StoppedError, VMError, VMTimeoutError
from polyvisor.vm.forks import fork as fork_module
from polyvisor.vm.forks.beginning import AT_ONCE
from support.guests import guest_image
from support.programs import POWER_OFF, elf

COUNTER = 0x8000_1000
# Counts at COUNTER for ever, unless something else than zero is written behind it: then that is the exit code.
COUNTING = f"""
    li s0, {COUNTER}
loop:
    ld t0, 0(s0)
    addi t0, t0, 1
    sd t0, 0(s0)
    ld a0, 8(s0)
    beqz a0, loop
{POWER_OFF}
"""


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[VM]:
    program = tmp_path / "counting"
    program.write_bytes(elf(COUNTING))
    vm = VM(program=program, memory="16M", timeout=20)
    with vm:
        while not vm.machine.board.memory.read(COUNTER, 8).strip(b"\0"):
            time.sleep(0.01)
        yield vm


def number(machine: object, place: int = COUNTER) -> int:
    return int.from_bytes(machine.memory[place : place + 8], "little")  # type: ignore[attr-defined]


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not only waiting to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: object, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_forks_go_on_from_where_the_machine_was_each_for_itself(counting: VM) -> None:
    forks = counting.fork(3)
    counting.pause()
    own = number(counting)
    for index, fork in enumerate(forks):
        assert fork.number == index
        with fork.paused():  # it may be between its load and its store
            fork.cpu[0].pc = 0x8000_0000
            fork.memory[COUNTER : COUNTER + 8] = ((index + 1) << 40).to_bytes(8, "little")
    for index, fork in enumerate(forks):
        before = number(fork)
        assert before >> 40 == index + 1
        assert until(lambda fork=fork, before=before: number(fork) > before)
    assert number(counting) == own
    counting.resume()
    assert until(lambda: number(counting) > own)
    forks[1].memory[COUNTER + 8 : COUNTER + 16] = (7).to_bytes(8, "little")
    assert forks[1].wait(20) == 7
    assert not forks[1].running
    assert forks[0].running
    for fork in forks:
        fork.kill()
        assert not is_alive(fork.pid)
        assert not fork.running
    assert counting.running


def test_what_stands_still_is_forked_standing_still(counting: VM) -> None:
    with counting.paused():
        [fork] = counting.fork()
        value = number(counting)
    with fork:
        assert number(fork) == value
        time.sleep(0.05)
        assert number(fork) == value
        fork.resume()
        assert until(lambda: number(fork) > value)


def test_compiled_code_goes_on_in_forks(counting: VM) -> None:
    regions = counting.machine.board.regions
    assert regions is not None
    with counting.paused(), regions.lock:
        engine = counting.machine.board.harts[0].cpu.engine
        last = (int(engine.sample_count) - 1) % 256
        record, address = int(engine.sample_records[last]), int(engine.sample_addresses[last])
        compiler = RegionCompiler(rv64, regions.layout, regions.code.compiler)
        regions.compile_now(record, address, counting.machine.board.harts[0].cpu, compiler.compile)
    [fork] = counting.fork()
    with fork:
        # The other process forgets its code, and puts other code there.
        with counting.paused(), regions.lock:
            with regions.pages.lock:
                regions._start_over()
            for _ in range(20):
                regions.arena.add_code(b"\xcc" * 4096)
        engine = fork.machine.board.harts[0].cpu.engine
        for _ in range(2):
            with fork.paused():
                before = engine.region_instructions
            value = number(fork)
            assert until(lambda value=value: number(fork) > value + 100_000)
            with fork.paused():
                assert engine.region_instructions > before


def test_everything_of_the_machine_can_be_used(counting: VM) -> None:
    [fork] = counting.fork()
    with fork:
        assert fork.name == "vm-0"
        with fork.paused():
            assert fork.cpu[0].x["s0"] == COUNTER
            assert 0x8000_0000 <= fork.cpu[0].pc < 0x8000_0100
        assert fork.config.memory == 16 << 20
        assert len(fork.cpu) == 1
        with pytest.raises(AttributeError, match="nothing"):
            _ = fork.nothing
        with pytest.raises(VMError, match="does not stand still"):
            fork.resume()
        with pytest.raises(VMError, match="cannot be given to another process"):
            fork.console.send(lambda: None)
        with pytest.raises(VMError, match="no agent"):
            fork.run("true")
        with pytest.raises(VMTimeoutError, match="vm-0 did not end within"):
            fork.wait(0.01)


def test_a_fork_whose_process_dies(counting: VM) -> None:
    waiting = counting.fork(AT_ONCE + 1)[-1]
    waiting.begin()
    os.kill(waiting.pid, signal.SIGKILL)
    with pytest.raises(VMError, match="its process died"):
        waiting.wait(20)
    [fork] = counting.fork()
    os.kill(fork.pid, signal.SIGKILL)
    assert fork.has_ended(20)
    with pytest.raises(VMError, match="its process died"):
        fork.wait(20)
    with pytest.raises(StoppedError, match="vm-0 has ended"):
        number(fork)
    assert counting.running


def test_a_fork_that_nobody_has_any_more_ends(counting: VM) -> None:
    gc.disable()  # at once, not when garbage is looked for: it would compute until then
    try:
        [fork] = counting.fork()
        process = fork.pid
        registers = fork.cpu[0].x
        del fork
        assert registers["s0"] == COUNTER and is_alive(process), "what came of it keeps it"
        del registers
        assert not is_alive(process)
    finally:
        gc.enable()


def test_a_fork_whose_process_does_not_end_is_killed(counting: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_module, "_END_TIME", 0.1)
    [fork] = counting.fork()
    number(fork)
    os.kill(fork.pid, signal.SIGSTOP)
    fork.kill()
    assert not is_alive(fork.pid)


def test_who_waits_for_a_fork_does_not_keep_others_from_it(counting: VM) -> None:
    (fork,) = counting.fork(1)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(fork.wait()), daemon=True)
    waiting.start()
    for _ in range(3):
        assert fork.running and not fork.has_ended(0.05)
    fork.kill()
    waiting.join(20)
    assert found == [None] and not fork.running


def test_forks_end_with_the_process_that_made_them(tmp_path: Path) -> None:
    program = tmp_path / "counting"
    program.write_bytes(elf(COUNTING))
    script = f"""
        import sys, time, polyvisor
        vm = polyvisor.VM(program={str(program)!r}, memory="16M").start()
        time.sleep(0.3)
        first = vm.fork(2)
        second = vm.fork(1)
        print(*[fork.pid for fork in first + second], flush=True)
        time.sleep(100)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 3
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.wait()
    process.stdout.close()
    assert until(lambda: not any(is_alive(pid) for pid in pids))


def test_what_cannot_be_forked(tmp_path: Path, counting: VM) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    program = tmp_path / "counting"
    with VM(program=program, memory="16M", disks=[Disk(str(disk))]) as vm:
        with pytest.raises(ForkError, match="two machines cannot write to one disk"):
            vm.fork()
        assert vm.running
    with pytest.raises(ForkError, match="is not running"):
        vm.fork()
    with pytest.raises(ForkError, match="no agent"):
        counting.fork(hostname="a")
    with pytest.raises(ValueError, match="0 forks"):
        counting.fork(0)


# Linux


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    disk = tmp_path_factory.mktemp("disk") / "disk"
    disk.write_bytes(bytes(4 << 20))
    vm = VM(
        guest_image(), memory="256M", cpus=2, disks=[Disk(str(disk), snapshot=True)], networks=["user", Switch()],
    )  # fmt: skip
    with vm:
        vm.run("udhcpc -i eth0 -q -n", check=True)
        yield vm


def test_a_guest_goes_on_in_forks(linux: VM) -> None:
    linux.run("echo before > /tmp/file; dd if=/dev/zero of=/dev/vda bs=4k count=1; echo -n parent > /dev/vda; sync")
    first = linux.fork(2, hostname="worker-{}")
    linux.run("echo -n later > /dev/vda; echo later > /tmp/file; sync")
    for fork in first:
        assert fork.run("hostname; cat /tmp/file", check=True).stdout == f"worker-{fork.number}\nbefore\n"
        assert fork.run("head -c 6 /dev/vda").stdout == "parent"
        fork.run(f"echo -n fork-{fork.number} > /dev/vda; sync; echo 3 > /proc/sys/vm/drop_caches", check=True)
    # Of what the machine is by now, and of what was written since.
    [second] = linux.fork()
    assert second.run("cat /tmp/file; head -c 5 /dev/vda; hostname").stdout == "later\nlaterdebian\n"
    for fork in first:
        assert fork.run("head -c 6 /dev/vda").stdout == f"fork-{fork.number}"
    assert linux.run("head -c 6 /dev/vda; hostname").stdout == "latertdebian\n"
    randoms = {f.run("head -c 16 /dev/urandom | od -x").stdout for f in [*first, second]}
    assert len(randoms) == 3
    with first[0].popen("cat") as process:
        process.write("through the pipe\n")
        assert process.stdout.readline() == "through the pipe\n"
    assert first[0].stop() == 0
    assert not is_alive(first[0].pid)
    first[1].kill()
    second.kill()
    assert linux.run("echo still here").stdout == "still here\n"


def test_forks_have_networks_of_their_own(linux: VM) -> None:
    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        forks = linux.fork(2, new_macs=True)
        macs = {linux.networks[0].mac}
        for fork in forks:
            got = fork.run(f"wget -T 20 -qO- http://10.0.2.2:{server.server_port}/", check=True)
            assert got.stdout == "hello"
            macs.add(fork.read_file("/sys/class/net/eth0/address").decode().strip())
            fork.kill()
        server.shutdown()
    assert len(macs) == 3


def test_commands_that_were_running_go_on_here_and_have_no_one_there(linux: VM) -> None:
    with linux.popen("while sleep 0.05; do echo tick; done") as process:
        assert process.stdout.readline() == "tick\n"
        [fork] = linux.fork()
        with fork:
            assert fork.run("echo hello").stdout == "hello\n"
            for _ in range(3):
                assert process.stdout.readline() == "tick\n"
        process.kill()


def test_forks_of_forks(counting: VM) -> None:
    [fork] = counting.fork()
    inner = fork.fork(2)
    assert len(inner) == 2
    pids = [inner[0].pid, inner[1].pid]
    value = number(inner[1])
    assert until(lambda: number(inner[1]) > value)
    inner[0].kill()
    assert not is_alive(pids[0])
    fork.kill()
    assert until(lambda: not is_alive(pids[1]))
    assert counting.running


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def children() -> set[int]:
    """Processes of this one, also those that have ended and that nobody has waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def test_many_begin_some_at_a_time_and_whoever_is_asked_at_once(linux: VM) -> None:
    count = AT_ONCE + 6
    forks = linux.fork(count)
    assert [fork.name for fork in forks] == [f"{linux.name}-{number}" for number in range(count)]
    assert forks[-1].run("echo hello").stdout == "hello\n"
    assert until(lambda: all(threads(fork.pid) > 1 for fork in forks))  # they run, though nobody asked the others
    assert {fork.run("cat /proc/sys/kernel/random/uuid", check=True).exit_code for fork in forks} == {0}
    for fork in forks:
        fork.kill()
        assert not is_alive(fork.pid)
        assert not Path(f"/proc/{fork.pid}").exists()  # nobody waits to be noticed


def test_others_begin_when_those_before_them_died(counting: VM) -> None:
    forks = counting.fork(AT_ONCE + 3)
    for fork in forks[:AT_ONCE]:
        os.kill(fork.pid, signal.SIGKILL)
    value = number(counting)
    for fork in forks[AT_ONCE:]:
        assert until(lambda fork=fork: threads(fork.pid) > 1)
        assert until(lambda fork=fork: number(fork) > value)
        fork.kill()


def test_no_descriptors_of_forks_stay(counting: VM) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with counting.paused():
        before = count()
        for _ in range(2):
            forks = counting.fork(AT_ONCE + 1)
            number(forks[-1])
            for fork in forks:
                fork.kill()
        assert until(lambda: count() <= before)


def test_when_the_host_makes_no_process_those_that_were_made_end(
    counting: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fork, [0]

    def fork() -> int:
        calls[0] += 1
        if calls[0] > 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real()

    before = children()
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(ForkError, match="fork 2 cannot be made: Resource temporarily unavailable"):
        counting.fork(5)
    assert children() == before
    calls[0] = 3
    with pytest.raises(ForkError, match="no fork can be made: Resource temporarily unavailable"):
        counting.fork()
    assert counting.running
    value = number(counting)
    assert until(lambda: number(counting) > value)


def test_a_fork_looks_for_hot_code_only_when_it_computes(counting: VM) -> None:
    with counting.paused():
        [idle] = counting.fork()
    [busy] = counting.fork()
    assert until(lambda: busy.machine.board.compile_if_worth())
    assert until(lambda: busy.machine.board.regions._thread is not None)
    assert not idle.machine.board.compile_if_worth()
    assert idle.machine.board.regions._thread is None
