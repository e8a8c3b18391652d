"""The console of a machine as an object: what the guest printed, what one types, and waiting for a text."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from .errors import StoppedError, VMTimeoutError
from .forkable import Forkable

# Of a log that is longer, the beginning is forgotten.
_MOST = 16 << 20
_RETRY = 0.005  # seconds until the port is offered what it did not take


class Console(Forkable):
    """The serial console. Output is kept from the start; :meth:`expect` and :meth:`read` go on where they last were.

    ``send`` gives bytes to the port and tells how many it took. Text is UTF-8, with what is not replaced.
    """

    def __init__(self, send: Callable[[bytes], int]) -> None:
        super().__init__()
        self._send = send
        self._log = bytearray()
        self._dropped = 0  # bytes of the log that were forgotten
        self._cursor = 0  # in all that was printed
        self._ended = False
        self._listeners: list[Callable[[bytes], None]] = []
        self._telling = threading.local()

    # From the machine

    def feed(self, data: bytes) -> None:
        """The guest printed ``data``."""
        with self._changed:
            self._log += data
            if len(self._log) > _MOST:
                excess = len(self._log) - _MOST // 2
                del self._log[:excess]
                self._dropped += excess
            self._changed.notify_all()
            listeners = list(self._listeners)
        before, self._telling.now = self.telling, True
        try:
            for listener in listeners:
                listener(data)
        finally:
            self._telling.now = before

    @property
    def telling(self) -> bool:
        """Whether this thread is one of the machine's, and is calling a listener."""
        return getattr(self._telling, "now", False)

    def begin(self) -> None:
        """The machine starts (again)."""
        self._ended = False

    def end(self) -> None:
        """The machine has ended: nothing more will be printed."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def revive(self) -> None:
        """In a copy of the process: those who listen are with the other one."""
        super().revive()
        self._listeners.clear()

    # For users

    @property
    def log(self) -> str:
        """All that was printed, at most the last 16 MiB of it."""
        with self._changed:
            return self._log.decode(errors="replace")

    @property
    def position(self) -> int:
        """How many bytes have been printed; see :meth:`since`."""
        with self._changed:
            return self._dropped + len(self._log)

    def since(self, position: int) -> str:
        """What was printed after :attr:`position` had that value."""
        with self._changed:
            return self._log[max(0, position - self._dropped) :].decode(errors="replace")

    def tail(self, lines: int = 10) -> str:
        """The last lines that were printed, for messages."""
        return "\n".join(self.since(self.position - 8192).replace("\r", "").rstrip().split("\n")[-lines:])

    def listen(self, listener: Callable[[bytes], None], last: int = 0) -> Callable[[], None]:
        """Call ``listener`` with what is printed from now on, in the thread of a hart; gives what ends that.

        First, and at once, it gets up to ``last`` bytes of what was printed before.
        """
        with self._changed:
            if last:
                listener(bytes(self._log[-last:]))
            self._listeners.append(listener)

        def end() -> None:
            with self._changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def expect(self, *patterns: str | bytes | re.Pattern[bytes], timeout: float | None = 60) -> re.Match[bytes]:
        """Wait for the first text that matches one of the regular expressions; gives the match of bytes.

        Looks at what was printed behind the last match (or :meth:`read`). Raises VMTimeoutError, and StoppedError if
        the machine ends first; ``re.escape`` helps with text that is no expression.
        """
        compiled = [p if isinstance(p, re.Pattern) else re.compile(p.encode() if isinstance(p, str) else p)
                    for p in patterns]  # fmt: skip
        if not compiled:
            raise ValueError("expect needs a pattern to wait for")
        match: re.Match[bytes] | None = None

        def found() -> bool:
            nonlocal match
            text = bytes(self._log[max(0, self._cursor - self._dropped) :])
            matches = [m for m in (p.search(text) for p in compiled) if m is not None]
            match = min(matches, key=lambda m: m.start(), default=None)
            return match is not None

        shown = " or ".join(repr(p.pattern.decode(errors="replace")) for p in compiled)
        with self._changed:
            in_time = self._changed.wait_for(lambda: found() or self._ended, timeout)
            if match is not None:
                self._cursor = max(self._cursor, self._dropped) + match.end()
                return match
        if in_time:
            raise StoppedError(f"the machine ended before its console showed {shown}; it ends:\n{self.tail()}")
        raise VMTimeoutError(f"the console did not show {shown} within {timeout:g} seconds; it ends:\n{self.tail()}")

    def read(self, timeout: float | None = 0) -> str:
        """What was printed since the last :meth:`expect` or :meth:`read`; with a ``timeout``, waits for something."""
        with self._changed:
            self._changed.wait_for(lambda: self._dropped + len(self._log) > self._cursor or self._ended, timeout)
            text = self._log[max(0, self._cursor - self._dropped) :].decode(errors="replace")
            self._cursor = self._dropped + len(self._log)
            return text

    def send(self, text: str | bytes, timeout: float | None = 60) -> None:
        """Type ``text``. Raises VMTimeoutError if the guest does not read it, and StoppedError."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        end = None if timeout is None else time.monotonic() + timeout
        while data:
            if self._ended:
                raise StoppedError("the machine has ended: nobody reads its console")
            data = data[self._send(data) :]
            if data:
                if end is not None and time.monotonic() > end:
                    raise VMTimeoutError(f"the guest did not read its console within {timeout:g} seconds")
                time.sleep(_RETRY)

    def sendline(self, text: str | bytes = "", timeout: float | None = 60) -> None:
        """Type a line, and Enter."""
        self.send((text.encode() if isinstance(text, str) else bytes(text)) + b"\r", timeout)
