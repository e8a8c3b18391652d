"""polyvisor.devices.syscon."""

import pytest

from polyvisor.devices.syscon import Test as Finisher
from polyvisor.engine.memory import BusError


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        (0x5555, [("off", 0)]),
        (0xABCD5555, [("off", 0)]),
        (0x00013333, [("off", 1)]),
        (0xFFFF3333, [("off", 0xFFFF)]),
        (0x7777, [("reset",)]),
        (0x1234, []),
        (0, []),
    ],
)
def test_commands(value, calls):
    seen = []
    device = Finisher(lambda code: seen.append(("off", code)), lambda: seen.append(("reset",)))
    device.write(0, 4, value)
    assert seen == calls
    assert device.state.finisher == value
    assert device.read(0, 4) == 0


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 8), (4, 4)])
def test_only_one_register(offset, size):
    device = Finisher(lambda code: None, lambda: None)
    with pytest.raises(BusError):
        device.read(offset, size)
    with pytest.raises(BusError):
        device.write(offset, size, 0x5555)
