"""Devices whose work is done by another process, a vhost-user back end.

The protocol is QEMU's "Vhost-user Protocol" (docs/interop/vhost-user.rst). Unlike what it describes, the back end does
not get the guest's rings but *shadow rings*: this process takes the guest's buffers, checks them, and gives them to the
back end in rings of its own, with the memory that they point to. So any ring format will do for the guest, the back end
sees no nonsense, and the engine hears of all that was written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError
from polyvisor.devices.virtio.vhost_backend import BackEnd
from polyvisor.devices.virtio.vhost_messages import MAX_CONFIG, VhostUserError
from polyvisor.devices.virtio.vhost_session import DEVICE_FEATURES, Session

__all__ = ["VhostUserDevice", "VhostUserError", "VhostUserState"]


@dataclass
class VhostUserState:
    """What the back end has; what it made of it is its own."""

    held: list[list[Chain]] = field(default_factory=list)
    """For each queue, the buffers that were taken and not given back, oldest first."""


class VhostUserDevice(VirtioDevice):
    """Base of devices with a back end. A subclass sets ``device_id``, and may restrict ``passed_features``.

    A thread waits for the back end's events. When it ends, or breaks the protocol, ``failure`` says why and requests
    are answered by :meth:`refuse`; once the driver has reset the device, another connection is tried.

    The back end can read and write all of guest memory, so it has to be trusted with that, and with nothing else.
    """

    passed_features: ClassVar[int] = DEVICE_FEATURES
    """The device type's features that the driver is offered, if the back end has them."""

    def __init__(self, back_end: BackEnd, queue_sizes: Sequence[int], config_size: int = 0) -> None:
        """Connect to ``back_end``, which the device closes.

        ``config_size``: the bytes of the configuration space, if the back end provides it. Raises VhostUserError, an
        OSError with a line for the user.
        """
        if not 0 <= config_size <= MAX_CONFIG:
            raise ValueError(f"configuration space of {config_size} bytes; {MAX_CONFIG} are possible")
        self._back_end = back_end
        self._config_size = config_size
        self._session: Session | None = None
        self._sessions: list[Session] = []
        self._may_connect = False
        self._closed = False
        self._restored: list[list[Chain]] = []
        self.failure: VhostUserError | None = None
        """Why there is no back end, if there is none."""
        self.on_failure: Callable[[VhostUserError], object] | None = None
        """Called with each new ``failure``, on any thread, without the lock."""
        self._unreported: VhostUserError | None = None
        try:
            session = self._connect(queue_sizes)
        except BaseException:
            back_end.close()
            raise
        super().__init__(session.features & self.passed_features, queue_sizes, VhostUserState())
        self._adopt(session)

    def _connect(self, queue_sizes: Sequence[int]) -> Session:
        """Raises VhostUserError, for the user."""
        try:
            return Session(self._back_end.connect(), queue_sizes, self._config_size)
        except VhostUserError as error:
            raise self._back_end.explain(error) from error

    def _adopt(self, session: Session) -> None:
        self._session = session
        self._config = session.config
        self._sessions = [*(old for old in self._sessions if old.alive), session]
        session.watch(
            partial(self._called, session), partial(self._reconfigured, session), partial(self._ended, session),
            self.lock,
        )

    # What the guest can change

    @property
    def state(self) -> Any:
        """The buffers that the back end has. Setting it gives them to the back end anew."""
        if self._session is None:
            return VhostUserState([list(chains) for chains in self._restored])
        return VhostUserState(self._held(self._session))

    @state.setter
    def state(self, state: VhostUserState) -> None:
        self._halt()
        self._restored = [list(chains) for chains in state.held]
        if any(self._restored) and self.link.running:
            for index in range(len(self._restored)):
                self.notify(index)

    def obstacle(self) -> str | None:
        """What the back end made of the guest's requests is its own."""
        return f"the state of a device that another process serves ({type(self).__name__}) cannot be saved"

    def reset(self) -> None:
        """Have the back end stop; if there is none, another connection is tried at the next notification."""
        self._restored = []
        self._halt()
        self._may_connect = self._session is None and not self._closed

    def _halt(self) -> None:
        """Take all from the back end, which forgets it."""
        session = self._session
        if session is None or not session.started:
            return
        held = self._held(session)
        try:
            session.stop()
        except VhostUserError as error:
            self._drop(session, self._back_end.explain(error))
        self._tell(chain for chains in held for chain in chains)

    def _held(self, session: Session) -> list[list[Chain]]:
        return [session.held(index) for index in range(len(self.queue_sizes))]

    def config(self) -> bytes:
        """The back end's configuration space, as it was when it last said that it changed."""
        return self._config

    def write_config(self, offset: int, data: bytes) -> None:
        """Pass it on to the back end."""
        session = self._session
        if session is None or not self._config_size:
            return
        try:
            session.write_config(offset, data)
            self._config = session.read_config()
        except VhostUserError as error:
            self._lose(session, self._back_end.explain(error))

    def close(self) -> None:
        """End the connection, and the back end if it is ours."""
        with self.lock:
            self._closed = True
            self._may_connect = False
            if self._session is not None:
                self._session.end()
                self._session = None
        for session in self._sessions:
            session.join()
        self._back_end.close()

    def unlocked(self) -> None:
        """Report a failure."""
        error, self._unreported = self._unreported, None
        if error is not None and self.on_failure is not None:
            self.on_failure(error)

    # From the guest to the back end

    def notify(self, index: int) -> None:
        """Give the back end all buffers there is room for. Raises QueueError."""
        session = self._session
        if session is None and self._may_connect:
            session = self._reconnect()
        if session is None:
            restored, self._restored = self._restored, []
            self._refuse_all(restored)
            self.serve(index, self.refuse)
            return
        try:
            if not session.started:
                session.start(self.link.memory, self.link.features)
            if session.rings[index] is None:
                session.start_queue(index)
                if self._restored:
                    session.waiting[index].extend(self._restored[index])
                    self._restored[index] = []
        except VhostUserError as error:
            self._lose(session, self._back_end.explain(error))
            return
        self._forward(session, index)

    def _reconnect(self) -> Session | None:
        self._may_connect = False
        try:
            session = self._connect(self.queue_sizes)
            if self.features & ~session.features:
                session.end()
                raise self._back_end.explain(VhostUserError("no longer offers the features it had"))
        except VhostUserError as error:
            self.failure = self._unreported = error
            return None
        self.failure = None
        self._adopt(session)
        return session

    def _forward(self, session: Session, index: int) -> None:
        """Move buffers into the shadow ring. Raises QueueError."""
        ring, waiting = session.rings[index], session.waiting[index]
        assert ring is not None
        try:
            while waiting and ring.put(waiting[0]):
                waiting.popleft()
            if not waiting:
                self.serve(index, partial(self._offer, session, index), lambda: not waiting)
        finally:
            ring.publish()
            session.kick(index)

    def _offer(self, session: Session, index: int, chain: Chain) -> int | None:
        ring = session.rings[index]
        assert ring is not None
        count = len(chain.readable) + len(chain.writable)
        if not count:
            return 0  # nothing to be done with it
        if count > ring.size:
            raise QueueError(f"descriptor chain is longer than {ring.size}")
        if not ring.put(chain):
            session.waiting[index].append(chain)
        return None

    def refuse(self, chain: Chain) -> int:
        """Answer a request when there is no back end; gives the bytes written.

        Raises QueueError where the device type has no way to: the device needs a reset then.
        """
        raise QueueError("the back end is gone")

    # From the back end to the guest

    def _called(self, session: Session) -> None:
        """On the session's thread. Raises VhostUserError."""
        with self.guard():
            if session is self._session:
                self._collect(session)

    def _collect(self, session: Session) -> None:
        """Give the guest what the back end gave back, and the back end what had no room. Raises VhostUserError."""
        link = self.link
        for index, ring in enumerate(session.rings):
            if ring is None:
                continue
            taken = ring.take()
            if not taken:
                continue
            # All of a buffer: what the back end says it wrote need not be all it wrote.
            self._tell(chain for chain, _ in taken)
            queue = link.queues[index]
            queue.push_all(taken)
            if not link.running:
                continue
            if queue.should_interrupt():
                link.interrupt()
            if session.waiting[index]:
                self._forward(session, index)

    def _tell(self, chains: Iterable[Chain]) -> None:
        """Tell the engine that ``chains`` were written; neighbouring parts together, which costs less."""
        start = end = 0
        wrote = self.link.memory.wrote
        for address, length in sorted(segment for chain in chains for segment in chain.writable):
            if address > end:
                wrote(start, end - start)
                start = address
            end = max(end, address + length)
        wrote(start, end - start)

    def _reconfigured(self, session: Session) -> None:
        """On the session's thread. Raises VhostUserError."""
        with self.guard():
            if session is self._session:
                self._config = session.read_config()
                if self._link is not None:
                    self.link.config_changed()

    # The end of a back end

    def _ended(self, session: Session, error: VhostUserError) -> None:
        """On the session's thread, at its end."""
        if not session.alive:
            return
        error = self._back_end.explain(error)
        with self.guard():
            if session is self._session:
                with contextlib.suppress(VhostUserError):
                    self._collect(session)  # what it did before
            self._lose(session, error)

    def _lose(self, session: Session, error: VhostUserError) -> None:
        """Go on without a back end. Raises QueueError if the device needs a reset now."""
        if session is not self._session:
            return
        held = self._held(session)
        self._drop(session, error)
        if self._link is None:
            return
        self._tell(chain for chains in held for chain in chains)
        if self.link.running:
            self._refuse_all(held)
            for index, queue in enumerate(self.link.queues):
                if queue.state.ready:
                    self.serve(index, self.refuse)

    def _drop(self, session: Session, error: VhostUserError) -> None:
        self.failure = self._unreported = error
        self._session = None
        session.end()

    def _refuse_all(self, held: list[list[Chain]]) -> None:
        """Raises QueueError if the device type has no way to."""
        for index, chains in enumerate(held):
            if chains:
                queue = self.link.queues[index]
                queue.push_all([(chain, self.refuse(chain)) for chain in chains])
                if queue.should_interrupt():
                    self.link.interrupt()
