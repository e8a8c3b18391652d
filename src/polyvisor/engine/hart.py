"""A hart: one CPU of a machine and the host thread that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .cpu import Exit
from .executor import Executor

if TYPE_CHECKING:
    from .conductor import Conductor

# The longest a hart that is not started sleeps before it looks again, in seconds; only a safety net.
_LONGEST_WAIT = 10.0


class Line:
    """One interrupt input of a hart: a byte of its state, written by the platform alone."""

    def __init__(self, hart: Hart, name: str) -> None:
        self._hart = hart
        self._member = f"line_{name}"

    def set(self, level: bool) -> None:
        """Drive the line; may be called from any thread."""
        setattr(self._hart.state, self._member, int(level))
        self._hart.kick(level)


class Hart:
    """One CPU with its thread. ``handlers`` maps reasons given to ``cpu.leave`` to functions of the hart.

    A hart is ``stopped`` until :meth:`start`; ``wfi`` is handled here, where the CPU does not wait by itself.
    """

    def __init__(self, cpu: Executor, number: int, frequency: int, failed: Callable[[BaseException], None]) -> None:
        self.cpu = cpu
        self.hart_id = number
        self.frequency = frequency
        self.handlers: dict[str, Callable[[Any], None]] = {}
        self.execute: Callable[[], Exit] = cpu.run  # or something that runs it otherwise, such as a tracer
        self.on_break: Callable[[Hart], None] | None = None  # told, in the hart's thread, before it stands still
        self.conductor: Conductor | None = None  # who runs it in virtual time, instead of a thread of its own
        self.started = False
        self._failed = failed
        self._wake = threading.Event()
        self._halt = False
        self._paused = threading.Event()
        self._resume = threading.Event()
        self._resume.set()
        self._thread: threading.Thread | None = None
        self._revived = False

    # Control, from any thread

    @property
    def state(self) -> Any:
        """The described state: ``hart.state.x[10]``, ``hart.state.pc`` ..."""
        return self.cpu.state

    def line(self, name: str) -> Line:
        """The interrupt input ``name``: meip, seip, mtip, msip."""
        return Line(self, name)

    def kick(self, raised: bool = True) -> None:
        """Something the hart should look at has changed; ``raised``: it may interrupt the hart."""
        if self.conductor is None:
            self.cpu.poke()
        elif raised:
            self.conductor.kicked(self)

    def launch(self) -> None:
        """Make the thread; the hart runs once it is started."""
        self._thread = threading.Thread(target=self._main, name=f"hart{self.hart_id}", daemon=True)
        self._thread.start()

    def revive(self) -> None:
        """In a copy of the process (``os.fork``), which has none of its threads: stand still there, as it did."""
        self.cpu.revive()
        self._wake, self._paused, self._resume = threading.Event(), threading.Event(), threading.Event()
        self._paused.set()
        self._revived = self._thread is not None
        self._thread = None

    def begin(self) -> None:
        """Let the hart execute from its pc."""
        self.started = True
        if self.conductor is not None:
            self.conductor.begins(self)
        self._wake.set()

    def halt(self) -> None:
        """End the thread, wherever the guest is."""
        self._halt = True
        self._resume.set()
        self.cpu.stop()
        self._wake.set()

    @property
    def is_this_thread(self) -> bool:
        """Whether it is the hart's own thread that asks."""
        return self._thread is threading.current_thread()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None and not self.is_this_thread:
            self._thread.join(timeout)

    def pause(self) -> None:
        """Stop executing; returns when the hart stands still. Not from the hart's own thread."""
        self._resume.clear()
        self.cpu.stop()
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            while not self._paused.wait(0.05) and self._thread.is_alive():
                self.cpu.stop()
                self._wake.set()

    @property
    def is_still(self) -> bool:
        """Whether it executes nothing, and will not before :meth:`launch` or :meth:`resume`."""
        if self.conductor is not None:
            return self.conductor.is_still
        return self._paused.is_set() or self._thread is None or not self._thread.is_alive()

    def put(self, started: bool) -> None:
        """Let it be started or stopped, as another hart was. While it stands still."""
        self.started = started
        self._wake.set()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._paused.clear()
        self._resume.set()
        if self._revived:
            self._revived = False
            self.launch()

    # The thread

    def _main(self) -> None:
        try:
            while not self._halt:
                if not self._resume.is_set():
                    self._paused.set()
                    self._resume.wait()
                    continue
                if not self.started:
                    self._wake.wait(_LONGEST_WAIT)
                    self._wake.clear()
                    continue
                self.handle(self.execute())
        except BaseException as error:
            self._failed(error)

    def handle(self, found: Exit) -> None:
        """Do what the guest left native code for."""
        if found.kind == "breakpoint" and self.on_break is not None:
            self._resume.clear()
            self.on_break(self)
        if found.kind != "leave":
            return
        if found.reason == "wfi":
            self.wait()
        elif found.reason in self.handlers:
            self.handlers[found.reason](self)
        else:
            raise RuntimeError(f"hart {self.hart_id} asked the platform for {found.reason!r}, which it does not offer")

    def wait(self) -> None:
        """Sleep until an interrupt is pending, a timer is due, or someone wants something."""
        if self.conductor is not None:
            self.conductor.waits(self)
            return
        # What asks for a halt or a pause says so first, and then stops the CPU, which ends its wait.
        if not self._halt and self._resume.is_set():
            self.cpu.wait()
