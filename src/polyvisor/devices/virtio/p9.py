"""The 9P transport device: a directory of the host, shared with the guest.

VIRTIO 1.2 only numbers it (section 5: device 9). The layout is the one Linux's driver has: one queue, whose buffers are
a request to read and room for the reply, and a configuration space with the tag by which the guest mounts it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, Self

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError, scatter, split
from polyvisor.engine.outside import Plain, Source
from polyvisor.storage.p9.errors import ShareError
from polyvisor.storage.p9.fids import SessionState
from polyvisor.storage.p9.server import Server
from polyvisor.storage.p9.tree import Tree

__all__ = ["P9Device", "P9State", "ShareError", "check_tag"]

QUEUE_SIZE = 128
F_MOUNT_TAG = 1 << 0
MAX_TAG = 64

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def check_tag(tag: str, longest: int) -> None:
    """Raise ShareError for a tag that is not up to ``longest`` letters, digits, dots, dashes and underscores."""
    if not _TAG.fullmatch(tag) or len(tag) > longest:
        raise ShareError(f"tag {tag!r}: give up to {longest} letters, digits, '.', '-' and '_'")


@dataclass
class P9State:
    """What the guest has open."""

    session: SessionState = field(default_factory=SessionState)
    waiting: dict[int, Chain] = field(default_factory=dict)
    """Buffers of requests that wait for a lock, by their tags."""


class P9Device(VirtioDevice):
    """Shares what ``server``, which the device closes, serves; the guest mounts it by ``tag``.

    Requests are done while the driver's notification is handled, so a hart waits for the host's files.
    """

    device_id = 9

    def __init__(self, server: Server | None, tag: str) -> None:
        """``server``: None where all replies come from a recording.

        Raises ShareError for a tag that is not up to 64 letters, digits, dots, dashes and underscores.
        """
        check_tag(tag, MAX_TAG)
        self._server = server
        self._waiting: dict[int, Chain] = {}
        super().__init__(F_MOUNT_TAG, (QUEUE_SIZE,), P9State())
        self.tag = tag
        self._config = len(tag).to_bytes(2, "little") + tag.encode("ascii")

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], tag: str = "host", read_only: bool = False, owner: str = "guest"
    ) -> Self:
        """A device for the directory ``path``; ``owner``: see docs/sharing.md.

        Raises ShareError, an OSError with a line for the user.
        """
        server = Server(Tree.at(path, read_only, owner))
        try:
            return cls(server, tag)
        except ShareError:
            server.close()
            raise

    @property
    def state(self) -> Any:
        """What the guest has open, by names. Setting it opens them again."""
        session = self._server.save() if self._server is not None else SessionState()
        return P9State(session, dict(self._waiting))

    @state.setter
    def state(self, state: P9State) -> None:
        if self._server is not None:
            self._server.restore(state.session)
        self._waiting = dict(state.waiting)

    def reset(self) -> None:
        """Forget all that the guest has open."""
        if self._server is not None:
            self._server.reset()
        self._waiting.clear()

    def close(self) -> None:
        """Close all files; requests fail from now on."""
        with self.lock:
            if self._server is not None:
                self._server.close()

    def config(self) -> bytes:
        """The length of the tag, in two bytes, and the tag."""
        return self._config

    def notify(self, index: int) -> None:
        """Do all requests. Raises QueueError."""
        self.serve(index, self._request)

    def _request(self, chain: Chain) -> int | None:
        if self.source is not None:
            return self._repeatable(chain, self.source)
        memory = self.link.memory
        assert self._server is not None
        request, room = memory.views(chain.readable), memory.views(chain.writable)
        try:
            done = self._server.handle(request, room)
        except ValueError as error:
            raise QueueError(str(error)) from None
        if done.waiting is not None:
            self._waiting[done.waiting] = chain
            return None
        memory.wrote_all(split(chain.writable, done.touched)[0])
        for tag, reply in self._server.ready():
            waited = self._waiting.pop(tag)
            self.link.queues[0].push(waited, scatter(memory, waited.writable, reply))
        return done.length

    def _repeatable(self, chain: Chain, source: Source) -> int | None:
        """The same in virtual time: what the host's files make of a request comes from outside."""
        memory = self.link.memory

        def handle() -> tuple[Plain, ...]:
            """The error; or the tag if it waits, bytes used, bytes written; and tags and replies that are ready."""
            assert self._server is not None
            try:
                done = self._server.handle(memory.views(chain.readable), memory.views(chain.writable))
            except ValueError as error:
                return (str(error),)
            written = b"".join(memory.views(split(chain.writable, done.touched)[0]))
            others = [part for tag, reply in self._server.ready() for part in (tag, reply)]
            return (done.waiting, done.length, written, *others)

        first, *rest = source.value(handle)
        if isinstance(first, str):
            raise QueueError(first)
        length, written, *others = rest
        assert isinstance(length, int) and isinstance(written, bytes)
        if first is None:
            scatter(memory, chain.writable, written)
        else:
            self._waiting[first] = chain  # type: ignore[index]
        for tag, reply in zip(others[::2], others[1::2], strict=True):
            assert isinstance(tag, int) and isinstance(reply, bytes)
            waited = self._waiting.pop(tag)
            self.link.queues[0].push(waited, scatter(memory, waited.writable, reply))
        return length if first is None else None
