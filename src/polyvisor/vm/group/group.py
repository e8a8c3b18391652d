"""Several machines that run together in one virtual time, and are recorded together.

>>> with polyvisor.Group(seed=1, record="both.rec") as group:     # doctest: +SKIP
...     group.machines["one"].run("ping -c 1 10.0.0.2")
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from polyvisor.network.switch import Switch

from ..errors import ForkError, VMError
from ..machine import Machine
from ..recording import SEEDED_START, begin_midway, vary
from .ensemble import STEP, Ensemble

if TYPE_CHECKING:
    from ..replay.format import Writer
    from ..replay.recorder import Recorder
    from ..virtual_machine import VM
    from .fork import GroupFork


def derived(seed: int, name: str) -> int:
    """A seed of 64 bits for something of its own."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


class Group:
    """Machines in one virtual time. As a context manager it boots them all; leaving stops them.

    Its machines are those VMs that are made with ``group=``; all are made before it starts. ``seed`` makes their random
    numbers, and their cards' addresses if they have none; without one, one is drawn. ``schedule`` makes turns of harts
    longer and shorter. ``record``: the file for all of them. ``step``: seconds that no machine is ahead of another, and
    that a frame is on its way at least; ``checkpoint``: instructions of a machine from one checkpoint to the next.
    Raises ValueError.
    """

    def __init__(
        self, *, seed: int | None = None, schedule: int | None = None, record: str | os.PathLike[str] | None = None,
        step: float = STEP / 1e9, checkpoint: int | None = None,
    ) -> None:
        if not 1e-6 <= step <= 1:
            raise ValueError(f"a step of {step!r} seconds: must be from 0.000001 to 1")
        self.seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        self.schedule = schedule
        self.clock_start = SEEDED_START if seed is not None else time.time_ns()
        """What the machines' real-time clocks begin with, in nanoseconds since 1970."""
        self.machines: dict[str, VM] = {}
        """By their names."""
        self.time = Ensemble(round(step * 1e9))
        """For switches that are not made by :meth:`switch`."""
        self._path = record
        self._checkpoint = checkpoint
        self._members: list[Member] = []
        self._switches: list[Switch] = []
        self._writer: Writer | None = None
        self._started = False

    # What is in it

    def switch(self, *, seed: int | None = None, hub: bool = False) -> Switch:
        """A switch in this time; its ``seed`` is that of the group by default. It is closed with the group."""
        made = Switch(seed=self.seed if seed is None else seed, hub=hub, time=self.time)
        self._switches.append(made)
        return made

    def add(self, vm: VM) -> Member:
        """For the VM: become a member. Raises ValueError."""
        if self._started:
            raise ValueError("the group has started: all its machines must be made before")
        if vm.name in self.machines:
            raise ValueError(f"the group has a machine {vm.name!r} already: give this one a name")
        self.machines[vm.name] = vm
        self._members.append(Member(self, vm))
        return self._members[-1]

    # Time

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        return self.time.now / 1e9

    @property
    def wall_clock(self) -> int:
        """The same as nanoseconds since 1970, as a machine's clock shows it: for captures."""
        return self.clock_start + self.time.now

    def at(self, when: float, function: Callable[[], object]) -> None:
        """Call ``function`` when it is so many seconds: to cut a cable, to partition a network.

        All machines wait meanwhile, so it must not wait for one. What it raises ends them all.
        """
        self.time.call_at(round(when * 1e9), partial(_forget_result, function))

    # Its life

    def start(self) -> None:
        """Let all machines run. Raises what VMs raise, and RecordingError."""
        if self._started:
            raise VMError("the group has been started already")
        self._started = True
        try:
            if self._path is not None:
                from ..replay.format import Writer

                self._writer = Writer(self._path)
            for member in self._members:
                member.vm.start()
            if self._writer is not None:
                self._writer.begun()
        except BaseException:
            for vm in self.machines.values():
                vm.kill()
            if self._writer is not None:
                self._writer.abandon()
            raise
        self.time.start()

    def boot(self, timeout: float | None = 120.0) -> None:
        """Start, if need be, and wait until all agents answer. Raises VMError."""
        if not self._started:
            self.start()
        for vm in self.machines.values():
            vm.wait_ready(timeout)

    def stop(self) -> None:
        """Stop all machines, and finish the recording. May be repeated. Raises RecordingError."""
        self._end([partial(vm.stop) for vm in self.machines.values()])

    def kill(self) -> None:
        """The same, without asking the guests."""
        self._end([vm.kill for vm in self.machines.values()])

    def _end(self, calls: list[Callable[[], object]]) -> None:
        ending = [threading.Thread(target=call) for call in calls]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()
        self.time.close()
        for switch in self._switches:
            switch.close()
        if self._writer is not None:
            self._writer.close()

    # Copies

    def fork(self, seed: int, *, record: str | os.PathLike[str] | None = None) -> GroupFork:
        """A copy of all machines that run and of the networks between them, in a process of its own, from here on.

        Schedules, random numbers and the networks' faults follow from ``seed`` there. ``record``: a file that begins
        with all that is in the machines. Raises ForkError, RecordingError, and OSError for what the host cannot give.
        """
        from .fork import fork_group

        return fork_group(self, seed, record)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let all machines stand still for a block."""
        with contextlib.ExitStack() as held:
            for vm in self.machines.values():
                if vm.running:
                    held.enter_context(vm.paused())
            yield

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        """Stand still, and be ready for a copy of the process. Raises ForkError if there cannot be one."""
        for switch in self._switches:
            if switch.has_outside:
                raise ForkError("no fork can be made: a network of the group leads to the outside")
        with contextlib.ExitStack() as held:
            for vm in self.machines.values():
                if vm.running:
                    held.enter_context(vm.copying(group=True))
            yield

    def revive(self, names: Sequence[str]) -> None:
        """In a copy of the process, still within :meth:`copying`: be ready for :meth:`part`, standing still.

        ``names``: of the machines that run.
        """
        for number, name in enumerate(names):
            self.machines[name].revive(first=number == 0)
            self.machines[name].pause()

    def part(
        self, seed: int, identify: Mapping[str, Callable[[], None]], record: str | os.PathLike[str] | None
    ) -> None:
        """After that: go on with another seed.

        ``identify``: what to call when a machine's agent is there, for those that run. Raises OSError, RecordingError.
        """
        self.seed = seed
        members = [member for member in self._members if member.vm.name in identify]
        for member in members:
            member.vm.part(identify[member.vm.name])
            member.vm.machine.reconnect()
        self.time.revive()
        for switch in self._switches:
            switch.revive(seed)
        if record is not None:
            from ..replay.format import Writer

            self._writer = Writer(record)
            self._writer.begun()
        for member in members:
            member.revive()
        self.time.start()
        for member in members:
            member.vm.release()
            member.vm.resume()
            member.wake()

    @property
    def running(self) -> bool:
        """Whether it is about to start its machines, or has."""
        return self._started

    def recorder(self) -> Recorder | None:
        """For a member: what records it; None if nothing does."""
        if self._writer is None:
            return None
        from ..replay.recorder import CHECKPOINT, Recorder

        return Recorder(self._writer.track(), self._checkpoint or CHECKPOINT)

    def __enter__(self) -> Group:
        try:
            self.boot()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, *reason: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()


def _forget_result(function: Callable[[], object]) -> None:
    function()


class Member:
    """A VM of a group, as its :class:`~polyvisor.vm.recording.Recording` sees it."""

    def __init__(self, group: Group, vm: VM) -> None:
        self.group = group
        self.vm = vm
        self.seed = derived(group.seed, vm.name)
        self.schedule = None if group.schedule is None else derived(group.schedule, vm.name)
        self.recorder: Recorder | None = None
        self._seat = group.time.seat()
        self._seat.returns = self._returns

    @property
    def clock_start(self) -> int:
        """What the real-time clock of the next machine begins with."""
        return self.group.clock_start + self._seat.epoch

    def _returns(self) -> bool:
        vm = self.vm
        return vm.machine.reset_requested and vm.reboot and not vm.is_stopping

    def begin(self, machine: Machine) -> None:
        """A machine is ready to run: the first, or one after a reset. Raises VMError."""
        if not self.group.running:
            raise VMError(f"{self.vm.name} is of a group: start that")
        assert machine.board.conductor is not None
        self._seat.take(machine.board.conductor)
        if self.recorder is None:
            self.recorder = self.group.recorder()
        if self.recorder is not None:
            self.recorder.begin(machine, name=self.vm.name)

    def revive(self) -> None:
        """In a copy of the process: let what is left to chance follow from the group's seed of now."""
        self.seed = derived(self.group.seed, self.vm.name)
        vary(self.vm, self.seed)
        recorder = self.group.recorder()
        if recorder is None:
            return

        def done(error: BaseException | None) -> None:
            if error is not None:
                raise error
            self.recorder = recorder

        begin_midway(self.vm, recorder, done)

    def wake(self) -> None:
        """Let a turn begin soon, though all harts wait: what is to begin with it does."""
        board = self.vm.machine.board
        assert board.conductor is not None
        board.conductor.kicked(board.harts[0])

    def close(self) -> None:
        """That was the last one."""
        self._seat.leave()
        if self.recorder is not None:
            self.recorder.end()
