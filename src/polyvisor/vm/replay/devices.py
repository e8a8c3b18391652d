"""The virtio devices of a recorded machine: what is written down of them, and what stands in for them in a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyvisor.devices.display import Display
from polyvisor.devices.input import Axis, InputSource, Profile
from polyvisor.devices.virtio.balloon import BalloonDevice
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.gpu import GpuDevice
from polyvisor.devices.virtio.input import InputDevice
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.devices.virtio.p9 import P9Device
from polyvisor.devices.virtio.vsock import VsockDevice
from polyvisor.network.frame import Frame, format_mac
from polyvisor.network.port import Port

from ..snapshot.codec import to_plain
from .disk import RecordedDisk, ReplayedDisk
from .format import RecordingError

# What is said of devices that cannot be recorded.
_NAMES = {
    "ConsoleDevice": "a virtio console", "VirtioFsDevice": "a directory shared by virtiofs (9p can be)",
}


def prepare(device: VirtioDevice) -> dict[str, Any]:
    """Make a device ready to be recorded, and describe it. Raises RecordingError if it cannot be."""
    assert device.source is not None
    if isinstance(device, BlockDevice):
        device.disk = RecordedDisk(device.disk, device.source)
        return {
            "type": "block", "size": device.disk.size, "read_only": device.disk.read_only,
            "serial": device.serial,
        }
    if isinstance(device, NetDevice):
        return {"type": "net", "mac": format_mac(device.mac), "mtu": device.mtu, "up": device.port.up}
    if isinstance(device, VsockDevice):
        return {"type": "vsock", "cid": device.cid, "listening": device.listening}
    if isinstance(device, P9Device):
        return {"type": "9p", "tag": device.tag}
    if isinstance(device, BalloonDevice):
        return {"type": "balloon", "features": device.features}
    if isinstance(device, InputDevice):
        return {"type": "input", "profile": to_plain(device.profile)}
    if isinstance(device, GpuDevice):
        return {"type": "gpu", "sizes": [list(size) for size in device.preferred], "memory": device.max_memory}
    name = type(device).__name__
    raise RecordingError(f"a machine with {_NAMES.get(name, f'a {name}')} cannot be recorded")


def maker(description: dict[str, Any]) -> Callable[[], VirtioDevice]:
    """What makes the stand-in of a device. Raises RecordingError, also when it is called."""
    makers: dict[str, Callable[[dict[str, Any]], VirtioDevice]] = {
        "block": _block, "net": _net, "vsock": _vsock, "9p": _p9, "balloon": _balloon, "input": _input, "gpu": _gpu,
    }
    kind = description.get("type")
    if kind not in makers:
        raise RecordingError(f"a recording with a device {kind!r}, which this polyvisor does not know")
    return lambda: makers[kind](description)


def _block(description: dict[str, Any]) -> VirtioDevice:
    return BlockDevice(ReplayedDisk(description["size"], description["read_only"]), description["serial"])


class _Nowhere(Port):
    """Where frames go in a replay: what answers them is in the recording."""

    def _send(self, frame: Frame) -> None:
        pass


def _net(description: dict[str, Any]) -> VirtioDevice:
    port = _Nowhere()
    port.up = description["up"]
    return NetDevice(port, description["mac"], description["mtu"] or None)


def _vsock(description: dict[str, Any]) -> VirtioDevice:
    device = VsockDevice(description["cid"])
    for port in description["listening"]:
        device.listen(port, lambda stream: None)
    return device


def _p9(description: dict[str, Any]) -> VirtioDevice:
    return P9Device(None, description["tag"])


def _balloon(description: dict[str, Any]) -> VirtioDevice:
    device = BalloonDevice()
    device.features = description["features"]
    return device


def _input(description: dict[str, Any]) -> VirtioDevice:
    given = description["profile"]
    events = {kind: frozenset(codes) for kind, codes in given["events"]}
    axes = {code: Axis(**axis) for code, axis in given["axes"]}
    return InputDevice(InputSource(Profile(given["name"], given["product"], events, axes)))


def _gpu(description: dict[str, Any]) -> VirtioDevice:
    return GpuDevice(*(Display(*size) for size in description["sizes"]), max_memory=description["memory"])


def connect(device: VirtioDevice) -> None:
    """Let a stand-in get what was written down."""
    if isinstance(device, BlockDevice) and isinstance(device.disk, ReplayedDisk):
        device.disk.source = device.source
