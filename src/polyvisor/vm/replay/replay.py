"""Runs a recording again: bit for bit, forwards and backwards."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from polyvisor.adl import DescriptionError
from polyvisor.boards.htif import Htif
from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.display import Display
from polyvisor.devices.virtio.gpu import GpuDevice
from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.engine.hart import Hart
from polyvisor.engine.memory import BusError
from polyvisor.engine.timing import Timing

from ..errors import SnapshotError
from ..inspect import CpuView, PhysicalMemory, VirtualMemory
from ..machine import Machine
from ..snapshot.codec import from_plain
from .devices import connect, maker
from .digest import MemoryDigest, set_state
from .format import Checkpoint, End, Life, Reader, RecordingError
from .moments import Moment, Moments
from .point import put
from .recorder import take_checkpoint
from .script import DivergenceError, LogScript, OverError

__all__ = ["DivergenceError", "RecordingError", "Replay", "replay"]


# What comes of a description of a machine that cannot be.
_NO_SENSE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error, BusError, DescriptionError,
    SnapshotError,
)


@dataclass
class _Settings:
    """What a machine is made with, as its recording says."""

    memory: int
    cpus: int
    bus: str
    packed: bool
    turn: int
    schedule: int | None
    start: int
    step: int | None
    epoch: int
    seed: int
    entropy: int


class Replay:
    """The machine of a recording. It runs while one of the methods below does, in the caller's thread.

    ``machine``: which one, by its name, where several ran together. ``tier`` of the engine, which need not be that of
    the recording; ``on_output`` gets the console's bytes again; ``check``: compare with the checkpoints, and raise
    DivergenceError at the first that differs. ``backwards``: keep what is needed to go back. Raises RecordingError.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, tier: str = "jit", on_output: Callable[[bytes], None] | None = None,
        check: bool = True, backwards: bool = True, machine: str | None = None,
    ) -> None:
        self._reader = Reader(path)
        self._tier = tier
        self._check = check
        self._backwards = backwards
        self._output = on_output or (lambda data: None)
        self._furthest = (0, 0)  # life and instructions: what is before that was shown, and checked
        self._breakpoints: frozenset[int] = frozenset()
        self._interrupted = False
        self.checked = 0
        """How many checkpoints were found to be the same."""
        self.life = 0
        """How many resets there have been."""
        self.ended = False
        """Whether the end of the recording was reached."""
        self.how = ""
        """How the last life that was over ended: off, reset, cut (by the outside), or lost (the file ends before)."""
        self.exit_code: int | None = None
        self.memory = PhysicalMemory(lambda: self.machine.board.memory, self._virtual, self._may_not)
        """RAM, to be looked at; ``memory.virtual(hart)`` by virtual addresses."""
        try:
            self.name, self._lives = self._choose(machine)
            self.machine = self._make(self._lives[0])
        except BaseException:
            self._reader.close()
            raise

    # Making the machine

    def _choose(self, name: str | None) -> tuple[str, list[Life]]:
        """The machine's name and lives."""
        names = self._reader.names
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            there = ", ".join(names)
            what = f"has no machine {name!r}; there are" if name is not None else "has several machines: choose one of"
            raise RecordingError(f"recording {str(self._reader.path)!r}: {what} {there}")
        return name, self._reader.tracks[names.index(name)]

    def _make(self, life: Life) -> Machine:
        about = life.machine
        machine = None
        try:
            names = [field.name for field in fields(_Settings)]
            known = from_plain(_Settings, {name: about[name] for name in names}, "machine")
            config = VirtConfig(
                memory=known.memory, cpus=known.cpus, bus=known.bus, packed=known.packed, tier=self._tier,
                virtual_time=True,
                timing=Timing(known.turn, known.schedule, False, known.start, known.step, known.epoch),
                entropy=SeededEntropy(known.seed, known.entropy), devices=[maker(each) for each in about["devices"]],
            )
            machine = Machine(config, self._show)
            self._load(machine, life, about)
        except BaseException as error:
            if machine is not None:
                machine.close()
            if isinstance(error, _NO_SENSE):
                raise RecordingError(f"recording {str(self._reader.path)!r}: is damaged ({error})") from None
            raise
        return machine

    def _load(self, machine: Machine, life: Life, about: dict[str, Any]) -> None:
        board = machine.board
        for address, data in self._reader.pages(life):
            board.memory.write(address, data)
        if "point" in about:
            put(machine, about["point"])
        else:
            for hart, state in zip(board.harts, about["harts"], strict=True):
                hart.cpu.reset()
                set_state(hart.state, state)
            board.boot_harts = [board.harts[number] for number in about["boot"]]
        for hart in board.harts:
            hart.cpu.set_breakpoints(self._breakpoints)
        if "htif" in about:
            tohost, fromhost = about["htif"]
            board.htif = Htif(board.memory, tohost, fromhost, self._show)
        for device in board.virtio_devices:
            connect(device)
        self._memory = MemoryDigest(board)
        self._script = LogScript(self._reader, life)
        assert board.conductor is not None
        conductor = self._conductor = board.conductor
        conductor.outside.script = self._script
        machine.sealed = True
        machine.prepare()
        board.start_compiling()
        self._moments = Moments(machine, self._script)
        self.first = conductor.executed
        """Instructions that were executed where this life's recording begins."""
        if self._backwards:
            if self.first:
                self._moments.take()
            conductor.on_settled.append(self._moments.take)
        conductor.before_turn.append(self._look)

    def _show(self, data: bytes) -> None:
        if (self.life, self.count) >= self._furthest:
            self._output(data)

    def _look(self) -> None:
        """Between turns: compare, and see whether this is where the recording ends."""
        event = self._script.peek()
        turn = self._conductor.state.turn
        if isinstance(event, Checkpoint) and event.turn == turn:
            self._compare(event)
            self._script.take()
            event = self._script.peek()
        if event is None or (isinstance(event, End) and event.how == "cut" and event.turn <= turn):
            self._conductor.halt()

    def _compare(self, recorded: Checkpoint) -> None:
        if not self._check:
            return
        now = take_checkpoint(self.machine, self._memory)
        if now != recorded:
            parts = [
                name for name in ("turn", "executed", "time", "memory", "registers", "devices")
                if getattr(now, name) != getattr(recorded, name)
            ]
            raise DivergenceError(
                f"the replay differs from the recording at the checkpoint at {recorded.executed:,} instructions "
                f"(turn {recorded.turn}), in: {', '.join(parts)}"
            )
        if (self.life, now.executed) >= self._furthest:
            self.checked += 1

    # Where it is

    @property
    def harts(self) -> Sequence[Hart]:
        """The harts."""
        return self.machine.board.harts

    @property
    def displays(self) -> Sequence[Display]:
        """What the machine's displays show."""
        devices = self.machine.board.virtio_devices
        return [display for device in devices if isinstance(device, GpuDevice) for display in device.displays]

    @property
    def cpu(self) -> Sequence[CpuView]:
        """The harts' registers, to be looked at: ``cpu[0].pc``, ``cpu[0].x["a0"]``."""
        return [CpuView(lambda n=n: self.harts[n], self._still, self._may_not) for n in range(len(self.harts))]  # type: ignore[misc]

    def _virtual(self, cpu: int = 0) -> VirtualMemory:
        return VirtualMemory(lambda: self.machine.board.memory, lambda: self.harts[cpu], self._still, self._may_not)

    @contextmanager
    def _still(self) -> Iterator[None]:
        yield

    def _may_not(self) -> None:
        raise RecordingError("a replay can be looked at, and not be changed")

    @property
    def turn_of(self) -> Hart:
        """The hart that executes the next instruction; in between turns, probably."""
        return self._conductor.running or self.harts[self._conductor.state.following]

    @property
    def count(self) -> int:
        """Instructions that all harts together have executed since the last reset."""
        return self._conductor.executed

    @property
    def time(self) -> int:
        """Virtual time since the last reset, in nanoseconds."""
        return self._conductor.now

    @property
    def epoch(self) -> int:
        """When that reset was, in the time that it has in common with the others of its group; in nanoseconds."""
        return self._conductor.timing.epoch

    # Forwards

    def run(self, until: int | None = None) -> Hart | None:
        """Go on to the end of the recording, to a breakpoint, or (of this life) to ``until`` executed instructions.

        Gives the hart that reached a breakpoint, None if none did; one where it is now does not count. Raises
        DivergenceError.
        """
        self._conductor.pass_breakpoint()
        return self._run(until)

    def _run(self, until: int | None, life: int | None = None) -> Hart | None:
        """See :meth:`run`; no further than to the end of ``life``."""
        self._interrupted = False
        while not self.ended and not self._interrupted and (until is None or self.count < until):
            if life is not None and self.life != life:
                break
            if self._go_on(until):
                return self._conductor.running
        return None

    def _go_on(self, until: int | None) -> bool:
        """To the end of a turn, or sooner; gives whether there is a breakpoint."""
        with self._to_the_end():
            if until is None:
                self._conductor.advance()
            elif not self._conductor.advance_before(until):
                self._conductor.step(breaking=True)
        if self._conductor.take_break():
            return True
        self._note()
        return False

    def advance(self) -> None:
        """Go on to the end of a turn, or to a breakpoint."""
        self._conductor.pass_breakpoint()
        self._go_on(None)

    def step(self, count: int = 1) -> None:
        """Execute so many instructions; with less than 0, go back by as many. Traps are none.

        Raises ValueError as :meth:`goto` does.
        """
        before = self.count
        self.goto(before + count)
        # The machine's end is some instructions behind the one that ended it.
        while count < 0 and self.first < before <= self.count:
            count -= 1
            self.goto(max(self.first, before + count))

    def step_once(self) -> Hart | None:
        """Execute one instruction, or enter one trap; gives the hart that did."""
        hart = None
        while hart is None and not self.ended:
            with self._to_the_end():
                hart = self._conductor.step()
            self._note()
        return hart

    @contextmanager
    def _to_the_end(self) -> Iterator[None]:
        """The recording may end before the machine does; or have what cannot be done to its devices."""
        try:
            yield
        except OverError:
            self._conductor.halt()
        except (*_NO_SENSE, AssertionError) as error:
            raise RecordingError(
                f"recording {str(self._reader.path)!r}: cannot be replayed from {self.count:,} instructions on: "
                f"{type(error).__name__}: {error}".splitlines()[0]
            ) from error

    def _note(self) -> None:
        """See whether the machine has ended."""
        self._furthest = max(self._furthest, (self.life, self.count))
        if self.machine.failure is not None:
            raise self.machine.failure
        if self._conductor.halted:
            self._finish_life()

    def _finish_life(self) -> None:
        """The machine has ended: is that what was recorded? Go on with the next life, if there is one."""
        event = self._script.peek()
        if isinstance(event, End):
            self.how, self.exit_code = event.how, event.code
            mine = "cut"
            if self.machine.ended_itself:
                mine = "reset" if self.machine.reset_requested else "off"
            if mine != event.how:
                raise DivergenceError(f"the replay differs: the machine ends by {mine!r}, and not by {event.how!r}")
            if mine != "cut":
                state = self._conductor.state
                self._compare(
                    Checkpoint(event.turn, state.executed, state.time, event.memory, event.registers, event.devices)
                )
        elif event is None:
            self.how = "lost"
        else:
            raise DivergenceError("the replay differs: the machine ends before the recording does")
        if self.life + 1 < len(self._lives):
            self.machine.close()
            self.life += 1
            self.machine = self._make(self._lives[self.life])
        else:
            self.ended = True

    def interrupt(self) -> None:
        """Make :meth:`run` return soon; from any thread."""
        self._interrupted = True
        for hart in self.harts:
            hart.cpu.stop()

    # Backwards

    def goto(self, count: int) -> None:
        """Go to where ``count`` instructions of this life were executed, forwards or backwards.

        Raises ValueError if that is not in the recording; it is at its end, or beginning, then.
        """
        where = max(count, self.first)
        if not self._backwards and where < self.count:
            raise RecordingError("this replay does not go back: it was made with backwards=False")
        moment = self._moments.before(where)
        if moment is not None and (where < self.count or moment.executed > self.count):
            self._back_to(moment)
        with self._without_breakpoints():
            self.run(where)
        if count < where or self.count < where or (self.count > where and not self.ended):
            raise ValueError(f"the recording has no instruction {count:,}: it is now at {self.count:,}")

    def goto_time(self, when: int) -> None:
        """Go to where it is ``when``, in nanoseconds since the last reset; what then waits has waited longer.

        Raises ValueError if that is not in the recording; it is at its end, or beginning, then.
        """
        if not self._backwards and when < self.time:
            raise RecordingError("this replay does not go back: it was made with backwards=False")
        moment = self._moments.before_time(max(when, 0))
        if moment is not None and (when < self.time or moment.time > self.time):
            self._back_to(moment)
        life = self.life
        with self._without_breakpoints():
            self._conductor.pass_breakpoint()
            while self.time < when and not self.ended and self.life == life:
                self._go_on(self.count + when - self.time)
        if when < 0 or self.life != life or self.time < when:
            raise ValueError(f"the recording has no such time, {when:,}: it is now at {self.time:,}")

    def _back_to(self, moment: Moment) -> None:
        self.ended = False
        self.machine.undo_end()
        self._moments.go(moment)

    @contextmanager
    def _without_breakpoints(self) -> Iterator[None]:
        kept = self._breakpoints
        self.set_breakpoints(())
        try:
            yield
        finally:
            self.set_breakpoints(kept)

    def goto_life(self, life: int) -> None:
        """Go to the beginning of a life of the machine: 0 is the first, 1 that after the first reset.

        Raises ValueError if there is none.
        """
        if not 0 <= life < len(self._lives):
            raise ValueError(f"the recording has no life {life}: there are {len(self._lives)}, from 0 on")
        self.machine.close()
        self.ended = False
        self.life = life
        self.machine = self._make(self._lives[life])

    @property
    def epochs(self) -> list[int]:
        """The :attr:`epoch` of each life."""
        return [int(life.machine["epoch"]) for life in self._lives]

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Let :meth:`run` and :meth:`reverse_continue` stop before instructions at these virtual addresses."""
        wanted = frozenset(addresses)
        if wanted != self._breakpoints:
            self._breakpoints = wanted
            for hart in self.harts:
                hart.cpu.set_breakpoints(wanted)

    def reverse_continue(self) -> Hart | None:
        """Go back to the last time that a breakpoint was reached, over resets too, or to the beginning.

        Gives the hart that reached it; None at the beginning.
        """
        if not self._backwards:
            raise RecordingError("this replay does not go back: it was made with backwards=False")
        hart = self._reverse(self.count)
        while hart is None and self.life > 0:
            hart = self._last_of(self.life - 1)
        return hart

    def _last_of(self, life: int) -> Hart | None:
        """Go to the last time that a breakpoint was reached in a life, or to its beginning."""
        self.goto_life(life)
        reached = None
        while (hart := self._run(None, life)) is not None:
            reached = self.count, int(hart.state.pc), hart.hart_id
            self._conductor.pass_breakpoint()
        self.goto_life(life)
        return None if reached is None else self._at(*reached)

    def _at(self, count: int, pc: int, number: int) -> Hart:
        """Go to where a hart reached a breakpoint."""
        self.goto(count)
        # A trap that leads there executes nothing.
        for _ in range(4):
            if int(self.harts[number].state.pc) == pc:
                break
            self.step_once()
        return self.harts[number]

    def _reverse(self, end: int) -> Hart | None:
        """The same in this life, from where ``end`` instructions were executed."""
        for moment in reversed([each for each in self._moments if each.executed < end]):
            self._back_to(moment)
            found: tuple[int, int, int] | None = None
            hart = self._run(end)
            while hart is not None and self.count < end:
                found = self.count, int(hart.state.pc), hart.hart_id
                hart = self.run(end)
            if found is not None:
                return self._at(*found)
            end = moment.executed
        self.goto(self.first)
        return None

    def close(self) -> None:
        """Give back what it holds."""
        self.machine.close()
        self._reader.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def replay(
    path: str | os.PathLike[str], *, tier: str = "jit", on_output: Callable[[bytes], None] | None = None,
    check: bool = True, backwards: bool = True, machine: str | None = None,
) -> Replay:
    """The machine of a recording, at its beginning; see :class:`Replay`. Raises RecordingError."""
    return Replay(path, tier=tier, on_output=on_output, check=check, backwards=backwards, machine=machine)
