"""Boot Linux with a display and a keyboard, type a command on its screen, and save a picture of the answer.

    python examples/screenshot.py [FILE.png]
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from polyvisor import images
from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.display import Display
from polyvisor.devices.input import Keyboard
from polyvisor.devices.virtio.gpu import GpuDevice
from polyvisor.devices.virtio.input import InputDevice
from polyvisor.vm.machine import Machine


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "polyvisor-screenshot.png"
    image = images.ensure("debian")
    display, keyboard = Display(640, 400), Keyboard()
    config = VirtConfig(memory=256 << 20, devices=(partial(GpuDevice, display), partial(InputDevice, keyboard)))
    serial = bytearray()
    with Machine(config, serial.extend) as machine:
        # console=tty0 comes last: the shell is on the display.
        command_line = f"{image.command_line()} console=tty0"
        machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), command_line)
        machine.start()
        while not display.active:
            display.wait_for_change(1)
            if machine.wait(0):
                sys.exit("the machine ended before it showed anything")
        keyboard.type("clear; uname -srm; cat /sys/class/drm/*/modes; echo done > /dev/ttyS0\n")
        while b"done" not in serial:
            if machine.wait(0.05):
                sys.exit("the machine ended before it answered")
        time.sleep(0.5)  # Linux draws a little later
        file.write_bytes(display.screenshot())
    print(f"{display.size[0]} by {display.size[1]} pixels: {file}")


if __name__ == "__main__":
    main()
