"""Writes down what happens to a machine from outside while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from polyvisor.boards.virt import Virt
from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.engine.outside import Operation, Plain

from ..machine import Machine
from ..snapshot.ram import nonzero, runs
from .devices import prepare
from .digest import MemoryDigest, devices_digest, registers_digest, state_of
from .format import Checkpoint, End, Event, RecordingError, Track, Value, Writer
from .point import captured

CHECKPOINT = 1 << 30
"""Instructions from one checkpoint to the next."""
_FLUSH_EVERY = 1.0  # seconds: so much is lost if the process dies


class Recorder:
    """Records a machine, and those that follow it after resets, to the file ``path``, or to a track of one.

    The machine is in virtual time, and its entropy is seeded. ``checkpoint``: instructions from one to the next.
    Everything raises RecordingError where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | Track, checkpoint: int = CHECKPOINT) -> None:
        if checkpoint < 1:
            raise ValueError(f"a checkpoint every {checkpoint} instructions: must be at least 1")
        self._alone = not isinstance(path, Track)  # else somebody else has the file
        self._track = path if isinstance(path, Track) else Writer(path).track()
        self._checkpoint = checkpoint
        self._next = 0
        self._machine: Machine | None = None
        self._memory: MemoryDigest | None = None
        self._flushed = time.monotonic()

    def begin(self, machine: Machine, midway: bool = False, **about: Any) -> None:
        """A machine is loaded and will start: write down where it starts from. ``about`` goes into the description.

        ``midway``: it runs already, and this is between two turns, on the thread that runs them, with harts settled.
        Raises RecordingError if it cannot be recorded.
        """
        board = machine.board
        conductor = board.conductor
        if conductor is None:
            raise RecordingError("only machines in virtual time can be recorded")
        if not isinstance(board.config.entropy, SeededEntropy):
            raise RecordingError("only machines with seeded entropy can be recorded")
        if board.htif is not None:
            about = {**about, "htif": [board.htif.tohost, board.htif.fromhost]}
        timing = conductor.timing
        if midway:
            about = {**about, "point": captured(machine)}
        description = {
            "memory": board.config.memory, "cpus": board.config.cpus, "bus": board.config.bus,
            "packed": board.config.packed, "tier": board.config.tier,
            "turn": timing.turn, "schedule": timing.schedule, "start": board.started_at,
            "step": timing.step, "epoch": timing.epoch,
            "seed": board.config.entropy.seed, "entropy": board.config.entropy.position,
            "devices": [prepare(device) for device in board.virtio_devices[1:]],
            "harts": [state_of(hart.state) for hart in board.harts],
            "boot": [hart.hart_id for hart in board.boot_harts],
            **about,
        }
        self._machine = machine
        self._memory = MemoryDigest(board)
        self._next = 0
        self._track.machine(description)
        for address, data in _contents(board):
            self._track.pages(address, data)
        if self._alone:
            self._track.writer.begun()
        machine.sealed = True
        machine.on_close.append(self.end)
        conductor.outside.log = self
        conductor.before_turn.append(self._look)

    def _look(self) -> None:
        """Between turns: time for a checkpoint?"""
        assert self._machine is not None
        conductor = self._machine.board.conductor
        assert conductor is not None
        if conductor.executed >= self._next:
            self._next = conductor.executed + self._checkpoint
            self._write(self.checkpoint())
        now = time.monotonic()
        if now - self._flushed > _FLUSH_EVERY:
            self._flushed = now
            self._track.flush()

    def checkpoint(self) -> Checkpoint:
        """What the machine is now."""
        assert self._machine is not None and self._memory is not None
        return take_checkpoint(self._machine, self._memory)

    def operation(self, operation: Operation) -> None:
        """See :class:`polyvisor.engine.outside.Log`."""
        self._write(operation)

    def value(self, source: str, value: tuple[Plain, ...]) -> None:
        """See :class:`polyvisor.engine.outside.Log`."""
        self._write(Value(source, value))

    def _write(self, event: Event) -> None:
        self._track.event(event)

    def end(self) -> None:
        """The machine has ended; it is not closed yet."""
        machine, self._machine = self._machine, None
        if machine is None:
            return
        conductor = machine.board.conductor
        assert conductor is not None
        conductor.join()
        if machine.ended_itself and self._memory is not None:
            last = take_checkpoint(machine, self._memory)
            how = "reset" if machine.reset_requested else "off"
            self._write(End(how, machine.exit_code, last.turn, last.memory, last.registers, last.devices))
        else:
            self._write(End("cut", machine.exit_code, conductor.state.turn))
        self._track.flush()

    def abandon(self) -> None:
        """The machine did not start: there is nothing to record."""
        self._machine = None
        self._track.writer.abandon()

    def close(self) -> None:
        """Finish the file, with all its tracks; may be repeated."""
        self.end()
        self._track.writer.close()


def take_checkpoint(machine: Machine, memory: MemoryDigest) -> Checkpoint:
    """What a machine is now, while it stands still: of turn and time, how they were when the turn began."""
    board = machine.board
    assert board.conductor is not None
    state = board.conductor.state
    return Checkpoint(
        state.turn, state.executed, state.time, memory.take(), registers_digest(board), devices_digest(board)
    )


def _contents(board: Virt) -> Iterator[tuple[int, bytes]]:
    """The parts of RAM that are not zero."""
    for index, ram in enumerate(board.memory.ram):
        for offset, length in nonzero(ram.view, runs(board.memory, board.pages, index)):
            yield ram.base + offset, bytes(ram.view[offset : offset + length])
