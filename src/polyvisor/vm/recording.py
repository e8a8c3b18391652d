"""What a VM needs for runs that can be repeated: virtual time, a seed, and a recorder, or a group that has them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from polyvisor.boards.virt import VirtConfig
from polyvisor.dataclass import replace
from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.engine.timing import Timing

from .errors import ForkError, VMError
from .machine import Machine

if TYPE_CHECKING:
    from .equipment import Nic
    from .group.group import Member
    from .replay.recorder import Recorder
    from .virtual_machine import VM

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
        self._error: BaseException | None = None

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

    def begin_now(self, vm: VM, path: str | os.PathLike[str], seed: int | None = None) -> threading.Event:
        """Record from the end of this turn on, as soon as the machine goes on; gives what tells when that is so.

        ``seed``: let its random numbers and its schedule follow from that now. Raises VMError.
        """
        from .replay.recorder import Recorder

        if self._member is not None:
            raise VMError("the machine is of a group, which records all of its machines")
        if not self.virtual_time:
            raise VMError("only machines in virtual time can be recorded")
        if self._recorder is not None:
            raise VMError("the machine is recorded already")
        recorder = Recorder(path)
        began = threading.Event()

        def done(error: BaseException | None) -> None:
            self._error = error
            if error is None:
                self._recorder = recorder
            else:
                recorder.abandon()
            began.set()

        with vm.paused():
            if seed is not None:
                vary(vm, seed)
            begin_midway(vm, recorder, done)
        return began

    def check(self) -> None:
        """Raise what kept :meth:`begin_now` from recording."""
        error, self._error = self._error, None
        if error is not None:
            raise error

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

    def may_fork(self, group: bool) -> None:
        """Raise ForkError if the process must not be copied; ``group``: with all machines of the group."""
        if self._member is not None and not group:
            raise ForkError("no fork can be made: the machine is of a group")
        if self._recorder is not None or (self._member is not None and self._member.recorder is not None):
            raise ForkError("no fork can be made: the machine is recorded")


def vary(vm: VM, seed: int) -> None:
    """Let random numbers and the schedule of a machine that stands still follow from ``seed`` from now on."""
    board = vm.machine.board
    conductor, entropy = board.conductor, board.config.entropy
    assert conductor is not None and isinstance(entropy, SeededEntropy)
    entropy.seed, entropy.position = seed, 0
    conductor.timing = replace(conductor.timing, schedule=seed)
    vm.config = replace(vm.config, timing=replace(vm.config.timing, schedule=seed))


def begin_midway(vm: VM, recorder: Recorder, done: Callable[[BaseException | None], None]) -> None:
    """Let ``recorder`` begin where the turn of now ends, when the machine, which stands still, goes on.

    ``done`` is told of that, or of what went wrong, on the thread that runs the machine.
    """
    machine = vm.machine
    conductor = machine.board.conductor
    assert conductor is not None

    def begin() -> None:
        conductor.on_settled.remove(begin)
        try:
            recorder.begin(machine, midway=True, name=vm.name)
        except BaseException as error:
            done(error)
        else:
            done(None)

    conductor.on_settled.append(begin)
    conductor.state.settles = 0  # at the next turn
