"""A machine that can be started, typed at, waited for and stopped."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from polyvisor.boards.virt import Virt, VirtConfig
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
        self._ended = threading.Event()
        self._htif_thread: threading.Thread | None = None
        self._closed = False

    # What happens to it

    def _power(self, kind: str, code: int) -> None:
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
        for hart in self.board.harts:
            hart.halt()

    # What one does with it

    def start(self) -> None:
        """Let the loaded software run."""
        # A hart that asks for a device must not wait long for threads that compute.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL))
        for hart in self.board.harts:
            hart.launch()
        for hart in self.board.boot_harts:
            hart.begin()
        try:
            self.board.start_compiling()
        except BaseException:
            self.close()
            raise
        if self.board.htif is not None:
            self._watch()

    def revive(self) -> None:
        """In a copy of the process (``os.fork``), which has none of its threads: be ready to :meth:`resume`.

        Nobody had any lock of the machine's when the process was copied but this thread. May raise OSError.
        """
        self._ended = threading.Event()
        self.board.revive()

    def revived(self) -> None:
        """After that, when it goes on: begin with what is not needed for that."""
        self.board.reconnect()
        if self.board.regions is not None:
            self.board.regions.start()
        if self._htif_thread is not None:
            self._watch()

    def _watch(self) -> None:
        self._htif_thread = threading.Thread(target=self._watch_htif, name="htif", daemon=True)
        self._htif_thread.start()

    def _watch_htif(self) -> None:
        htif = self.board.htif
        assert htif is not None
        while not self._ended.wait(_HTIF_INTERVAL):
            code = htif.poll()
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
        for hart in self.board.harts:
            hart.pause()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        for hart in self.board.harts:
            hart.resume()

    def stop(self) -> None:
        """End it, as if the power were cut."""
        self._end()

    def close(self) -> None:
        """Stop, and give back memory and files. The machine cannot be used afterwards."""
        if self._closed:
            return
        self._closed = True
        self._end()
        for hart in self.board.harts:
            hart.join()
        if self._htif_thread is not None:
            self._htif_thread.join()
        self.board.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
