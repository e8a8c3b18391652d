"""polyvisor.devices.aclint."""

import pytest

from polyvisor.devices.aclint import MSIP, MTIME, MTIMECMP, Aclint
from polyvisor.engine.memory import BusError


class FakeLine:
    def __init__(self):
        self.changes = []

    def set(self, level):
        self.changes.append(level)


class FakeHart:
    def __init__(self):
        self.msip = FakeLine()
        self.sets = []
        self.value = 2**64 - 1

    def line(self, name):
        assert name == "msip"
        return self.msip

    @property
    def mtimecmp(self):
        return self.value

    @mtimecmp.setter
    def mtimecmp(self, ticks):
        self.sets.append(ticks)
        self.value = ticks


class FakeClock:
    def __init__(self):
        self.now = 0x1_2345_6789

    def ticks(self):
        return self.now

    def set_ticks(self, value):
        self.now = value


@pytest.fixture
def parts():
    harts, clock = [FakeHart(), FakeHart(), FakeHart()], FakeClock()
    return Aclint(harts, clock), harts, clock


def test_msip(parts):
    device, harts, _ = parts
    device.write(MSIP + 4, 4, 0xFFFFFFFF)
    assert device.read(MSIP + 4, 4) == 1
    device.write(MSIP + 4, 4, 1)
    device.write(MSIP + 4, 4, 0xFFFFFFFE)
    assert [hart.msip.changes for hart in harts] == [[], [True, False], []]
    assert device.state.msip == [0, 0, 0]


def test_msip_of_two_harts_in_one_access(parts):
    device, harts, _ = parts
    device.write(MSIP, 8, 1 << 32 | 1)
    assert device.read(MSIP, 8) == 1 << 32 | 1
    assert harts[0].msip.changes == harts[1].msip.changes == [True]


def test_mtimecmp(parts):
    device, harts, _ = parts
    device.write(MTIMECMP + 8, 8, 0x1122334455667788)
    assert harts[1].mtimecmp == 0x1122334455667788
    assert device.read(MTIMECMP + 8, 4) == 0x55667788
    assert device.read(MTIMECMP + 12, 4) == 0x11223344
    device.write(MTIMECMP + 8, 4, 0xAAAAAAAA)
    device.write(MTIMECMP + 12, 4, 0xBBBBBBBB)
    assert harts[1].sets == [0x1122334455667788, 0x11223344AAAAAAAA, 0xBBBBBBBBAAAAAAAA]
    assert harts[0].sets == harts[2].sets == []


def test_mtime(parts):
    device, harts, clock = parts
    assert device.read(MTIME, 8) == 0x1_2345_6789
    assert device.read(MTIME, 4) == 0x2345_6789
    assert device.read(MTIME + 4, 4) == 1
    device.write(MTIME + 4, 4, 7)
    assert clock.now == 0x7_2345_6789
    assert all(hart.sets == [2**64 - 1] for hart in harts), "each hart looks at its timer again"
    device.write(MTIME, 8, 5)
    assert clock.now == 5


def test_harts_that_do_not_exist_read_as_zero(parts):
    device, harts, _ = parts
    for offset in (MSIP + 12, 0x3FFC, MTIMECMP + 24, MTIME - 8):
        device.write(offset, 4, 1)
        assert device.read(offset, 4) == 0
    assert device.read(MSIP + 8, 8) == 0
    assert all(not hart.sets and not hart.msip.changes for hart in harts)


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (MTIMECMP + 4, 8), (0xC000, 4), (0xFFF8, 8)])
def test_bad_accesses(parts, offset, size):
    with pytest.raises(BusError):
        parts[0].read(offset, size)
    with pytest.raises(BusError):
        parts[0].write(offset, size, 0)


def test_too_many_harts():
    with pytest.raises(ValueError, match="4096 harts"):
        Aclint([FakeHart()] * 4096, FakeClock())
