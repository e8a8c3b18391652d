"""Boot Linux with a display and a keyboard, type a command on its screen, and save a picture of the answer.

    python examples/screenshot.py [FILE.png]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import polyvisor
from polyvisor.vm.equipment import Screen


def main() -> None:
    """Take the picture."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "polyvisor-screenshot.png"
    screen = Screen(640, 400)
    # console=tty0 comes last: the shell is on the display.
    with polyvisor.VM("debian", memory="256M", display=screen, append="console=tty0") as vm:
        while not screen.display.active:
            screen.display.wait_for_change(1)
        screen.keyboard.type("clear; uname -srm; cat /sys/class/drm/*/modes; touch /tmp/done\n")
        vm.run("while [ ! -e /tmp/done ]; do sleep 0.1; done; sleep 0.5", timeout=30)
        file.write_bytes(screen.display.screenshot())
    print(f"{screen.width} by {screen.height} pixels: {file}")


if __name__ == "__main__":
    main()
