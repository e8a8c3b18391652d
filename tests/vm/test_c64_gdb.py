"""The server for debuggers with a Commodore 64 behind it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest
from test_c64 import prg

from polyvisor import C64
from polyvisor.vm.c64.debugger import C64Target
from polyvisor.vm.gdb.server import GdbServer
from support.gdb_client import Client

PROGRAM = "start: lda #1\n ldx #$80\n1: sta $0400\n inc $0401\n inx\n jmp 1b"
START, STA, INC = 0xC000, 0xC004, 0xC007
A, X, Y, P, SP, PC = range(6)


class Player:
    """Has the machine, as a window or a terminal has."""

    def __init__(self, c64: C64) -> None:
        self.target = C64Target(c64)
        self.server = GdbServer(self.target, 0)
        self.ended = False
        self.frames = 0
        self.thread = threading.Thread(target=self._play, daemon=True)
        self.server.start()
        self.thread.start()
        self.client = Client(self.server.port)

    def _play(self) -> None:
        while not self.ended and not self.target.killed:
            if self.target.run(20_000).reason == "paused":
                self.target.serve(0.05)
            else:
                self.frames += 1

    def close(self) -> None:
        self.ended = True
        self.thread.join(10)
        self.target.close()
        self.client.socket.close()
        self.server.close()


@pytest.fixture(scope="module")
def begun() -> Iterator[C64]:
    with C64(prg(PROGRAM), halted=True) as made:
        yield made


@pytest.fixture
def player(begun: C64) -> Iterator[Player]:
    with begun.copy() as c64:
        made = Player(c64)
        yield made
        made.close()


@pytest.fixture
def client(player: Player) -> Client:
    return player.client


def register(client: Client, number: int) -> int:
    return int.from_bytes(bytes.fromhex(client.ask(f"p{number:x}")), "little")


def go(client: Client, packet: str = "c") -> str:
    reply = client.ask(packet)
    assert reply.startswith("T05thread:1;"), reply
    return reply.removeprefix("T05thread:1;")


def test_it_stands_before_the_programs_first_instruction(client: Client) -> None:
    assert client.ask("?").startswith("T05")
    assert register(client, PC) == START
    assert client.ask("qfThreadInfo") == "m1"


def test_registers_are_described_read_and_written(client: Client) -> None:
    description = client.ask("qXfer:features:read:target.xml:0,4000")
    names = re.findall(r'<reg name="(\w+)" bitsize="(\d+)" type="\w+" regnum="(\d)"', description)
    assert names == [("a", "8", "0"), ("x", "8", "1"), ("y", "8", "2"), ("p", "8", "3"), ("sp", "16", "4"),
                     ("pc", "16", "5")]  # fmt: skip
    assert client.ask("P0=42") == "OK" and client.ask("P3=c1") == "OK" and client.ask("P4=8001") == "OK"
    general = bytes.fromhex(client.ask("g"))
    assert len(general) == 8 and general[A] == 0x42 and general[P] == 0xF1 and general[4:8] == b"\x80\x01\x00\xc0"
    assert client.ask("G" + bytes([1, 2, 3, 0x30, 0xF0, 1, 4, 0xC0]).hex()) == "OK"
    assert [register(client, number) for number in range(6)] == [1, 2, 3, 0x30, 0x1F0, STA]
    assert client.ask("P5=0000") == "OK" and register(client, PC) == 0
    for wrong in ("p6", "P6=00", "P0=0000", "p-1", "Px=1"):
        assert client.ask(wrong) == "E01", wrong


def test_memory_is_the_cpus(client: Client) -> None:
    assert client.ask("mc000,2") == "a901"
    assert client.ask("md020,1") == "fe" and client.ask("Md020,1:00") == "OK" and client.ask("md020,1") == "f0"
    rom = client.ask("me000,4")
    assert client.ask("Me000,4:01020304") == "OK" and client.ask("me000,4") == rom
    assert client.ask("M1,1:34") == "OK" and client.ask("me000,4") == "01020304"
    assert client.ask("mfffe,8") == client.ask("mfffe,2")
    assert client.ask("m10000,1") == "E14"
    for wrong in ("mffff,-1", "Mffff,2:0102", "m-1,1"):
        assert client.ask(wrong) == "E01", wrong


def test_breakpoints_steps_and_interrupting(player: Player, client: Client) -> None:
    assert client.ask(f"Z0,{INC:x},1") == "OK"
    for _ in range(3):
        assert go(client) == "" and register(client, PC) == INC
    assert go(client, "s") == "" and register(client, PC) == INC + 3
    assert client.ask(f"z0,{INC:x},1") == "OK"
    client.send("c")
    before = player.frames
    while player.frames < before + 5:
        pass
    client.socket.sendall(b"\x03")
    assert client.receive().startswith("T02")
    assert client.ask("Z0,10000,1") == "E01"


def test_watchpoints_say_what_was_accessed(client: Client) -> None:
    assert client.ask("Z2,400,1") == "OK" and client.ask("Z3,401,1") == "OK"
    assert go(client) == "watch:400;" and register(client, PC) == INC
    assert go(client) == "rwatch:401;" and register(client, PC) == INC + 3
    assert client.ask("z2,400,1") == "OK" and client.ask("z3,401,1") == "OK"
    assert client.ask("Z4,400,2") == "OK"
    assert [go(client) for _ in range(2)] == ["awatch:400;", "awatch:401;"]
    assert client.ask("Z2,0,1") == "E01" and client.ask("Z2,fffff,1") == "E01"


def test_it_goes_back_in_time(client: Client) -> None:
    assert "ReverseStep+;ReverseContinue+" in client.ask("qSupported")
    seen = []
    for _ in range(7):
        seen.append(client.ask("g"))
        go(client, "s")
    for state in reversed(seen):
        assert go(client, "bs") == "" and client.ask("g") == state
    client.ask("Z2,400,1")
    go(client)
    go(client)
    assert [go(client, "bc") for _ in range(2)] == ["watch:400;"] * 2 and register(client, PC) == STA
    client.ask("z2,400,1"), client.ask(f"Z0,{START:x},1")
    assert go(client, "bc") == "" and register(client, PC) == START
    assert go(client, "bc") == "replaylog:begin;"
    assert go(client, "bs") == "replaylog:begin;"


def test_a_jam_is_an_illegal_instruction(client: Client) -> None:
    assert client.ask(f"M{STA:x},1:02") == "OK"
    assert client.ask("c") == "T04thread:1;"
    assert register(client, PC) == STA and client.ask("c") == "T04thread:1;"


def test_commands(client: Client) -> None:
    def monitor(text: str) -> str:
        reply = client.ask("qRcmd," + text.encode().hex())
        return bytes.fromhex(reply).decode()

    assert monitor("disassemble").splitlines()[2] == "c004  8d 00 04  sta $0400"
    assert monitor("d $c007 1") == "c007  ee 01 04  inc $0401\n"
    assert "READY." in monitor("screen") and "vic_line = " in monitor("registers vic_")
    before = int(monitor("time").split()[0])
    go(client, "s")
    assert int(monitor("time").split()[0]) == before + 2
    go(client, "s")
    assert "pc=$c002" in monitor("rewind 0.000003") and register(client, PC) == START + 2
    assert "pc=$fce2" in monitor("reset")
    assert "disassemble [ADDRESS" in monitor("help") and monitor("") == monitor("help")
    for wrong in ("d x", "d 10000", "d 0 0", "rewind x", "rewind 99", "rewind nan", "rewind inf", "registers q", "go",
                  "d 0 1 2"):  # fmt: skip
        assert monitor(wrong).count("\n") == 1 and "help" not in monitor("d x")


def test_nonsense_gets_an_error_and_no_harm(client: Client) -> None:
    for packet in ("p", "pzz", "p999", "m", "mx,y", "G12", "P5", "Z0", "Hgzz", "T0", "vCont", "v", "Z9,0,0", "!", "q",
                   "qRcmd,z", "qRcmd,ff", "Z2,,", "bz", "s10000", "qXfer:features:read:target.xml:-1,5"):  # fmt: skip
        assert client.ask(packet) in ("", "E01", "E14", "OK"), packet
    assert register(client, PC) == START


def test_a_debugger_that_goes_away_leaves_a_machine_that_runs(player: Player, client: Client) -> None:
    client.ask(f"Z0,{STA:x},1")
    client.ask("Z2,401,1")
    client.ask("D")
    before = player.frames
    while player.frames < before + 3:
        pass
    other = Client(player.server.port)
    assert other.ask("?").startswith("T05") and register(other, PC) >= STA
    other.send("k")
    player.thread.join(10)
    assert player.target.killed and not player.thread.is_alive()
    other.socket.close()


def test_it_may_end_at_any_time(player: Player, client: Client) -> None:
    client.send("c")
    player.ended = True
    player.thread.join(10)
    player.target.close()
    client.socket.sendall(b"\x03")
    assert client.socket.recv(100) in (b"", b"+")


def test_without_a_past_it_does_not_say_that_it_can_go_back() -> None:
    with C64(history=0) as c64:
        player = Player(c64)
        assert "Reverse" not in player.client.ask("qSupported") and player.client.ask("bs") == ""
        player.close()
