"""The host's end of a byte stream to a program in the guest, with flow control (VIRTIO 1.2, section 5.10.6.3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .vsock import VsockDevice

# How many bytes the guest may send before some are taken, and how many wait here to be sent, at most.
BUFFER = 256 << 10
_U32 = 2**32 - 1


class Stream:
    """A connection. All methods may be called from any thread; those that wait take a ``timeout`` in seconds.

    ``on_change``, if set, is called whenever there is something new to receive, or the stream has ended or broken;
    the device's lock is held then, so it must not wait for anything.
    """

    def __init__(self, device: VsockDevice, port: int, peer_port: int) -> None:
        self.port = port
        self.peer_port = peer_port
        self.on_change: Callable[[], None] | None = None
        self.is_open = False
        self.closed = False
        """Whether the host's side closed it."""
        self.queued = False  # the device's: it is in the device's list of streams that have something to send
        self.shutdown_sent = False
        self._device = device
        self._changed = threading.Condition(device.lock)
        self._broken = False
        self._incoming = bytearray()
        self._incoming_ended = False
        self._peer_sent_all = False
        self._peer_takes_none = False
        self._outgoing = bytearray()
        self._outgoing_ended = False
        self._taken = 0  # bytes received and taken, modulo 2^32
        self._advertised = 0  # the same, as the guest was last told
        self._sent = 0  # bytes sent, modulo 2^32
        self._peer_room = 0
        self._peer_taken = 0
        # In virtual time: what was asked of the device and is not done yet.
        self.generation = 0  # the device's: tells it from earlier ones of the same ports
        self._posted = 0  # bytes that are to be sent
        self._seen = 0  # bytes of those received that are taken
        self._close_posted = False

    # For users

    @property
    def lock(self) -> threading.RLock:
        """The device's lock, which guards the stream too."""
        return self._device.lock

    def wait_open(self, timeout: float | None = None) -> None:
        """Wait until the guest has accepted. Raises ConnectionRefusedError and TimeoutError; both end the stream."""
        with self._device.lock:
            if not self._changed.wait_for(lambda: self.is_open or self._broken, timeout):
                self.abort()
                raise TimeoutError(f"the guest did not answer on port {self.peer_port} within {timeout:g} seconds")
            if not self.is_open:
                raise ConnectionRefusedError(f"nobody in the guest listens on port {self.peer_port}")

    def send(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Send all of ``data``; waits while more than 256 KiB are on their way.

        Raises BrokenPipeError when the guest takes no more, and TimeoutError, when a part may have been sent.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        data = memoryview(data).cast("B")
        with self._device.guard():
            while len(data):
                left = None if deadline is None else deadline - time.monotonic()
                if not self._changed.wait_for(lambda: self._stuck or self._unsent < BUFFER, left):
                    raise TimeoutError(f"the guest did not take the data within {timeout:g} seconds")
                if self._stuck:
                    raise BrokenPipeError("the guest has closed the connection")
                piece = data[: BUFFER - self._unsent]
                data = data[len(piece) :]
                if self._device.post(self, "send", bytes(piece)):
                    self._posted += len(piece)
                else:
                    self._send(piece)

    def receive(self, count: int = BUFFER, timeout: float | None = None) -> bytes:
        """Up to ``count`` bytes, as soon as there are any; nothing at the end of the stream.

        Raises ConnectionResetError if it broke, and TimeoutError.
        """
        with self._device.guard():
            if not self._changed.wait_for(lambda: self._unseen or self._incoming_ended or self._broken, timeout):
                raise TimeoutError(f"nothing came from the guest within {timeout:g} seconds")
            if not self._unseen and not self._incoming_ended:
                raise ConnectionResetError("the guest broke the connection")
            return self.take_received(count)

    def take_received(self, count: int = BUFFER) -> bytes:
        """What has been received, up to ``count`` bytes; does not wait. With the device's lock held."""
        data = bytes(memoryview(self._incoming)[self._seen : self._seen + count])
        if self._device.post(self, "took", len(data)):
            self._seen += len(data)
        else:
            self._take_away(len(data))
        return data

    def _take_away(self, count: int) -> None:
        del self._incoming[:count]
        self._taken = (self._taken + count) & _U32
        self._took(self._incoming_ended)

    def _discard(self, ended: bool) -> None:
        self._taken = (self._taken + len(self._incoming)) & _U32
        self._incoming.clear()
        self._seen = 0
        self._took(ended)

    def _took(self, ended: bool) -> None:
        """Tell the guest of the room there is, if it may need it."""
        unknown = (self._taken - self._advertised) & _U32
        if self.is_open and not self._broken and not ended and unknown >= BUFFER // 2:
            self._device.send_credit(self)
            self._device.pump()

    @property
    def at_end(self) -> bool:
        """Whether nothing more will be received, and all was taken."""
        return not self._unseen and (self._incoming_ended or self._broken)

    @property
    def broken(self) -> bool:
        """Whether it ended otherwise than by the guest's closing it."""
        return self._broken and not self._incoming_ended

    def end(self) -> None:
        """Nothing more will be sent: the guest sees the end after what was sent before."""
        with self._device.guard():
            if not self._device.post(self, "end"):
                self._end()

    def close(self) -> None:
        """End both directions, after what was sent before; may be repeated."""
        with self._device.guard():
            if self.closed or self._close_posted:
                return
            self._close_posted = True
            if not self._device.post(self, "close"):
                self._close()

    # What was asked for, with the device's lock held

    def do(self, operation: str, argument: int | str | bytes | None) -> None:
        """Do what was posted in virtual time."""
        if operation == "send":
            assert isinstance(argument, bytes)
            self._posted = max(0, self._posted - len(argument))
            if not self._stuck:
                self._send(argument)
            self._changed.notify_all()
        elif operation == "took":
            assert isinstance(argument, int)
            count = min(argument, len(self._incoming))
            self._seen = max(0, self._seen - count)
            self._take_away(count)
        elif operation == "end":
            self._end()
        elif operation == "close":
            self._close()
        else:
            self._abort()

    def _send(self, data: bytes | memoryview) -> None:
        self._outgoing += data
        if self.can_send:
            self._device.wants_to_send(self)
            self._device.pump()

    def _end(self) -> None:
        if not self._outgoing_ended:
            self._outgoing_ended = True
            self._device.wants_to_send(self)
            self._device.pump()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            ended, self._incoming_ended = self._incoming_ended, True
            # A guest that still sends must not wait for us: then it might never take what was sent to it.
            self._discard(ended)
            if not self.is_open or self._broken:
                self._abort()
                return
            self._outgoing_ended = True
            self.shutdown_sent = False  # of one direction, if any: now both
            self._device.wants_to_send(self)
            self._device.pump()

    def _abort(self) -> None:
        self._device.forget(self, reset=True)
        self._device.pump()
        self.was_reset()

    # For users

    def abort(self) -> None:
        """Break the connection; what was not sent yet is lost."""
        with self._device.guard():
            if not self._device.post(self, "abort"):
                self._abort()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    @property
    def _unsent(self) -> int:
        return len(self._outgoing) + self._posted

    @property
    def _unseen(self) -> int:
        return len(self._incoming) - self._seen

    @property
    def _stuck(self) -> bool:
        return self._broken or self._outgoing_ended

    # For the device, with its lock held

    def save(self) -> dict[str, Any]:
        """All that is to be known to go on."""
        saved = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return saved | {"_incoming": bytes(self._incoming), "_outgoing": bytes(self._outgoing)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to what :meth:`save` gave."""
        vars(self).update(saved)
        self._incoming, self._outgoing = bytearray(saved["_incoming"]), bytearray(saved["_outgoing"])

    @property
    def can_send(self) -> bool:
        """Whether there is data and the guest has room for some."""
        return bool(self._outgoing) and self._credit > 0

    @property
    def _credit(self) -> int:
        # A guest that shrinks its buffer can make this negative.
        return self._peer_room - ((self._sent - self._peer_taken) & _U32)

    @property
    def has_ended_sending(self) -> bool:
        """Whether the end is all that is left to be sent."""
        return self._outgoing_ended and not self._outgoing and not self.shutdown_sent

    def take(self, count: int) -> bytes:
        """Up to ``count`` bytes to send now."""
        count = max(0, min(count, self._credit))
        data = bytes(memoryview(self._outgoing)[:count])
        del self._outgoing[:count]
        self._sent = (self._sent + len(data)) & _U32
        if data:
            self._tell()
        return data

    def advertise(self) -> int:
        """How much was taken, as every packet says."""
        self._advertised = self._taken
        return self._taken

    def credit(self, room: int, taken: int) -> None:
        """Every packet says how much room the guest has."""
        self._peer_room, self._peer_taken = room, taken
        if self.can_send:
            self._device.wants_to_send(self)

    def was_opened(self) -> None:
        """The guest accepted, or asked for it."""
        self.is_open = True
        if self.can_send:
            self._device.wants_to_send(self)
        self._tell()

    def received(self, data: bytes) -> bool:
        """Keep ``data``; False if there is more than the guest may send."""
        if self._peer_sent_all or len(self._incoming) + len(data) > BUFFER:
            return False
        self._incoming += data
        if self.closed:
            self._discard(False)  # nobody wants it
        self._tell()
        return True

    def peer_ended(self, no_more_sent: bool, no_more_received: bool) -> bool:
        """The guest sends nothing more, or takes nothing more; gives whether both are so by now."""
        if no_more_sent:
            self._peer_sent_all = self._incoming_ended = True
        if no_more_received:
            self._peer_takes_none = self._outgoing_ended = True
            self._outgoing.clear()
            self.shutdown_sent = True
        self._tell()
        return self._peer_sent_all and self._peer_takes_none

    def was_reset(self) -> None:
        """The connection is gone."""
        self._broken = True
        self._outgoing.clear()
        self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        if self.on_change is not None:
            self.on_change()
