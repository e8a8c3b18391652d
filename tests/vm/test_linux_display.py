"""Linux's own drivers with the graphics and input devices: what it draws is seen, what is typed reaches it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.display import Display, Frame
from polyvisor.devices.input import Keyboard, Mouse, Tablet
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.gpu import GpuDevice
from polyvisor.devices.virtio.input import InputDevice
from polyvisor.vm.machine import Machine
from support.guests import guest_image

WIDTH, HEIGHT = 640, 400
# Waits for a line on the serial console after each step.
SCRIPT = r"""
exec 2>&1
stty -echo
cat /proc/bus/input/devices
printf '\033[2J\033[H\033[?25l' > /dev/tty1
echo 1 clear; read x
printf '####' > /dev/tty1
echo 2 text; read x
read -r line < /dev/tty1
echo "3 line: $line"; read x
exec 3< /dev/input/mice
echo 4 mouse
set -- $(dd bs=3 count=3 <&3 2>/dev/null | od -An -tx1)
echo "5 packets: $*"
set -- $(dd bs=3 count=2 <&3 2>/dev/null | od -An -tx1)
echo "5 tablet: $*"; read x
echo 0 > /sys/class/vtconsole/vtcon1/bind
cat /dev/vda > /dev/fb0
echo 6 pattern; read x
while ! grep -q 512x384 /sys/class/drm/card0-Virtual-1/modes; do sleep 0.05; done
echo 7 resized
exit 9
"""


class Guest:
    """A machine, and what it says on the serial console."""

    def __init__(self, machine: Machine, out: bytearray) -> None:
        self.machine = machine
        self.out = out

    def expect(self, text: str) -> str:
        """Wait for a line that begins with ``text``, and give the rest of it."""
        end = time.monotonic() + 60
        ended = False
        while f"\n{text}".encode() not in self.out or b"\n" not in self.out.split(f"\n{text}".encode(), 1)[1]:
            # What a machine says last may be there only now.
            assert not ended and time.monotonic() < end, bytes(self.out)
            ended = self.machine.wait(0.01)
        return self.out.split(f"\n{text}".encode(), 1)[1].split(b"\n")[0].decode().strip()

    def go_on(self) -> None:
        self.machine.send(b"\n")


def until(display: Display, condition: Callable[[Frame], bool]) -> Frame:
    """The picture, once it is as it should be."""
    end = time.monotonic() + 60
    while True:
        seen = display.changes
        frame = display.frame()
        if condition(frame):
            return frame
        assert time.monotonic() < end and display.wait_for_change(60, since=seen)


def lit(frame: Frame) -> set[tuple[int, int]]:
    """The places that are not black."""
    rgb = frame.rgb()
    return {(at // 3 % frame.width, at // 3 // frame.width) for at in range(0, len(rgb), 3) if any(rgb[at : at + 3])}


def test_linux_shows_text_and_pixels_and_takes_input(tmp_path: Path) -> None:
    # XRGB; what the fourth byte holds is not shown.
    pattern = random.Random(4).randbytes(4 * WIDTH * HEIGHT)
    disk = tmp_path / "pattern"
    disk.write_bytes(pattern)
    display, keyboard, mouse = Display(WIDTH, HEIGHT), Keyboard(), Mouse()
    tablet = Tablet(display)
    devices = (
        lambda: GpuDevice(display),
        *(partial(InputDevice, source) for source in (keyboard, tablet, mouse)),
        partial(BlockDevice.open, disk, True),
    )
    image = guest_image()
    out = bytearray()
    with Machine(VirtConfig(memory=256 << 20, devices=devices), out.extend) as machine:
        guest = Guest(machine, out)
        machine.board.load_linux(
            image.kernel.read_bytes(), image.initrd.read_bytes(), image.command_line(run=SCRIPT)
        )
        machine.start()
        guest.expect("1 clear")
        for name in ("keyboard", "tablet", "mouse"):
            assert f'Name="polyvisor {name}"'.encode() in out
        assert b"Handlers=sysrq kbd" in out
        assert until(display, lambda frame: not any(frame.rgb())).width == WIDTH
        guest.go_on()

        guest.expect("2 text")
        frame = until(display, lambda frame: any(frame.rgb()))
        assert (frame.width, frame.height) == (WIDTH, HEIGHT)
        # Four characters of 8 by 16 pixels in the corner, all alike.
        places = lit(frame)
        first = {(x, y) for x, y in places if x < 8 and y < 16}
        assert len(first) > 20 and places == {(x + 8 * i, y) for x, y in first for i in range(4)}
        guest.go_on()

        keyboard.press("capslock")
        keyboard.type("hELLO, wORLD! 1+1=2; ~`|\\\n")
        assert guest.expect("3 line:") == "Hello, World! 1+1=2; ~`|\\"
        assert keyboard.leds == {"caps lock"}
        guest.go_on()

        guest.expect("4 mouse")
        mouse.move_by(5, 3)
        mouse.click("right")
        # PS/2 packets (the y axis goes up): moved, right button, released.
        assert guest.expect("5 packets:").split() == "28 05 fd 0a 00 00 08 00 00".split()
        tablet.click()
        assert guest.expect("5 tablet:").split() == "09 00 00 08 00 00".split()
        guest.go_on()

        guest.expect("6 pattern")
        shown = bytearray(pattern)
        shown[3::4] = bytes(WIDTH * HEIGHT)

        def same(frame: Frame) -> bool:
            pixels = bytearray(frame.pixels)
            pixels[3::4] = bytes(len(pixels) // 4)
            return pixels == shown

        until(display, same)
        display.resize(512, 384)
        guest.go_on()
        guest.expect("7 resized")
        assert machine.wait(60) and machine.exit_code == 9
