"""The state of a machine in the midst of its run, where a recording begins with it: all but what is in RAM."""

from __future__ import annotations

from typing import Any

from ..machine import Machine
from ..snapshot.codec import from_plain, to_plain
from ..snapshot.machine_state import MachineState, Shape, apply, capture_devices
from .moments import extra_of, put_extra


def captured(machine: Machine) -> dict[str, Any]:
    """The state as plain data. Between two turns, on the thread that runs them, where the harts are settled."""
    state = capture_devices(machine)
    return {
        "shape": to_plain(state.shape), "board": state.board, "virtio": state.virtio,
        "extra": [to_plain(extra_of(device)) for device in machine.board.virtio_devices],
    }


def put(machine: Machine, point: dict[str, Any]) -> None:
    """Let a machine that has not started go on from there. Raises SnapshotError, and KeyError for what is missing."""
    shape = from_plain(Shape, point["shape"], "shape")
    apply(machine, MachineState(shape, point["board"], point["virtio"]), with_ram=False, reconnect=False)
    for device, extra in zip(machine.board.virtio_devices, point["extra"], strict=True):
        if extra is not None:
            put_extra(device, extra)
