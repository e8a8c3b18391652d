"""What a VM needs for runs that can be repeated: virtual time, a seed, and a recorder, or a group that has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.engine.conductor import Timing

from .errors import ForkError, VMError
from .machine import Machine

if TYPE_CHECKING:
    from .equipment import Nic
    from .group.group import Member
    from .replay.recorder import Recorder

SEEDED_START = 1_767_225_600 * 10**9
"""What the real-time clock of a seeded machine begins with: 2026-01-01, in nanoseconds since 1970."""


class Recording:
    """The options of :class:`~polyvisor.vm.virtual_machine.VM` by the same names. Raises ValueError."""

    def __init__(
        self, virtual_time: bool, seed: int | None, schedule: int | None, record: str | os.PathLike[str] | None,
        member: Member | None = None,
    ) -> None:
        """``member``: what the machine is in its group."""
        if member is not None:
            if seed is not None or schedule is not None or record is not None:
                raise ValueError("give seed, schedule and record to the machine's group, not to the machine")
            virtual_time, seed, schedule = True, member.seed, member.schedule
        self._member = member
        self.virtual_time = virtual_time or record is not None
        if (seed is not None or schedule is not None) and not self.virtual_time:
            raise ValueError("a seed and a schedule go with virtual time: in real time nothing can be repeated")
        self._seed = seed
        self._schedule = schedule
        self._path = record
        self._recorder: Recorder | None = None

    def config(self, agent: bool, networks: Sequence[Nic]) -> dict[str, Any]:
        """What VirtConfig has of it.

        With an agent, or a network that is not all of machines in this time, somebody outside talks to the guest, who
        takes the host's time. Cards get addresses that follow from the seed, if they were given none.
        """
        if not self.virtual_time:
            return {}
        start = SEEDED_START if self._seed is not None else None
        seed = self._seed if self._seed is not None else int.from_bytes(os.urandom(8), "little")
        if self._seed is not None:
            for number, nic in enumerate(networks):
                nic.draw_mac(f"{seed} {number}")
        paced = agent or any(self._leads_outside(nic) for nic in networks)
        return {
            "virtual_time": True, "timing": Timing(schedule=self._schedule, pace=paced, start=start),
            "entropy": SeededEntropy(seed),
        }

    def _leads_outside(self, nic: Nic) -> bool:
        if self._member is None or isinstance(nic.to, str):
            return True
        return nic.to.time is not self._member.group.time or nic.to.has_outside

    def next_life(self, config: VirtConfig) -> VirtConfig:
        """``config`` for a machine that is to be made now."""
        if self._member is None:
            return config
        return replace(config, timing=replace(config.timing, start=self._member.clock_start))

    def begin(self, machine: Machine, name: str) -> None:
        """A machine is ready to run: the first, or one after a reset. Raises RecordingError."""
        if self._member is not None:
            self._member.begin(machine)
            return
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
            if self._member is not None:
                self._member.close()
            if self._recorder is not None:
                self._recorder.close()
        except VMError as error:
            return error
        return None

    def may_change(self) -> None:
        """Raise VMError if the machine must not be changed from outside."""
        if self._recorder is not None or (self._member is not None and self._member.recorder is not None):
            raise VMError("the machine is recorded: what is in it cannot be changed from outside")

    def may_fork(self) -> None:
        """Raise ForkError if the process must not be copied."""
        if self._member is not None:
            raise ForkError("no fork can be made: the machine is of a group")
        if self._recorder is not None:
            raise ForkError("no fork can be made: the machine is recorded")
