"""The time of day, ports and the keyboard of the CIAs."""

from __future__ import annotations

import pytest
from c64_chips import CiaDriver

from polyvisor.devices.c64 import keyboard
from polyvisor.devices.keys import KEYS

PRA, PRB, DDRA, DDRB, TENTHS, SECONDS, MINUTES, HOURS, ICR, CRA, CRB = 0, 1, 2, 3, 8, 9, 10, 11, 13, 14, 15


class Clock(CiaDriver):
    """A CIA whose seconds have 10,000 clock cycles."""

    def __init__(self, n: int = 0) -> None:
        super().__init__(n)
        self.cpu.tod_clock_rate = 10_000
        self.now = 0
        self.write(0, CRA, 0x80)

    def put(self, *time: int) -> None:
        """Write hours, minutes, seconds, tenths."""
        for register, value in zip((HOURS, MINUTES, SECONDS, TENTHS), time, strict=True):
            self.now += 1
            self.write(self.now, register, value)

    def get(self) -> tuple[int, ...]:
        """Read them."""
        self.now += 1
        return tuple(self.read(self.now, register) for register in (HOURS, MINUTES, SECONDS, TENTHS))

    def later(self, tenths: int) -> tuple[int, ...]:
        """The time so many tenths after the beginning of the present one."""
        self.now = (self.now // 1000 + tenths) * 1000 + 10
        return self.get()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0x01, 0x00, 0x00, 0x0), (0x01, 0x00, 0x00, 0x1)),
        ((0x01, 0x00, 0x00, 0x9), (0x01, 0x00, 0x01, 0x0)),
        ((0x01, 0x00, 0x09, 0x9), (0x01, 0x00, 0x10, 0x0)),
        ((0x01, 0x00, 0x59, 0x9), (0x01, 0x01, 0x00, 0x0)),
        ((0x01, 0x59, 0x59, 0x9), (0x02, 0x00, 0x00, 0x0)),
        ((0x09, 0x59, 0x59, 0x9), (0x10, 0x00, 0x00, 0x0)),
        ((0x11, 0x59, 0x59, 0x9), (0x92, 0x00, 0x00, 0x0)),  # noon
        ((0x91, 0x59, 0x59, 0x9), (0x12, 0x00, 0x00, 0x0)),  # midnight
        ((0x99, 0x59, 0x59, 0x9), (0x9A, 0x00, 0x00, 0x0)),
        # What is no BCD: digits are binary counters that are compared with their last.
        ((0x0F, 0x59, 0x59, 0x9), (0x00, 0x00, 0x00, 0x0)),
        ((0x1F, 0x59, 0x59, 0x9), (0x10, 0x00, 0x00, 0x0)),
        ((0x01, 0x7F, 0x7F, 0xF), (0x01, 0x7F, 0x7F, 0x0)),
        ((0x01, 0x00, 0x7F, 0x9), (0x01, 0x00, 0x70, 0x0)),
        ((0x01, 0x00, 0x79, 0x9), (0x01, 0x00, 0x00, 0x0)),
    ],
)
def test_time_goes_on(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    clock = Clock()
    clock.put(*before)
    assert clock.get() == before
    assert clock.later(1) == after


def test_writing_12_flips_am_and_pm() -> None:
    clock = Clock()
    clock.put(0x12, 0, 0, 0)
    assert clock.get()[0] == 0x92
    clock.put(0x92, 0, 0, 0)
    assert clock.get()[0] == 0x12
    clock.put(0x12, 0x59, 0x59, 9)
    assert clock.later(1)[0] == 0x81


def test_the_clock_stands_at_first_and_between_hours_and_tenths() -> None:
    clock = Clock()
    assert clock.get() == (0x01, 0, 0, 0)
    assert clock.later(5) == (0x01, 0, 0, 0)
    clock.put(0x03, 0, 0, 0)
    assert clock.later(2) == (0x03, 0, 0, 2)
    clock.now += 1
    clock.write(clock.now, HOURS, 0x04)
    assert clock.later(3) == (0x04, 0, 0, 2)
    clock.now += 1
    clock.write(clock.now, TENTHS, 0)
    assert clock.later(1)[3] in (0, 1)
    assert clock.later(1)[3] in (1, 2)


def test_a_start_begins_a_whole_tenth() -> None:
    clock = Clock()
    clock.run(1900)
    clock.now = 1900  # nearly the end of one of the mains' tenths
    clock.put(0x01, 0, 0, 0)
    assert clock.read(2750, TENTHS) == 0, "five of the mains' cycles, 200 clock cycles each"
    assert clock.read(2850, TENTHS) == 1


@pytest.mark.parametrize(("control", "ticks"), [(0x80, 5), (0x00, 6)])
def test_a_tenth_is_five_or_six_of_the_mains_cycles(control: int, ticks: int) -> None:
    clock = Clock()
    clock.write(1, CRA, control)
    clock.put(0x01, 0, 0, 0)
    assert clock.read(200 * ticks * 7 - 1, TENTHS) == 6
    assert clock.read(200 * ticks * 7, TENTHS) == 7


def test_the_mains_and_the_clock_need_not_divide() -> None:
    clock = Clock()
    clock.cpu.tod_clock_rate = 985_248
    clock.put(0x01, 0, 0, 0)
    assert [clock.read(c, TENTHS) for c in (98_524, 98_525, 197_049, 197_050)] == [0, 1, 1, 2]
    assert clock.read(985_248 * 3 - 1, SECONDS) == 2
    assert clock.read(985_248 * 3, SECONDS) == 3


def test_hours_latch_the_time_until_tenths_are_read() -> None:
    clock = Clock()
    clock.put(0x01, 0x59, 0x59, 9)
    assert clock.read(500, HOURS) == 0x01
    assert [clock.read(1500, r) for r in (MINUTES, SECONDS)] == [0x59, 0x59]
    assert clock.read(1500, HOURS) == 0x01
    assert clock.read(1500, TENTHS) == 9
    assert [clock.read(1500, r) for r in (MINUTES, SECONDS, TENTHS)] == [0, 0, 0]


def test_the_alarm_goes_off_where_the_times_become_equal() -> None:
    clock = Clock(1)
    clock.write(2, CRB, 0x80)
    clock.now = 3
    clock.put(0x01, 0, 0, 5)  # which is the time for a moment
    assert clock.read(clock.now, ICR) == 0x04
    clock.write(clock.now, ICR, 0x84)
    clock.write(clock.now, CRB, 0x00)
    clock.put(0x01, 0, 0, 3)
    event = clock.next_event()
    assert event <= 2000
    clock.run(1999)
    assert not clock.line()
    clock.run(2003)
    assert clock.line() and 2000 <= clock.since() <= 2001
    assert clock.read(2010, ICR) == 0x84
    clock.now = 2010
    assert clock.later(7)[3] == 2
    assert clock.read(clock.now, ICR) == 0, "only once"


def test_the_alarm_goes_off_when_it_is_set_to_the_present_time() -> None:
    clock = Clock()
    clock.put(0x01, 0, 0, 0)
    clock.write(10, CRB, 0x80)
    for register, value in ((MINUTES, 0), (SECONDS, 0), (TENTHS, 0)):
        clock.write(11, register, value)
        assert clock.read(12, ICR) == 0
    clock.write(13, HOURS, 0x01)
    assert clock.read(14, ICR) == 0x04
    clock.write(15, HOURS, 0x01)
    assert clock.read(16, ICR) == 0


def test_an_alarm_that_is_no_interrupt_is_no_event() -> None:
    clock = Clock()
    clock.put(0x01, 0, 0, 0)
    assert clock.next_event() == 2**64 - 1


# Ports


@pytest.mark.parametrize("n", [0, 1])
def test_outputs_and_inputs(n: int) -> None:
    chip = CiaDriver(n)
    assert (chip.read(1, PRA), chip.read(1, PRB)) == (0xFF, 0xFF)
    chip.write(2, PRA, 0x5A)
    chip.write(2, PRB, 0xA5)
    assert (chip.read(3, PRA), chip.read(3, PRB)) == (0xFF, 0xFF), "inputs, pulled up"
    chip.write(4, DDRA, 0x0F)
    chip.write(4, DDRB, 0xF0)
    assert (chip.read(5, PRA), chip.read(5, PRB)) == (0xFA, 0xAF)
    chip.cpu.cia_pa_inputs[n] = 0x7D
    chip.cpu.cia_pb_inputs[n] = 0xFE
    assert (chip.read(6, PRA), chip.read(6, PRB)) == (0x78, 0xAE)
    assert (chip.read(7, DDRA), chip.read(7, DDRB)) == (0x0F, 0xF0)


def scanned(chip: CiaDriver, *keys: str) -> list[int]:
    """What port B reads for each line of port A, as programs look at the keyboard."""
    for key in keys:
        keyboard.press(chip.cpu, key)
    chip.write(1, DDRA, 0xFF)
    chip.write(1, DDRB, 0x00)
    found = []
    for row in range(8):
        chip.write(2, PRA, 0xFF ^ 1 << row)
        found.append(0xFF ^ chip.read(3, PRB))
    return found


def test_each_key_is_where_the_reference_guide_has_it() -> None:
    assert len(keyboard.POSITIONS) == 64
    for name, (row, column) in keyboard.POSITIONS.items():
        chip = CiaDriver()
        expected = [0] * 8
        expected[row] = 1 << column
        assert scanned(chip, name) == expected
    some = "a z space return stop leftshift rightshift ctrl commodore".split()
    places = [(1, 2), (1, 4), (7, 4), (0, 1), (7, 7), (1, 7), (6, 4), (7, 2), (7, 5)]
    assert [keyboard.POSITIONS[key] for key in some] == places


def test_the_matrix_works_both_ways() -> None:
    chip = CiaDriver()
    keyboard.press(chip.cpu, "a")
    chip.write(1, DDRB, 0xFF)
    chip.write(2, PRB, 0xFF ^ 1 << 2)
    assert chip.read(3, PRA) == 0xFF ^ 1 << 1
    keyboard.press(chip.cpu, "a", False)
    assert chip.read(4, PRA) == 0xFF


def test_three_keys_make_a_fourth() -> None:
    found = scanned(CiaDriver(), "a", "s", "d")  # rows 1 and 2: 2, 5; 2
    assert found[1] == 1 << 2 | 1 << 5 and found[2] == 1 << 2 | 1 << 5


def test_a_line_of_port_b_that_is_driven_high_stays_so() -> None:
    chip = CiaDriver()
    keyboard.press(chip.cpu, "a")
    for register, value in ((DDRA, 0xFF), (DDRB, 0xFF), (PRA, 0x00), (PRB, 0xFF)):
        chip.write(1, register, value)
    assert (chip.read(2, PRA), chip.read(2, PRB)) == (0x00, 0xFF)
    chip.write(3, PRA, 0xFF)
    chip.write(3, PRB, 0x00)
    assert (chip.read(4, PRA), chip.read(4, PRB)) == (0xFD, 0x00)


def test_a_joystick_pulls_lines_of_its_port_and_disturbs_the_keyboard() -> None:
    chip = CiaDriver()
    chip.cpu.cia_pb_inputs[0] = 0xEF  # the fire button of port 1
    assert chip.read(1, PRB) == 0xEF
    keyboard.press(chip.cpu, "space")  # column 4
    assert chip.read(2, PRA) == 0x7F


def test_characters_and_the_hosts_keys_lead_to_keys() -> None:
    for key, _ in [*keyboard.CHARACTERS.values(), *keyboard.HOST_KEYS.values()]:
        assert key in keyboard.POSITIONS
    assert keyboard.CHARACTERS['"'] == ("2", True) and keyboard.CHARACTERS["A"] == ("a", True)
    assert keyboard.CHARACTERS["\n"] == ("return", False) and keyboard.CHARACTERS["["] == (":", True)
    assert keyboard.HOST_KEYS[KEYS["left"]] == ("right", True) and keyboard.HOST_KEYS[KEYS["q"]] == ("q", False)
    typed = {chr(code) for code in range(32, 127)} - set("{|}~`")
    assert typed <= set(keyboard.CHARACTERS), typed - set(keyboard.CHARACTERS)
    with pytest.raises(ValueError, match="no key 'hyper'"):
        keyboard.press(CiaDriver().cpu, "hyper")
