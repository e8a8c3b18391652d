"""A machine's display, with a keyboard and a pointer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from polyvisor.dataclass import dataclass, field
from polyvisor.devices.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from polyvisor.devices.display import Display
    from polyvisor.devices.input import Keyboard, Tablet


@dataclass
class Screen:
    """A display of ``width`` by ``height`` pixels and, unless ``bare``, a keyboard and a tablet. All outlive resets."""

    width: int = 1024
    height: int = 768
    bare: bool = False
    display: Display = field(init=False)
    keyboard: Keyboard = field(init=False)
    pointer: Tablet = field(init=False)

    def __post_init__(self) -> None:
        """Raises ValueError for an impossible size."""
        from polyvisor.devices.display import Display
        from polyvisor.devices.input import Keyboard, Tablet

        self.display = Display(self.width, self.height)
        self.keyboard, self.pointer = Keyboard(), Tablet(self.display)

    def makers(self) -> list[Callable[[], VirtioDevice]]:
        """What makes the devices."""
        from polyvisor.devices.virtio.gpu import GpuDevice
        from polyvisor.devices.virtio.input import InputDevice

        makers: list[Callable[[], VirtioDevice]] = [partial(GpuDevice, self.display)]
        if not self.bare:
            makers += [partial(InputDevice, self.keyboard), partial(InputDevice, self.pointer)]
        return makers
