"""A replay for the server that debuggers talk to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from polyvisor.boards.virt import Virt
from polyvisor.engine.hart import Hart

from .replay import Replay

_LOOK = 0.05  # seconds


class ReplayTarget:
    """A replay as :class:`~polyvisor.vm.gdb.harts.HartTarget` wants a machine: it runs in a thread of this."""

    sealed = True

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._thread: threading.Thread | None = None
        self.on_break: Callable[[Hart], None] | None = None
        self.history = ""
        """``begin`` or ``end`` where the replay stopped at one of the recording's."""
        self.failure: BaseException | None = None

    @property
    def board(self) -> Virt:
        """The board, of the life that the replay is in."""
        return self._replay.machine.board

    def pause(self) -> None:
        """Make it stand still."""
        if self._thread is not None and self._thread is not threading.current_thread():
            while self._thread.is_alive():  # one that only begins to run may overlook it
                self._replay.interrupt()
                self._thread.join(_LOOK)
            self._thread = None

    def resume(self) -> None:
        """Let it run to a breakpoint, or to the end."""
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.history = ""
        hart: Hart | None = None
        try:
            hart = self._replay.run()
        except BaseException as error:
            self.failure = error
        if hart is None and (self._replay.ended or self.failure is not None):
            self.history = "end"
            hart = self._replay.turn_of
        if hart is not None and self.on_break is not None:
            self.on_break(hart)

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Where to stop, both ways."""
        self._replay.set_breakpoints(addresses)

    def step(self, hart: Hart) -> Hart:
        """One instruction, or trap."""
        self.history = ""
        found = self._replay.step_once()
        if found is None:
            self.history = "end"
        return found or self._replay.turn_of

    def reverse_step(self) -> Hart:
        """One instruction back."""
        self.history = "begin" if self._replay.count <= self._replay.first else ""
        if self._replay.count > self._replay.first:
            self._replay.step(-1)
        return self._replay.turn_of

    def reverse_continue(self) -> Hart:
        """Back to a breakpoint, or to the beginning."""
        found = self._replay.reverse_continue()
        self.history = "begin" if found is None else ""
        return found or self._replay.turn_of

    def stop(self) -> None:
        """The debugger has enough of it."""
        self._replay.interrupt()
