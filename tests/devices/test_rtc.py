"""polyvisor.devices.rtc."""

import copy
import threading
import time

import pytest

from polyvisor.devices.rtc import (
    ALARM_HIGH,
    ALARM_LOW,
    ALARM_STATUS,
    CLEAR_ALARM,
    CLEAR_INTERRUPT,
    IRQ_ENABLED,
    TIME_HIGH,
    TIME_LOW,
    GoldfishRtc,
)
from polyvisor.engine.memory import BusError

START = 0x17F0_0000_FFFF_FF00


class Probe:
    def __init__(self):
        self.level = False
        self.changed = threading.Event()

    def set(self, level):
        assert level != self.level, "only changes are told"
        self.level = level
        self.changed.set()


class Board:
    def __init__(self, now=None):
        self.time = START
        self.line = Probe()
        self.rtc = GoldfishRtc(self.line, now or (lambda: self.time))

    def read64(self, low):
        value = self.rtc.read(low, 4)
        return self.rtc.read(low + 4, 4) << 32 | value

    def write64(self, low, value):
        self.rtc.write(low + 4, 4, value >> 32)
        self.rtc.write(low, 4, value & 0xFFFFFFFF)

    def pass_time(self, nanoseconds):
        self.time += nanoseconds
        self.rtc.rearm()  # what the host timer does when it ends


@pytest.fixture
def board():
    made = Board()
    yield made
    made.rtc.close()


def test_upper_half_belongs_to_the_lower_half_read_before(board):
    assert board.rtc.read(TIME_LOW, 4) == 0xFFFFFF00
    board.time += 0x200
    assert board.rtc.read(TIME_HIGH, 4) == START >> 32
    assert board.read64(TIME_LOW) == START + 0x200


def test_set_time(board):
    board.write64(TIME_LOW, 5_000_000_000)
    board.time += 7
    assert board.read64(TIME_LOW) == 5_000_000_007


def test_alarm(board):
    board.rtc.write(IRQ_ENABLED, 4, 1)
    board.write64(ALARM_LOW, START + 10**12)
    assert board.read64(ALARM_LOW) == START + 10**12
    assert board.rtc.read(ALARM_STATUS, 4) == 1
    board.pass_time(10**12 - 1)
    assert not board.line.level and board.rtc.read(ALARM_STATUS, 4) == 1
    board.pass_time(1)
    assert board.line.level and board.rtc.read(ALARM_STATUS, 4) == 0
    board.rtc.write(CLEAR_INTERRUPT, 4, 1)
    assert not board.line.level


def test_interrupt_waits_until_enabled(board):
    board.write64(ALARM_LOW, START)
    assert not board.line.level and board.rtc.read(ALARM_STATUS, 4) == 0
    board.rtc.write(IRQ_ENABLED, 4, 1)
    assert board.line.level
    board.rtc.write(IRQ_ENABLED, 4, 0)
    assert not board.line.level


def test_clear_alarm(board):
    board.rtc.write(IRQ_ENABLED, 4, 1)
    board.write64(ALARM_LOW, START + 10**12)
    board.rtc.write(CLEAR_ALARM, 4, 0)
    assert board.rtc.read(ALARM_STATUS, 4) == 0
    board.pass_time(10**13)
    assert not board.line.level


def test_setting_the_time_past_the_alarm_lets_it_go_off(board):
    board.rtc.write(IRQ_ENABLED, 4, 1)
    board.write64(ALARM_LOW, START + 10**12)
    board.write64(TIME_LOW, START + 10**12)
    assert board.line.level


def test_furthest_alarm_is_possible(board):
    board.write64(ALARM_LOW, 2**64 - 1)
    assert board.rtc.read(ALARM_STATUS, 4) == 1


def test_host_timer():
    board = Board(time.time_ns)
    board.rtc.write(IRQ_ENABLED, 4, 1)
    board.write64(ALARM_LOW, board.read64(TIME_LOW) + 5_000_000)
    assert board.line.changed.wait(5) and board.line.level
    board.rtc.close()


def test_close_cancels_and_rearm_continues(board):
    board.rtc.write(IRQ_ENABLED, 4, 1)
    board.write64(ALARM_LOW, START + 10**12)
    timers = [each for each in threading.enumerate() if each.name == "rtc-alarm"]
    assert len(timers) == 1
    board.rtc.close()
    timers[0].join(5)
    assert not timers[0].is_alive() and not board.line.level
    other = Board()
    other.rtc.state = copy.deepcopy(board.rtc.state)
    other.pass_time(10**12)
    assert other.line.level and not board.line.level
    other.rtc.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 8), (2, 4), (0x20, 4)])
def test_bad_accesses(board, offset, size):
    with pytest.raises(BusError):
        board.rtc.read(offset, size)
    with pytest.raises(BusError):
        board.rtc.write(offset, size, 0)


def test_write_only_registers_read_as_zero(board):
    assert board.rtc.read(CLEAR_ALARM, 4) == board.rtc.read(CLEAR_INTERRUPT, 4) == 0
    assert board.rtc.read(ALARM_HIGH, 4) == 0
