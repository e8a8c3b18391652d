"""A machine that can be started, typed at, waited for and stopped."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

from polyvisor.boards.virt import Virt, VirtConfig
from polyvisor.engine.hart import Hart
from polyvisor.engine.memory import Extent

from .errors import VMError

# How often a bare-metal program's `tohost` is looked at, in seconds.
_HTIF_INTERVAL = 0.0005
# How long a thread may keep the interpreter's lock when others want it, in seconds; Python's own choice is 0.005.
_SWITCH_INTERVAL = 0.0002


class Machine:
    """A `virt` board and its life: load something, :meth:`start`, :meth:`wait`, :meth:`stop`.

    ``output`` is called with the console's bytes, from the thread of the hart that printed them. ``ram``: what RAM
    begins with, see :class:`~polyvisor.boards.virt.Virt`.
    """

    def __init__(
        self,
        config: VirtConfig,
        output: Callable[[bytes], None],
        progress: Callable[[str], None] | None = None,
        ram: Mapping[int, Sequence[Extent]] | None = None,
    ) -> None:
        self.board = Virt(config, output=output, power=self._power, failed=self._fail, progress=progress, ram=ram)
        self.exit_code: int | None = None
        self.reset_requested = False
        self.failure: BaseException | None = None
        self.history = ""
        self.on_close: list[Callable[[], None]] = []
        """Called by :meth:`close`, when nothing runs any more and all is still there."""
        self.sealed = False
        """Whether nobody may change registers and memory from outside: it is recorded, or replayed."""
        self.ended_itself = False
        """Whether the guest ended it, and nobody else."""
        self._ended = threading.Event()
        self._htif_thread: threading.Thread | None = None
        self._closed = False
        self._reconnected = False
        self._on_break: Callable[[Hart], None] | None = None

    # What happens to it

    def _power(self, kind: str, code: int) -> None:
        if not self._ended.is_set():
            self.ended_itself = True
        self.reset_requested = kind == "reset"
        if not self._ended.is_set():
            self.exit_code = code
        self._end()

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self._end()

    def _end(self) -> None:
        self._ended.set()
        if self.board.conductor is not None:
            self.board.conductor.halt()
        for hart in self.board.harts:
            hart.halt()

    # What one does with it

    def start(self) -> None:
        """Let the loaded software run."""
        self.prepare()
        conductor = self.board.conductor
        if conductor is None:
            for hart in self.board.harts:
                hart.launch()
            for hart in self.board.boot_harts:
                hart.begin()
        else:
            conductor.start()
        try:
            self.board.start_compiling()
        except BaseException:
            self.close()
            raise
        if self.board.htif is not None and conductor is None:
            self._watch()

    def revive(self, first: bool = True) -> None:
        """In a copy of the process (``os.fork``), which has none of its threads: be ready to :meth:`resume`.

        ``first``: of the machines in this process.
        Nobody had any lock of the machine's when the process was copied but this thread. May raise OSError.
        """
        self._ended = threading.Event()
        self.board.revive(first)

    def reconnect(self) -> None:
        """Tell drivers already before it goes on that the world outside is another one."""
        self.board.reconnect()
        self._reconnected = True

    def revived(self) -> None:
        """After that, when it goes on: begin with what is not needed for that."""
        if not self._reconnected:
            self.board.reconnect()
        if self._htif_thread is not None:
            self._watch()

    def _watch(self) -> None:
        self._htif_thread = threading.Thread(target=self._watch_htif, name="htif", daemon=True)
        self._htif_thread.start()

    def prepare(self) -> None:
        """What :meth:`start` does first. In virtual time, the board's conductor can run the machine then."""
        # A hart that asks for a device must not wait long for threads that compute.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL))
        if self.board.conductor is not None:
            for hart in self.board.boot_harts:
                hart.begin()
            if self.board.htif is not None:
                self.board.conductor.before_turn.append(self._look_at_htif)

    def _watch_htif(self) -> None:
        while not self._ended.wait(_HTIF_INTERVAL):
            self._look_at_htif()

    def _look_at_htif(self) -> None:
        htif = self.board.htif
        code = htif.poll() if htif is not None else None
        if code is not None:
            self._power("off", code)

    def send(self, data: bytes) -> int:
        """Send bytes to the console; gives how many were taken."""
        return self.board.uart.receive(data)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the machine has ended, ``timeout`` seconds at most; gives whether it has.

        Raises what a hart or device failed of.
        """
        ended = self._ended.wait(timeout)
        if self.failure is not None:
            raise self.failure
        return ended

    def check_thread(self) -> None:
        """Raise VMError where a hart's own thread is about to wait until the harts stand still."""
        if any(hart.is_this_thread for hart in self.board.harts):
            raise VMError("a hart called this function, and cannot wait until it stands still")

    def pause(self) -> None:
        """Make all harts stand still."""
        if self.board.conductor is not None:
            self.board.conductor.pause()
            return
        for hart in self.board.harts:
            hart.pause()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        if self.board.conductor is not None:
            self.board.conductor.resume()
            return
        for hart in self.board.harts:
            hart.resume()

    def step(self, hart: Hart) -> Hart:
        """Let ``hart`` execute one instruction, or take a trap, while all stand still.

        In virtual time it is not anybody's turn at any time: there the machine goes on by one instruction. Gives the
        hart that executed.
        """
        if self.board.conductor is not None:
            stepped = self.board.conductor.step()
            while stepped is None and not self._ended.is_set():
                stepped = self.board.conductor.step()
            return stepped or hart
        found = hart.cpu.step()
        while found.kind == "stop":  # left over from making it stand still
            found = hart.cpu.step()
        hart.handle(found)
        return hart

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Let harts stop before instructions at these virtual addresses. While all stand still; raises ValueError."""
        for hart in self.board.harts:
            hart.cpu.set_breakpoints(addresses)

    @property
    def on_break(self) -> Callable[[Hart], None] | None:
        """Told, in its thread, of a hart that reached a breakpoint, before it stands still."""
        return self._on_break

    @on_break.setter
    def on_break(self, told: Callable[[Hart], None] | None) -> None:
        self._on_break = told
        if self.board.conductor is not None:
            self.board.conductor.on_break = told
        for hart in self.board.harts:
            hart.on_break = told

    def stop(self) -> None:
        """End it, as if the power were cut."""
        self._end()

    def undo_end(self) -> None:
        """It has not ended, after all: in virtual time, where it is put into an earlier state."""
        assert self.board.conductor is not None
        self._ended.clear()
        self.exit_code, self.reset_requested, self.ended_itself = None, False, False
        self.board.conductor.undo_halt()

    def close(self) -> None:
        """Stop, and give back memory and files. The machine cannot be used afterwards."""
        if self._closed:
            return
        self._closed = True
        self._end()
        if self.board.conductor is not None:
            self.board.conductor.join()
        for hart in self.board.harts:
            hart.join()
        if self._htif_thread is not None:
            self._htif_thread.join()
        with ExitStack() as closing:
            closing.callback(self.board.close)
            for call in self.on_close:
                closing.callback(call)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
