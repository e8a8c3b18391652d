"""What a VM needs for runs that can be repeated: virtual time, a seed, and a recorder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.engine.conductor import Timing

from .errors import ForkError, VMError
from .machine import Machine

if TYPE_CHECKING:
    from .replay.recorder import Recorder

# What the real-time clock of a seeded machine begins with: 2026-01-01.
_EPOCH = 1_767_225_600 * 10**9


class Recording:
    """The options of :class:`~polyvisor.vm.virtual_machine.VM` by the same names. Raises ValueError."""

    def __init__(
        self, virtual_time: bool, seed: int | None, schedule: int | None, record: str | os.PathLike[str] | None
    ) -> None:
        self.virtual_time = virtual_time or record is not None
        if (seed is not None or schedule is not None) and not self.virtual_time:
            raise ValueError("a seed and a schedule go with virtual time: in real time nothing can be repeated")
        self._seed = seed
        self._schedule = schedule
        self._path = record
        self._recorder: Recorder | None = None

    def config(self, paced: bool) -> dict[str, Any]:
        """What VirtConfig has of it; ``paced``: who talks to the guest from outside takes the host's time."""
        if not self.virtual_time:
            return {}
        start = _EPOCH if self._seed is not None else None
        seed = self._seed if self._seed is not None else int.from_bytes(os.urandom(8), "little")
        return {
            "virtual_time": True, "timing": Timing(schedule=self._schedule, pace=paced, start=start),
            "entropy": SeededEntropy(seed),
        }

    def begin(self, machine: Machine, name: str) -> None:
        """A machine is ready to run: the first, or one after a reset. Raises RecordingError."""
        if self._path is None:
            return
        if self._recorder is not None:
            self._recorder.begin(machine, name=name)
            return
        from .replay.recorder import Recorder

        recorder = Recorder(self._path)
        try:
            recorder.begin(machine, name=name)
        except BaseException:
            recorder.abandon()
            raise
        self._recorder = recorder

    def close(self) -> VMError | None:
        """That was all; gives what went wrong."""
        try:
            if self._recorder is not None:
                self._recorder.close()
        except VMError as error:
            return error
        return None

    def may_change(self) -> None:
        """Raise VMError if the machine must not be changed from outside."""
        if self._recorder is not None:
            raise VMError("the machine is recorded: what is in it cannot be changed from outside")

    def may_fork(self) -> None:
        """Raise ForkError if the process must not be copied."""
        if self._recorder is not None:
            raise ForkError("no fork can be made: the machine is recorded")
