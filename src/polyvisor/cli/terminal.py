"""The user's terminal as a guest's console: raw input, an escape key, pipes, and everything put back at the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator

ESCAPE = 0x01  # Ctrl-A
_END_INTERVAL = 1.0  # seconds between two signs that the input has ended
HELP = """
Ctrl-A x   quit: cut the machine's power
Ctrl-A c   the monitor: look at the machine, pause it, reset it
Ctrl-A s   save what the display shows
Ctrl-A h   this help
Ctrl-A a   send Ctrl-A to the guest (Ctrl-A Ctrl-A too)
"""


@contextlib.contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Make a terminal pass every key through; however this ends, it is put back. Does nothing for a pipe."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)

    def ended(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signals = (signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(s, ended) for s in signals]
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        # Output stays cooked, so that what the host prints needs no carriage returns.
        mode = termios.tcgetattr(descriptor)
        mode[1] = before[1]
        termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def cooked_terminal(descriptor: int, mode: list[object] | None = None) -> Iterator[None]:
    """Inside :func:`raw_terminal`: line editing and echo for a while, for the monitor."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    now = termios.tcgetattr(descriptor)
    now[0] |= termios.ICRNL | termios.IXON
    now[3] |= termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN
    termios.tcsetattr(descriptor, termios.TCSADRAIN, now)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Output:
    """Standard output as the console's far end, with a status line on standard error until the guest speaks.

    ``broken`` is called once if nobody reads the output any more.
    """

    def __init__(self, broken: Callable[[], None]) -> None:
        self._broken = broken
        self._lock = threading.Lock()
        self._status = False
        self._closed = False
        self._show_status = sys.stderr.isatty()
        self.spoken = False

    def write(self, data: bytes) -> None:
        """Print the guest's bytes at once."""
        with self._lock:
            self.spoken = True
            self._clear()
            while data and not self._closed:
                try:
                    data = data[os.write(1, data) :]
                except BlockingIOError:
                    select.select([], [1], [])
                except OSError:
                    self._closed = True
                    threading.Thread(target=self._broken, daemon=True).start()

    def status(self, text: str) -> None:
        """Show what takes time, until the guest prints something; only on a terminal."""
        if not self._show_status or self.spoken:
            return
        with self._lock:
            os.write(2, f"\r\x1b[2K{text}".encode())
            self._status = True

    def message(self, text: str) -> None:
        """Print something of our own, on standard error."""
        with self._lock:
            self._clear()
            os.write(2, text.encode())

    def _clear(self) -> None:
        if self._status:
            os.write(2, b"\r\x1b[2K")
            self._status = False


class Input:
    """Standard input to the guest, in a thread of its own.

    ``send(data)`` takes bytes for the console and gives how many it took; ``ready()`` tells whether the guest reads
    its console yet (what comes through a pipe waits for that); ``quit``, ``monitor`` and ``screenshot`` are escapes.
    """

    def __init__(
        self,
        send: Callable[[bytes], int],
        ready: Callable[[], bool],
        quit: Callable[[], None],
        monitor: Callable[[], None],
        screenshot: Callable[[], None],
        message: Callable[[str], None],
    ) -> None:
        self._send, self._ready, self._message = send, ready, message
        self._quit, self._monitor, self._screenshot = quit, monitor, screenshot
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._interactive = os.isatty(0)
        self._escaped = False
        self._last = b"\n"
        self._thread = threading.Thread(target=self._main, name="console input", daemon=True)

    def start(self) -> None:
        """Begin to pass on what is typed."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, so that the terminal can be put back."""
        self._stopping.set()
        os.write(self._wake_write, b"x")
        if threading.current_thread() is not self._thread:
            self._thread.join(1)

    def _main(self) -> None:
        while not self._stopping.is_set():
            try:
                readable, _, _ = select.select([0, self._wake_read], [], [])
                if self._stopping.is_set():
                    return
                data = os.read(0, 4096) if 0 in readable else b""
            except (OSError, ValueError):
                return
            if not data:
                if not self._interactive:
                    self._deliver_end()
                return
            self._last = data[-1:]
            self._deliver(self._without_escapes(data) if self._interactive else data)

    def _deliver_end(self) -> None:
        """The end of a pipe stays the end: whoever reads in the guest next is told, as by a terminal.

        Ctrl-U first, because a Ctrl-D that came while nobody read is no end of file to a shell with line editing,
        but the beginning of a line.
        """
        if self._last not in b"\n\r":
            self._deliver(b"\n")
        while not self._stopping.is_set():
            self._deliver(b"\x15\x04")
            self._stopping.wait(_END_INTERVAL)

    def _deliver(self, data: bytes) -> None:
        while not self._interactive and not self._ready():
            if self._stopping.wait(0.01):
                return
        while data and not self._stopping.is_set():
            taken = self._send(data)
            data = data[taken:]
            if data:
                self._stopping.wait(0.01)

    def _without_escapes(self, data: bytes) -> bytes:
        """The bytes for the guest; escapes are acted on."""
        out = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                match byte:
                    case 0x61 | 0x01:
                        out.append(ESCAPE)
                    case 0x78:
                        self._quit()
                    case 0x63:
                        self._monitor()
                    case 0x73:
                        self._screenshot()
                    case _:
                        self._message(HELP)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                out.append(byte)
        return bytes(out)
