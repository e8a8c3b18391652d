"""Messages to a vhost-user back end, and its answers (QEMU's "Vhost-user Protocol", sections "Message Specification",
"Front-end message types" and "REPLY_ACK"). What the back end sends is checked before use.
"""

from __future__ import annotations

import array
import socket
import struct
import time
from collections.abc import Sequence

# Front-end message types.
GET_FEATURES = 1
SET_FEATURES = 2
SET_OWNER = 3
SET_MEM_TABLE = 5
SET_VRING_NUM = 8
SET_VRING_ADDR = 9
SET_VRING_BASE = 10
GET_VRING_BASE = 11
SET_VRING_KICK = 12
SET_VRING_CALL = 13
SET_VRING_ERR = 14
GET_PROTOCOL_FEATURES = 15
SET_PROTOCOL_FEATURES = 16
GET_QUEUE_NUM = 17
SET_VRING_ENABLE = 18
SET_BACKEND_REQ_FD = 21
GET_CONFIG = 24
SET_CONFIG = 25

# Back-end message types.
BACKEND_CONFIG_CHANGE = 2

# Protocol features, as bits; the feature bit says that the back end has such.
F_PROTOCOL_FEATURES = 1 << 30
PROTOCOL_F_MQ = 1 << 0
PROTOCOL_F_REPLY_ACK = 1 << 3
PROTOCOL_F_BACKEND_REQ = 1 << 5
PROTOCOL_F_CONFIG = 1 << 9

VERSION = 1
FLAG_REPLY = 4
FLAG_NEED_REPLY = 8

MAX_REGIONS = 8
"""Of a memory table."""
MAX_CONFIG = 256
"""Bytes of a configuration space."""

HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")
VRING_ADDRESS = struct.Struct("=IIQQQQ")
MEMORY_REGION = struct.Struct("=QQQQ")
CONFIG = struct.Struct("=III")

_NAMES = {value: name for name, value in list(globals().items()) if name.startswith(("GET_", "SET_"))}
_MAX_PAYLOAD = 4096


class VhostUserError(OSError):
    """The back end cannot be reached, ended, or broke the protocol; the message is one line for the user."""


class Refused(VhostUserError):  # noqa: N818
    """The back end answered that it will not do a request."""


class Connection:
    """Requests over ``connected``, a stream socket, which stays the caller's; no answer may take more than ``patience``
    seconds. The caller serialises calls.
    """

    def __init__(self, connected: socket.socket, patience: float) -> None:
        self._socket = connected
        self._patience = patience
        self.acknowledged = False
        """Whether REPLY_ACK was negotiated, so that every message is answered."""

    def ask(self, kind: int, payload: bytes = b"") -> bytes:
        """The payload of the answer to a message that has one. Raises VhostUserError."""
        self._send(kind, VERSION, payload, ())
        return self._answer(kind)

    def ask_u64(self, kind: int) -> int:
        """The number that answers a message without payload. Raises VhostUserError."""
        answer = self.ask(kind)
        if len(answer) != U64.size:
            raise VhostUserError(f"answers {_NAMES[kind]} with {len(answer)} bytes")
        number: int = U64.unpack(answer)[0]
        return number

    def tell(self, kind: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no answer of its own. Raises VhostUserError; Refused if the back end says so."""
        if not self.acknowledged:
            self._send(kind, VERSION, payload, fds)
            return
        self._send(kind, VERSION | FLAG_NEED_REPLY, payload, fds)
        answer = self._answer(kind)
        if len(answer) != U64.size:
            raise VhostUserError(f"acknowledges {_NAMES[kind]} with {len(answer)} bytes")
        if any(answer):
            raise Refused(f"refuses {_NAMES[kind]}")

    def _send(self, kind: int, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        data = HEADER.pack(kind, flags, len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.settimeout(self._patience)
            sent = self._socket.sendmsg([data], ancillary)
            self._socket.sendall(data[sent:])
        except TimeoutError:
            raise VhostUserError("does not read its messages") from None
        except OSError as error:
            raise VhostUserError("ended the connection") from error

    def _answer(self, kind: int) -> bytes:
        deadline = time.monotonic() + self._patience
        answered, flags, length = HEADER.unpack(self._receive(HEADER.size, deadline))
        if answered != kind or flags & 3 != VERSION or not flags & FLAG_REPLY or length > _MAX_PAYLOAD:
            raise VhostUserError(f"answers {_NAMES[kind]} with nonsense")
        return self._receive(length, deadline)

    def _receive(self, count: int, deadline: float) -> bytes:
        """Exactly ``count`` bytes; descriptors that come with them are dropped."""
        data = bytearray()
        while len(data) < count:
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                piece = self._socket.recv(count - len(data))
            except TimeoutError:
                raise VhostUserError("does not answer") from None
            except OSError as error:
                raise VhostUserError("ended the connection") from error
            if not piece:
                raise VhostUserError("ended the connection")
            data += piece
        return bytes(data)
