"""The supervisor binary interface: every call, with fake harts, and calls no well-meaning guest makes."""

import random
import threading
from types import SimpleNamespace

import pytest

from polyvisor.boards.sbi import IMPLEMENTATION_ID, Sbi
from polyvisor.engine.memory import BusError, Memory

BASE = 0x8000_0000
SIZE = 0x10000
ALL = 2**64 - 1
TIME, IPI, RFENCE, HSM, SRST, DBCN = 0x54494D45, 0x735049, 0x52464E43, 0x48534D, 0x53525354, 0x4442434E
FAILED, NOT_SUPPORTED, INVALID_PARAM, INVALID_ADDRESS, ALREADY_AVAILABLE = -1, -2, -3, -5, -6


class FakeHart:
    def __init__(self, hart_id, status="started"):
        self.hart_id = hart_id
        self.status = status
        self.state = SimpleNamespace(x=[0] * 32)
        self.log = []
        self.ssip = False

    def start(self, pc, opaque):
        self.status = "start_pending"
        self.log.append(("start", pc, opaque))

    def stop_self(self):
        self.status = "stopped"
        self.state.x[10:12] = [0xAAAA, 0xBBBB]  # another hart started it again before stop_self returned
        self.log.append("stop")

    def suspend(self):
        self.log.append(("suspend", self.state.x[10]))

    def set_timer(self, ticks):
        self.log.append(("timer", ticks))

    def raise_ssip(self):
        self.ssip = True
        self.log.append("ssip")

    def clear_ssip(self):
        was, self.ssip = self.ssip, False
        return was

    def flush_remote(self):
        self.log.append("flush")


class Platform:
    def __init__(self, ids=(0, 1, 2, 3)):
        self.memory = Memory()
        self.memory.add_ram(BASE, SIZE)
        self.harts = {number: FakeHart(number) for number in ids}
        self.printed = b""
        self.typed = b""
        self.powered = []
        self.broken = False
        self.sbi = Sbi(
            list(self.harts.values()), self.memory, self._output, self._input, lambda *how: self.powered.append(how)
        )

    def _output(self, data):
        if self.broken:
            raise OSError("gone")
        self.printed += data

    def _input(self, count):
        if self.broken:
            raise OSError("gone")
        data, self.typed = self.typed[:count], self.typed[count:]
        return data

    def call(self, eid, fid=0, *arguments, hart=0):
        """(error, value), both signed."""
        caller = self.harts[hart]
        x = caller.state.x
        x[:] = [0xDEAD0000 + n for n in range(32)]
        x[10 : 10 + len(arguments)] = [a % 2**64 for a in arguments]
        x[16], x[17] = fid % 2**64, eid % 2**64
        before = list(x)
        self.sbi.handle(caller)
        assert x[:10] == before[:10] and x[12:] == before[12:]
        assert all(0 <= value <= ALL for value in x)
        return tuple(value - 2**64 if value >> 63 else value for value in x[10:12])

    def seen(self):
        return {number: hart.log for number, hart in self.harts.items() if hart.log}


@pytest.fixture
def platform():
    return Platform()


def test_base(platform):
    assert platform.call(0x10, 0) == (0, 2 << 24)
    assert platform.call(0x10, 1) == (0, IMPLEMENTATION_ID) == (0, 0x70766D)
    assert platform.call(0x10, 2)[0] == 0
    assert [platform.call(0x10, fid) for fid in (4, 5, 6)] == [(0, 0)] * 3
    assert platform.call(0x10, 7) == (NOT_SUPPORTED, 0)


def test_probe(platform):
    for eid in (*range(9), 0x10, TIME, IPI, RFENCE, HSM, SRST, DBCN):
        assert platform.call(0x10, 3, eid) == (0, 1)
    for eid in (9, 0xF, 0x504D55, 0x53555350, ALL, 1 << 63, TIME | 1 << 32):
        assert platform.call(0x10, 3, eid) == (0, 0)


@pytest.mark.parametrize("eid", [9, 0xF, 0x11, 0x504D55, 0x09000000, ALL, 1 << 63, TIME | 1 << 32])
def test_unknown_extension(platform, eid):
    assert platform.call(eid, 0) == (NOT_SUPPORTED, 0)


@pytest.mark.parametrize("eid", [0x10, TIME, IPI, RFENCE, HSM, SRST, DBCN])
@pytest.mark.parametrize("fid", [7, 0xFFFF, 1 << 32, ALL])
def test_unknown_function(platform, eid, fid):
    assert platform.call(eid, fid, 0, 0) == (NOT_SUPPORTED, 0)
    assert not platform.seen() and not platform.powered


def test_what_the_description_serves_is_not_served_here(platform):
    for eid in (TIME, IPI, RFENCE):
        assert platform.call(eid, 0, 1, 0) == (NOT_SUPPORTED, 0)
    assert not platform.seen()


def test_legacy_harts_need_not_be_consecutive():
    platform = Platform(ids=(0, 64, 70))
    platform.memory.write(BASE, (1 << 70).to_bytes(16, "little"))
    assert platform.call(4, 0, BASE)[0] == platform.call(5, 0, BASE)[0] == 0
    assert platform.seen() == {70: ["ssip", "flush"]}


def test_start(platform):
    platform.harts[1].status = "stopped"
    assert platform.call(HSM, 2, 1) == (0, 1)
    assert platform.call(HSM, 0, 1, BASE + 0x200, 77) == (0, 0)
    assert platform.seen() == {1: [("start", BASE + 0x200, 77)]}
    assert platform.call(HSM, 2, 1) == (0, 2)
    assert platform.call(HSM, 0, 1, BASE, 0) == (ALREADY_AVAILABLE, 0)


@pytest.mark.parametrize("address", [0, BASE - 2, BASE + SIZE, BASE + 1, ALL, 0x1000_0000])
def test_start_at_a_wrong_address(platform, address):
    platform.harts[1].status = "stopped"
    assert platform.call(HSM, 0, 1, address, 0) == (INVALID_ADDRESS, 0)
    assert not platform.seen()


def test_start_of_wrong_harts(platform):
    for hart_id in (4, ALL, 1 << 63):
        assert platform.call(HSM, 0, hart_id, BASE, 0) == (INVALID_PARAM, 0)
        assert platform.call(HSM, 2, hart_id) == (INVALID_PARAM, 0)
    for status in ("started", "suspended", "start_pending"):
        platform.harts[1].status = status
        assert platform.call(HSM, 0, 1, BASE, 0) == (ALREADY_AVAILABLE, 0)
    assert platform.call(HSM, 0, 0, BASE, 0) == (ALREADY_AVAILABLE, 0)


def test_only_one_start_wins():
    platform = Platform(ids=range(9))
    target = platform.harts[8]
    target.status = "stopped"
    results, barrier = [], threading.Barrier(8)

    def start(hart):
        barrier.wait()
        results.append(platform.call(HSM, 0, 8, BASE, hart, hart=hart)[0])

    threads = [threading.Thread(target=start, args=(hart,)) for hart in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [ALREADY_AVAILABLE] * 7 + [0] and len(target.log) == 1


def test_stop_leaves_the_registers_of_the_next_start(platform):
    assert platform.call(HSM, 1, hart=1) == (0xAAAA, 0xBBBB)
    assert platform.seen() == {1: ["stop"]}


def test_status(platform):
    for status, number in (("started", 0), ("stopped", 1), ("start_pending", 2), ("suspended", 4)):
        platform.harts[2].status = status
        assert platform.call(HSM, 2, 2) == (0, number)


def test_suspend(platform):
    assert platform.call(HSM, 3, 0, 0, 0) == (0, 0)
    assert platform.seen() == {0: [("suspend", 0)]}
    assert platform.call(HSM, 3, 0x8000_0000, BASE, 0) == (NOT_SUPPORTED, 0)
    assert platform.call(HSM, 3, 0xFFFF_FFFF_8000_0000, BASE, 0) == (NOT_SUPPORTED, 0)
    for kind in (1, 0x1000_0000, 0x8000_0001, 0x9000_0000):
        assert platform.call(HSM, 3, kind, BASE, 0) == (INVALID_PARAM, 0)
    assert platform.seen() == {0: [("suspend", 0)]}


@pytest.mark.parametrize(("kind", "action"), [(0, "off"), (1, "reset"), (2, "reset"), (1 << 32, "off")])
@pytest.mark.parametrize("reason", [0, 1])
def test_reset(platform, kind, action, reason):
    platform.call(SRST, 0, kind, reason)
    assert platform.powered == [(action, reason)]


def test_reset_refusals(platform):
    for kind, reason in ((3, 0), (0xF000_0000, 0), (0, 2), (0, 0xE000_0000), (ALL, ALL)):
        assert platform.call(SRST, 0, kind, reason) == (INVALID_PARAM, 0)
    assert not platform.powered


def test_console_write(platform):
    platform.memory.write(BASE + 8, b"hello")
    assert platform.call(DBCN, 0, 5, BASE + 8, 0) == (0, 5)
    assert platform.call(DBCN, 0, 0, BASE + 8, 0) == (0, 0)
    assert platform.call(DBCN, 2, 0x1_0021) == (0, 0)
    assert platform.printed == b"hello!"


def test_console_read(platform):
    assert platform.call(DBCN, 1, 16, BASE, 0) == (0, 0)
    platform.typed = b"typed text"
    assert platform.call(DBCN, 1, 5, BASE + SIZE - 5, 0) == (0, 5)
    assert platform.memory.read(BASE + SIZE - 5, 5) == b"typed" and platform.typed == b" text"
    assert platform.call(DBCN, 1, 0, BASE, 0) == (0, 0) and platform.typed == b" text"


def test_console_transfers_may_be_partial():
    platform = Platform()
    platform.memory.add_ram(1 << 32, 1 << 20)
    assert platform.call(DBCN, 0, 1 << 20, 1 << 32, 0) == (0, len(platform.printed))
    assert 0 < len(platform.printed) < 1 << 20


@pytest.mark.parametrize("fid", [0, 1])
@pytest.mark.parametrize(
    ("length", "low", "high"),
    [(1, BASE - 1, 0), (2, BASE + SIZE - 1, 0), (ALL, BASE, 0), (1, BASE, 1), (1, ALL, 0), (ALL, ALL, ALL), (4, 0, 0)],
)
def test_console_outside_memory(platform, fid, length, low, high):
    platform.typed = b"kept"
    assert platform.call(DBCN, fid, length, low, high) == (INVALID_PARAM, 0)
    assert platform.printed == b"" and platform.typed == b"kept"


def test_console_that_fails(platform):
    platform.broken = True
    assert platform.call(DBCN, 0, 5, BASE, 0) == (FAILED, 0)
    assert platform.call(DBCN, 1, 5, BASE, 0) == (FAILED, 0)
    assert platform.call(DBCN, 2, 65) == (FAILED, 0)
    assert platform.call(1, 0, 65)[0] == FAILED


def test_legacy_leaves_a1(platform):
    platform.typed = b"k"
    assert platform.call(0, 9, 1234, 5678) == (0, 5678)
    assert platform.call(1, 9, 0x141, 5678) == (0, 5678)
    assert platform.call(2, 9, 0, 5678) == (ord("k"), 5678)
    assert platform.call(2, 9, 0, 5678) == (-1, 5678)
    assert platform.printed == b"A" and platform.seen() == {0: [("timer", 1234)]}
    platform.call(8)
    assert platform.powered == [("off", 0)]


def test_legacy_ipi(platform):
    platform.memory.write(BASE, (0b0110).to_bytes(8, "little"))
    assert platform.call(4, 0, BASE)[0] == 0
    assert platform.seen() == {1: ["ssip"], 2: ["ssip"]}
    assert platform.call(3, hart=1)[0] == 1 and platform.call(3, hart=1)[0] == 0
    assert platform.call(4, 0, 0)[0] == 0
    assert len(platform.seen()) == 4


@pytest.mark.parametrize("eid", [4, 5, 6, 7])
def test_legacy_refusals(platform, eid):
    for address in (8, ALL, BASE + SIZE - 4, BASE - 4):
        assert platform.call(eid, 0, address)[0] == INVALID_ADDRESS
    platform.memory.write(BASE, (0b10001).to_bytes(8, "little"))
    assert platform.call(eid, 0, BASE)[0] == INVALID_PARAM
    assert not platform.seen()


def test_legacy_masks_are_virtual(platform):
    asked = []

    def load(hart, address, length):
        asked.append((hart.hart_id, address, length))
        if address == 0x2000:
            raise BusError(address, length)
        return (0b100).to_bytes(length, "little")

    harts = list(platform.harts.values())
    platform.sbi = Sbi(harts, platform.memory, platform._output, platform._input, print, load)
    assert platform.call(6, 0, 0x1000, 0, 0, hart=1)[0] == 0
    assert platform.call(6, 0, 0x2000, 0, 0, hart=1)[0] == INVALID_ADDRESS
    assert platform.seen() == {2: ["flush"]} and asked[0] == (1, 0x1000, 8)


def test_random_calls_are_all_answered(platform):
    chance = random.Random(3)
    eids = [*range(10), 0x10, TIME, IPI, RFENCE, HSM, SRST, DBCN]
    values = [0, 1, 2, 3, 4, 8, 4096, BASE, BASE + 1, BASE + SIZE - 1, BASE + SIZE, 1 << 32, 1 << 63, ALL - 1, ALL]
    for _ in range(5000):
        for hart in platform.harts.values():
            hart.status = chance.choice(["started", "stopped", "start_pending", "suspended"])
        eid = chance.choice(eids)
        error, _ = platform.call(eid, chance.randrange(9), *(chance.choice(values) for _ in range(6)))
        if eid >= 9 and error != 0xAAAA and not (eid == SRST and platform.powered):
            assert -8 <= error <= 0
        platform.powered.clear()
