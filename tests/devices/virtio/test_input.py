"""The input device and what it passes on, driven as section 5.8 says."""

from __future__ import annotations

import random
import struct
import threading
import time

import pytest
from test_hostile import attack
from virtio_driver import DATA, FULL, PLAIN, USED, Driver

from polyvisor.devices.display import Display
from polyvisor.devices.input import (
    ABS_MAX,
    ABS_X,
    ABS_Y,
    BUTTONS,
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_REL,
    EV_REP,
    EV_SYN,
    REL_HWHEEL,
    REL_WHEEL,
    REL_X,
    REL_Y,
    InputSource,
    Keyboard,
    Mouse,
    Tablet,
)
from polyvisor.devices.keys import BY_USAGE, KEYS, US, key_code
from polyvisor.devices.virtio import input as v
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import transport
from polyvisor.devices.virtio.device import F_EVENT_IDX
from polyvisor.devices.virtio.input import InputDevice

SYN = (EV_SYN, 0, 0)


class InputDriver(Driver):
    """Gives the device buffers of one event, as Linux does."""

    given = 0

    def give(self, count: int = 1) -> None:
        for _ in range(count):
            slot = self.given % self.size
            self.offer(self.chain([(DATA + 8 * slot, 8, True)], first=slot))
            self.given += 1
        self.kick()

    def events(self) -> list[tuple[int, int, int]]:
        """What came since the last call."""
        return [struct.unpack("<HHi", self.memory.read(DATA + 8 * head, size)) for head, size in self.used()]

    def ask(self, select: int, subsel: int = 0) -> bytes:
        self.mmio.write(t.CONFIG, 1, select)
        self.mmio.write(t.CONFIG + 1, 1, subsel)
        size = self.mmio.read(t.CONFIG + 2, 1)
        return bytes(self.mmio.read(t.CONFIG + 8 + i, 1) for i in range(size))


def bits(raw: bytes) -> set[int]:
    return {bit for bit in range(8 * len(raw)) if raw[bit // 8] >> bit % 8 & 1}


def test_a_keyboard_describes_itself() -> None:
    driver = InputDriver(InputDevice(Keyboard()))
    assert driver.reg(t.DEVICE_ID) == 18
    assert driver.ask(v.CFG_ID_NAME) == b"polyvisor keyboard"
    assert driver.ask(v.CFG_ID_DEVIDS) == struct.pack("<4H", 6, 0x504C, 1, 1)
    assert bits(driver.ask(v.CFG_EV_BITS, EV_KEY)) == set(KEYS.values())
    assert bits(driver.ask(v.CFG_EV_BITS, EV_LED)) == {0, 1, 2}
    assert bits(driver.ask(v.CFG_EV_BITS, EV_REP)) == {0, 1}
    for select, subsel in [
        (0, 0), (v.CFG_ID_NAME, 1), (v.CFG_ID_SERIAL, 0), (v.CFG_PROP_BITS, 0), (v.CFG_EV_BITS, EV_ABS),
        (v.CFG_ABS_INFO, 0), (255, 255),
    ]:
        assert driver.ask(select, subsel) == b""
    # What is not select or subsel cannot be written.
    driver.ask(v.CFG_ID_NAME)
    driver.mmio.write(t.CONFIG + 2, 4, 0xFFFFFFFF)
    assert driver.mmio.read(t.CONFIG, 4) == v.CFG_ID_NAME | len("polyvisor keyboard") << 16
    driver.mmio.write(t.CONFIG, 4, v.CFG_EV_BITS | EV_LED << 8 | 0xFFFF << 16)
    assert driver.mmio.read(t.CONFIG, 4) == v.CFG_EV_BITS | EV_LED << 8 | 1 << 16


def test_pointers_describe_themselves() -> None:
    driver = InputDriver(InputDevice(Tablet(Display())))
    assert bits(driver.ask(v.CFG_EV_BITS, EV_KEY)) == set(BUTTONS.values())
    assert bits(driver.ask(v.CFG_EV_BITS, EV_ABS)) == {ABS_X, ABS_Y}
    assert bits(driver.ask(v.CFG_EV_BITS, EV_REL)) == {REL_WHEEL, REL_HWHEEL}
    for axis in (ABS_X, ABS_Y):
        assert struct.unpack("<5i", driver.ask(v.CFG_ABS_INFO, axis)) == (0, ABS_MAX, 0, 0, 0)
    assert driver.ask(v.CFG_ABS_INFO, 2) == b""
    driver = InputDriver(InputDevice(Mouse()))
    assert bits(driver.ask(v.CFG_EV_BITS, EV_REL)) == {REL_X, REL_Y, REL_WHEEL, REL_HWHEEL}


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_typing(features: int) -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard), features)
    driver.give(16)
    keyboard.type("a!", interval=0)
    a, shift, one = KEYS["a"], KEYS["shift"], KEYS["1"]
    assert driver.events() == [
        (EV_KEY, a, 1), SYN, (EV_KEY, a, 0), SYN, (EV_KEY, shift, 1), SYN, (EV_KEY, one, 1), SYN,
        (EV_KEY, one, 0), SYN, (EV_KEY, shift, 0), SYN,
    ]
    assert driver.ack() == transport.INTERRUPT_USED
    # More than there are buffers for: the rest follows when there are some.
    keyboard.press("Ctrl", "alt", "F1")
    ctrl, alt, f1 = 29, 56, 59
    expected = [(EV_KEY, code, value) for code, value in [(ctrl, 1), (alt, 1), (f1, 1), (f1, 0), (alt, 0), (ctrl, 0)]]
    seen = driver.events()
    assert len(seen) == 4
    driver.give(3)
    seen += driver.events()
    assert len(seen) == 7
    driver.give(9)
    seen += driver.events()
    assert seen[::2] == expected and set(seen[1::2]) == {SYN}


def test_holding_keys() -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard))
    driver.give(16)
    keyboard.up("a")
    keyboard.down("a")
    keyboard.down(KEYS["a"])
    keyboard.down("b")
    keyboard.up("a")
    keyboard.release_all()
    keyboard.release_all()
    assert driver.events()[::2] == [(EV_KEY, 30, 1), (EV_KEY, 48, 1), (EV_KEY, 30, 0), (EV_KEY, 48, 0)]


def test_pointing() -> None:
    display = Display(100, 50)
    tablet = Tablet(display)
    driver = InputDriver(InputDevice(tablet))
    driver.give(16)
    display.set_mode(640, 480)
    for x, y in ((0, 0), (639, 479), (13, 77), (320, 240)):
        tablet.move(x, y)
        (kind_x, code_x, along), (kind_y, code_y, below), end = driver.events()
        assert (kind_x, code_x, kind_y, code_y, end) == (EV_ABS, ABS_X, EV_ABS, ABS_Y, SYN)
        assert (along * 640 // (ABS_MAX + 1), below * 480 // (ABS_MAX + 1)) == (x, y)
        driver.give(3)
    for x, y in ((-1, 0), (0, -1), (640, 0), (0, 480)):
        with pytest.raises(ValueError, match="outside"):
            tablet.move(x, y)
    tablet.click("right", 2)
    tablet.scroll(3, -1)
    tablet.scroll()
    assert driver.events() == [
        *[(EV_KEY, 0x111, 1), SYN, (EV_KEY, 0x111, 0), SYN] * 2, (EV_REL, REL_WHEEL, -3), (EV_REL, REL_HWHEEL, -1), SYN
    ]
    mouse = Mouse()
    driver = InputDriver(InputDevice(mouse))
    driver.give(16)
    mouse.move_by(-5, 7)
    mouse.move_by(0, 1)
    assert driver.events() == [(EV_REL, REL_X, -5), (EV_REL, REL_Y, 7), SYN, (EV_REL, REL_Y, 1), SYN]
    with pytest.raises(ValueError, match="too far"):
        mouse.move_by(2**31, 0)


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_notifications_are_wanted_while_something_waits(features: int) -> None:
    """A driver that adds a buffer for each event it took need not tell the device every time."""
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard), features)

    def wanted() -> bool:
        """Whether the device wants to hear of the next buffer (2.7.10)."""
        if features & F_EVENT_IDX:
            return driver.avail_event() == driver.avail_idx
        return driver.get(USED, "H") == 0

    assert wanted()
    driver.give(16)
    for _ in range(4):
        keyboard.press("a")
        assert not wanted()
        driver.give(4)
    keyboard.type("abcdef", interval=0)
    assert driver.device.state.waiting and wanted()
    driver.give(3)
    assert driver.device.state.waiting and wanted()
    driver.give(8)
    assert not driver.device.state.waiting and not wanted()


def test_lights() -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard), queue=v.STATUS_QUEUE)

    def say(*events: tuple[int, int, int], extra: bytes = b"") -> None:
        data = b"".join(struct.pack("<HHi", *event) for event in events) + extra
        driver.memory.write(DATA, data)
        driver.offer(driver.chain([(DATA, len(data), False)]))
        driver.kick()
        assert driver.used() == [(0, 0)]

    say((EV_LED, 1, 1), (EV_LED, 0, 5), (EV_SYN, 0, 0), extra=b"\1\2\3")
    assert keyboard.leds == {"caps lock", "num lock"}
    say((EV_LED, 1, 0), (EV_LED, 9, 1), (EV_KEY, 2, 1))
    assert keyboard.leds == {"num lock"}


def test_nobody_listens() -> None:
    keyboard = Keyboard()
    with pytest.raises(TimeoutError, match="takes no input from its polyvisor keyboard"):
        keyboard.press("a", timeout=0)
    device = InputDevice(keyboard)
    with pytest.raises(TimeoutError):
        keyboard.type("a", timeout=0)
    driver = InputDriver(device)
    keyboard.down("a", timeout=0)
    driver.set(t.STATUS, 0)
    with pytest.raises(TimeoutError):
        keyboard.press("b", timeout=0)
    keyboard.up("a")
    driver.given = 0
    driver.start(FULL)
    driver.give(2)
    assert driver.events() == []  # a driver that starts does not get what was for another one
    device.close()
    with pytest.raises(TimeoutError):
        keyboard.press("b", timeout=0)
    InputDevice(keyboard)
    with pytest.raises(ValueError, match="another device"):
        InputDevice(keyboard)


def test_a_slow_driver_loses_nothing() -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard))
    text = "the quick brown fox " * 30
    thread = threading.Thread(target=keyboard.type, args=(text, 0), daemon=True)
    thread.start()
    typed = []
    back = {code: character for character, (code, shifted) in US.items() if not shifted}
    seen = []
    driver.give(4)
    end = time.monotonic() + 60
    while len(typed) < len(text) and time.monotonic() < end:
        found = driver.events()
        driver.give(len(found))
        seen += found
        typed += [back[code] for kind, code, value in found if kind == EV_KEY and value]
        assert len(driver.device.state.waiting) <= v.MAX_WAITING + 4
    thread.join(60)
    assert "".join(typed) == text


def test_a_full_queue_refuses_presses_but_no_releases() -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard))
    keyboard.down("a")
    presses = 0
    with pytest.raises(TimeoutError):
        while True:
            keyboard.press("b", timeout=0)
            presses += 1
    assert presses == v.MAX_WAITING // 4 or presses == v.MAX_WAITING // 4 - 1
    keyboard.up("a")
    seen = []
    for _ in range(100):
        if driver.device.state.waiting:
            driver.give(16)
        seen += driver.events()
    assert not driver.device.state.waiting
    down = set()
    for kind, code, value in seen:
        if kind == EV_KEY:
            (down.add if value else down.remove)(code)
    assert not down


def test_mistakes() -> None:
    keyboard = Keyboard()
    with pytest.raises(ValueError, match="no key 'hyper'"):
        keyboard.press("ctrl", "hyper")
    for code in (0, 84, 0x110, -1):
        with pytest.raises(ValueError, match="no key of number"):
            keyboard.down(code)
    with pytest.raises(ValueError, match="cannot type 'ä'"):
        keyboard.type("aä")
    with pytest.raises(ValueError, match="no button 'top'"):
        Mouse().click("top")


def test_the_tables_of_keys() -> None:
    assert {character for character in map(chr, range(32, 127))} | {"\n", "\t"} == set(US)
    # Points of the table far from where its runs begin.
    for name, code in {"0": 11, "p": 25, "l": 38, "m": 50, "f10": 68, "kpdot": 83, "f12": 88, "up": 103, "down": 108,
                       "delete": 111, "pause": 119, "compose": 127, "f24": 194, "rightalt": 100, "cut": 137}.items():
        assert key_code(name) == code
    for usage, name in {29: "z", 39: "0", 49: "backslash", 56: "slash", 69: "f12", 82: "up", 99: "kpdot", 101: "menu",
                        115: "f24", 129: "volumedown", 231: "rightmeta"}.items():
        assert BY_USAGE[usage] == KEYS[name]
    assert US["~"] == (41, True) and US["\\"] == (43, False) and US["Z"] == (44, True)


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_too_small_buffers_need_a_reset(features: int) -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard), features)
    driver.offer(driver.chain([(DATA, 7, True)]))
    driver.kick()
    keyboard.down("a")
    assert driver.needs_reset
    with pytest.raises(TimeoutError):
        keyboard.down("b", timeout=0)


@pytest.mark.parametrize("features", [PLAIN, FULL])
@pytest.mark.parametrize("queue", [v.EVENT_QUEUE, v.STATUS_QUEUE])
@pytest.mark.parametrize("make", [Keyboard, Mouse])
def test_any_rings(features: int, queue: int, make: type[InputSource]) -> None:
    rng = random.Random(queue)
    source = make()
    device = InputDevice(source)
    driver = InputDriver(device, features, queue=queue)
    failures = taken = 0
    for _ in range(2000):
        attack(driver, rng)
        for _ in range(3):
            driver.mmio.write(t.CONFIG + rng.randrange(136), 1, rng.getrandbits(8))
        assert len(device.config()) == 136
        try:
            source._hold(rng.choice([30, 48, 46]), 0)
            taken += 1
        except TimeoutError:
            pass
        source.release_all()
        failures += driver.needs_reset
        assert len(device.state.waiting) <= v.MAX_WAITING + 8
    assert 20 < failures < 2000
    assert taken > 20 or queue == v.STATUS_QUEUE


def test_keys_that_were_down_come_up_in_a_restored_machine() -> None:
    keyboard = Keyboard()
    driver = InputDriver(InputDevice(keyboard))
    driver.give(8)
    keyboard.down("a")
    keyboard.press("b")
    assert driver.device.state.held == {KEYS["a"]}
    driver.events()
    driver.give(2)
    with driver.device.guard():
        driver.device.reconnected()
    assert driver.events() == [(EV_KEY, KEYS["a"], 0), SYN] and not driver.device.state.held
