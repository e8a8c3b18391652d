"""The state of a whole machine as a value: taken while it stands still, given to another, kept in files."""

from __future__ import annotations

from polyvisor.vm.errors import SnapshotError

from .machine_state import MachineState, apply, capture, restored_machine

__all__ = ["MachineState", "SnapshotError", "apply", "capture", "restored_machine"]
