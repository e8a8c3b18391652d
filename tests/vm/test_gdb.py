"""The debugger's side of the wire: a small client, and gdb itself where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor.boards.virt import VirtConfig
from polyvisor.vm.gdb.harts import HartTarget
from polyvisor.vm.gdb.server import GdbServer
from polyvisor.vm.machine import Machine
from support.gdb_client import Client
from support.programs import DRAM, POWER_OFF, elf

PROGRAM = """
start:
    li a1, 0
    la a2, data
loop:
    addi a1, a1, 1
    ld a3, 0(a2)
    csrr t0, mhartid
    bnez t0, loop
    j loop
    .balign 8
data:
    .dword 0x1122334455667788
"""
LOOP = DRAM + 12  # li 4, la 8


@pytest.fixture(params=["interpreter", "reference"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(VirtConfig(memory=16 << 20, cpus=2, tier=request.param), lambda data: None) as made:
        made.board.load_program(elf(PROGRAM + POWER_OFF))
        made.pause()
        yield made


@pytest.fixture
def client(machine: Machine) -> Iterator[Client]:
    server = GdbServer(HartTarget(machine), 0)
    server.start()
    made = Client(server.port)
    machine.start()
    assert made.ask("?").startswith("T05")
    yield made
    made.socket.close()
    server.close()


def test_a_server_leaves_nothing_open(machine: Machine) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    server = GdbServer(HartTarget(machine), 0)
    server.close()
    server = GdbServer(HartTarget(machine), 0)
    server.start()
    made = Client(server.port)
    assert made.ask("?").startswith("T05")
    made.socket.close()
    server.close()
    server.close()
    assert machine.on_break is not None
    machine.on_break(machine.board.harts[0])  # it may have been on its way
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_breakpoint_stops_before_its_instruction(client: Client) -> None:
    assert client.register(32) == DRAM
    assert client.ask("Hg1") == "OK"
    assert client.ask(f"Z0,{LOOP:x},4") == "OK"
    for expected in range(4):
        client.send("c")
        stop = client.receive()
        thread = int(stop.split("thread:")[1].rstrip(";"), 16)
        assert client.register(32) == LOOP
        if thread == 1 and expected == 0:
            assert client.register(11) == 0
    assert client.ask(f"z0,{LOOP:x},4") == "OK"
    client.send("c")
    client.socket.sendall(b"\x03")
    assert client.receive().startswith("T02")


def test_stepping_executes_one_instruction(client: Client) -> None:
    client.ask("Hg1")
    pcs = []
    for _ in range(6):
        assert client.ask("s").startswith("T05thread:1;")
        pcs.append(client.register(32))
    assert pcs == [DRAM + 4, DRAM + 8, DRAM + 12, DRAM + 16, DRAM + 20, DRAM + 24]
    assert client.register(11) == 1
    assert client.ask("vCont;s:2").startswith("T05thread:2;")
    assert client.register(32) == DRAM + 4


def test_stepping_from_a_breakpoint_runs_what_is_there(client: Client) -> None:
    client.ask("Hg1")
    client.ask(f"Z0,{DRAM + 12:x},4")
    for _ in range(4):
        client.ask("s")
    assert client.register(32) == DRAM + 16
    assert client.register(11) == 1


def test_memory_and_registers_can_be_read_and_written(client: Client) -> None:
    data = DRAM + 32
    assert client.ask(f"m{data - 8:x},10")[16:] == "8877665544332211"
    assert client.ask(f"M{data:x},2:aabb") == "OK"
    assert client.ask(f"m{data:x},8") == "aabb665544332211"
    assert client.ask("P5=0102030405060708") == "OK"
    assert client.register(5) == 0x0807060504030201
    assert client.ask("g")[5 * 16 : 6 * 16] == "0102030405060708"
    assert client.ask("m10,4") == "E14"


def test_a_debugger_can_patch_code(client: Client) -> None:
    client.ask("Hg1")
    for _ in range(3):
        client.ask("s")
    assert client.ask(f"M{LOOP:x},4:93858502") == "OK"  # addi a1, a1, 40
    client.ask("s")
    assert client.register(11) == 40


def test_nonsense_gets_an_error_and_no_harm(client: Client) -> None:
    for packet in ("p", "pzz", "p999", "m", "mx,y", "G12", "P5", "Z0", "Hgzz", "T0", "vCont", "v", "Z9,0,0", "!", "q"):
        assert client.ask(packet) in ("", "E01", "E14", "OK"), packet
    client.socket.sendall(b"$garbage#00" + b"\xff" * 100)
    assert client.ask("?").startswith("T05")


def test_threads_and_description(client: Client) -> None:
    assert client.ask("qfThreadInfo") == "m1,2"
    assert client.ask("qsThreadInfo") == "l"
    text = client.ask("qXfer:features:read:target.xml:0,3000")
    assert text[0] == "l"
    assert 'name="pc"' in text


def test_detaching_lets_the_machine_run_on(machine: Machine, client: Client) -> None:
    client.ask("D")
    before = machine.board.harts[0].cpu.retired
    end = time.monotonic() + 20
    while machine.board.harts[0].cpu.retired == before:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
def test_gdb_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.elf"
    program.write_bytes(elf(PROGRAM + POWER_OFF))
    with Machine(VirtConfig(memory=16 << 20), lambda data: None) as machine:
        machine.board.load_program(program.read_bytes())
        machine.pause()
        server = GdbServer(HartTarget(machine), 0)
        server.start()
        machine.start()
        commands = [
            "set architecture riscv:rv64", f"target remote 127.0.0.1:{server.port}", f"break *{LOOP:#x}", "continue",
            "continue", "stepi", "info registers a1 pc", f"x/1gx {DRAM + 32:#x}", "detach",
        ]
        call = ["gdb-multiarch", "-batch", "-nx", *(f"-ex={c}" for c in commands)]
        done = subprocess.run(call, capture_output=True, text=True, timeout=60)
        server.close()
    assert "Breakpoint 1" in done.stdout, done.stdout + done.stderr
    assert "0x80000010" in done.stdout
    assert "0x1122334455667788" in done.stdout
