"""An Ethernet switch in this process, with links under a program's control."""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from time import monotonic as _monotonic

from .conditions import Conditions, Wire
from .frame import ETHERNET_HEADER, EVERYTHING, Frame
from .port import Port
from .timed import VirtualTime

AGEING = 300.0
"""Seconds after which a station that sent nothing is forgotten (IEEE 802.1Q, table 8-6)."""
MAX_STATIONS = 8192
MAX_ENTERING = 1000
"""In virtual time: frames of other threads that wait to get in; more are dropped."""
MAX_CROSSING = 4096
"""In virtual time: frames of one port on their way to the switch; more are dropped."""

_log = logging.getLogger(__name__)


class SwitchPort(Port):
    """One port of a switch, and the link to the machine plugged in. Made by :meth:`Switch.port`."""

    takes = EVERYTHING

    def __init__(self, switch: Switch, name: str) -> None:
        super().__init__(name)
        self.group = 0
        """Only ports of the same group see each other."""
        self.crossing = 0
        """In virtual time: frames of the machine that are not at the switch yet."""
        self._switch = switch
        self._from_machine = Wire(f"{switch.seed}/{name}/outgoing")
        self._to_machine = Wire(f"{switch.seed}/{name}/incoming")

    @property
    def outgoing(self) -> Conditions | None:
        """What happens to frames from the machine; None: nothing. May be set at any time."""
        return self._from_machine.conditions

    @outgoing.setter
    def outgoing(self, conditions: Conditions | None) -> None:
        self._from_machine.conditions = conditions

    @property
    def incoming(self) -> Conditions | None:
        """What happens to frames for the machine; None: nothing. May be set at any time."""
        return self._to_machine.conditions

    @incoming.setter
    def incoming(self, conditions: Conditions | None) -> None:
        self._to_machine.conditions = conditions

    def set_conditions(self, conditions: Conditions | None) -> None:
        """Set both directions."""
        self.outgoing = self.incoming = conditions

    @property
    def lost(self) -> int:
        """Frames that were lost to the conditions."""
        return self._from_machine.lost + self._to_machine.lost

    def _send(self, frame: Frame) -> None:
        wire = self._from_machine
        if self._switch.time is not None:
            self._switch._take(self, wire, frame)
        elif wire.conditions is None:
            self._switch._forward(self, frame)
        else:
            self._switch._pass(wire, frame, self._forward)

    def reseed(self, seed: int) -> None:
        """For the switch: let faults follow from another seed from now on."""
        self._from_machine.reseed(f"{seed}/{self.name}/outgoing")
        self._to_machine.reseed(f"{seed}/{self.name}/incoming")
        self._taps = ()

    def _forward(self, frame: Frame) -> None:
        self._switch._forward(self, frame)

    def _to_switch(self, frame: Frame) -> None:
        """The same in virtual time."""
        self.crossing -= 1
        self._forward(frame)

    def arrive(self, frame: Frame) -> None:
        """For the switch: pass a frame over the link to the machine."""
        wire = self._to_machine
        if wire.conditions is None:
            self.deliver(frame)
        else:
            self._switch._pass(wire, frame, self.deliver)

    def close(self) -> None:
        """Unplug the machine and take the port off the switch."""
        super().close()
        self._switch._remove(self)


class Switch:
    """A learning switch. Without conditions a frame is delivered before ``send`` returns, on the sender's thread;
    what is delayed is delivered by one thread of the switch.

    With ``time``, the one that machines have in common, all delays are of that time, the same frames always arrive at
    the same times, and the switch takes a step of that time to pass one on.

    ``seed`` decides, with the ports' names, what the conditions do to which frame. ``hub``: every frame goes to every
    other port. Switches may be connected to each other, but not in rings: there is no spanning tree.
    """

    def __init__(
        self, *, seed: int = 0, hub: bool = False, clock: Callable[[], float] = _monotonic,
        time: VirtualTime | None = None,
    ) -> None:
        self.seed = seed
        self.hub = hub
        self.time = time
        self._clock = clock if time is None else lambda: time.now / 1e9
        self._entering = 0
        self._lock = threading.Lock()
        self._ports: tuple[SwitchPort, ...] = ()
        self._attached: list[Port] = []
        self._stations: dict[bytes, tuple[SwitchPort, float]] = {}
        self._taps: tuple[Callable[[Frame, SwitchPort], None], ...] = ()
        self._numbers = count(1)
        self._waiting: list[tuple[float, int, Wire, Frame, Callable[[Frame], None]]] = []
        self._timer_wakes = threading.Condition()
        self._timer: threading.Thread | None = None
        self._closed = False

    # Ports

    def port(self, name: str = "") -> SwitchPort:
        """A new port to plug a machine in. Raises ValueError if there is one of that name, or the switch is closed."""
        with self._lock:
            if self._closed:
                raise ValueError("the switch is closed")
            name = name or f"port{next(self._numbers)}"
            if any(port.name == name for port in self._ports):
                raise ValueError(f"the switch has a port {name!r} already")
            port = SwitchPort(self, name)
            self._ports = (*self._ports, port)
            return port

    @property
    def ports(self) -> tuple[SwitchPort, ...]:
        """All ports, in the order in which they were made."""
        return self._ports

    def attach(self, network: Port, name: str = "") -> SwitchPort:
        """Connect something that a machine could be plugged into itself: the outside, or a port of another switch.

        The switch closes it when it is closed. Raises ValueError as :meth:`port` does.
        """
        port = self.port(name or network.name)
        port.receive = network.send
        network.receive = port.send
        self._attached.append(network)
        return port

    @property
    def has_outside(self) -> bool:
        """Whether anything was attached."""
        return bool(self._attached)

    def _remove(self, port: SwitchPort) -> None:
        with self._lock:
            self._ports = tuple(each for each in self._ports if each is not port)
            if self.time is not None:
                return  # when the host gets to this is not for others to notice: they are forgotten as they age
            self._stations = {mac: entry for mac, entry in self._stations.copy().items() if entry[0] is not port}

    def revive(self, seed: int) -> None:
        """In a copy of the process, in virtual time: let faults follow from another seed from now on.

        Captures are the other process's.
        """
        self.seed, self._lock, self._taps = seed, threading.Lock(), ()
        for port in self._ports:
            port.reseed(seed)

    # Partitions

    def partition(self, *groups: Iterable[SwitchPort]) -> None:
        """Let only ports of the same group see each other; those in none are a group too. The links stay up."""
        numbers = {port: number for number, group in enumerate(groups, 1) for port in group}
        for port in self._ports:
            port.group = numbers.get(port, 0)

    def heal(self) -> None:
        """Let all ports see each other again."""
        self.partition()

    # Frames

    def _forward(self, source: SwitchPort, frame: Frame) -> None:
        head = frame.head
        if len(head) < ETHERNET_HEADER or not source.up:
            source.dropped += 1
            return
        for tap in self._taps:
            tap(frame, source)
        if not self.hub:
            target = self._look_up(source, head)
            if target is not None:
                if target is not source and target.group == source.group:
                    target.arrive(frame)
                return
        for port in self._ports:
            if port is not source and port.group == source.group:
                port.arrive(frame)

    def _look_up(self, source: SwitchPort, head: bytes) -> SwitchPort | None:
        """Learn where the sender is; gives where the receiver is, or None if that is not known or not one."""
        stations = self._stations
        now = self._clock()
        sender = head[6:12]
        known = stations.get(sender)
        if not head[6] & 1 and (known is not None or len(stations) < MAX_STATIONS or self._forget_old(now)):
            self._stations[sender] = (source, now)
        found = stations.get(head[:6])
        if found is None or now - found[1] > AGEING:
            return None
        return found[0]

    def _forget_old(self, now: float) -> bool:
        """Make room in the table of stations; gives whether there is some."""
        with self._lock:
            recent = {mac: entry for mac, entry in self._stations.copy().items() if now - entry[1] <= AGEING}
            self._stations = recent
            return len(recent) < MAX_STATIONS

    @property
    def stations(self) -> dict[bytes, str]:
        """The addresses that were learned, and the names of their ports."""
        now = self._clock()
        return {mac: port.name for mac, (port, at) in self._stations.copy().items() if now - at <= AGEING}

    def add_tap(self, tap: Callable[[Frame, SwitchPort], None]) -> None:
        """Let ``tap`` see each frame that the switch forwards from now on, and the port that it came from."""
        self._taps = (*self._taps, tap)

    def remove_tap(self, tap: Callable[[Frame, SwitchPort], None]) -> None:
        """Let ``tap`` see no more frames; nothing happens if it does not."""
        self._taps = tuple(each for each in self._taps if each != tap)

    # Frames on the way

    def _take(self, port: SwitchPort, wire: Wire, frame: Frame) -> None:
        """In virtual time: take a frame from a machine, or from another thread, which has no time."""
        time = self.time
        assert time is not None
        if time.is_inside:
            now = time.now
            for at, part in wire.plan(frame, now / 1e9):
                if port.crossing >= MAX_CROSSING:
                    port.dropped += 1
                    if at:
                        wire.arrived()
                    continue
                port.crossing += 1
                call = partial(self._arrive, wire if at else None, part.kept(), port._to_switch)
                time.call_at((round(at * 1e9) if at else now) + time.step, call)
        elif self._entering >= MAX_ENTERING:
            port.dropped += 1
        else:
            self._entering += 1  # roughly: threads may disturb each other
            time.call_soon(partial(self._enter, port, wire, frame.kept()))

    def _enter(self, port: SwitchPort, wire: Wire, frame: Frame) -> None:
        self._entering -= 1
        self._take(port, wire, frame)

    def _arrive(self, wire: Wire | None, frame: Frame, arrive: Callable[[Frame], None]) -> None:
        """A frame that was on its way is there; ``wire``: where it was counted."""
        if self._closed:
            return
        if wire is not None:
            wire.arrived()
        try:
            arrive(frame)
        except Exception:
            _log.exception("a receiver failed")

    def _pass(self, wire: Wire, frame: Frame, arrive: Callable[[Frame], None]) -> None:
        for at, part in wire.plan(frame, self._clock()):
            if not at:
                arrive(part)
                continue
            if self.time is not None:
                self.time.call_at(round(at * 1e9), partial(self._arrive, wire, part, arrive))
                continue
            with self._timer_wakes:
                if self._closed:
                    return
                heapq.heappush(self._waiting, (at, next(self._numbers), wire, part, arrive))
                if self._timer is None:
                    self._timer = threading.Thread(target=self._deliver_late, name="switch", daemon=True)
                    self._timer.start()
                elif self._waiting[0][3] is part:
                    self._timer_wakes.notify()

    def _deliver_late(self) -> None:
        while True:
            with self._timer_wakes:
                while not self._closed:
                    wait = self._waiting[0][0] - self._clock() if self._waiting else None
                    if wait is not None and wait <= 0:
                        break
                    self._timer_wakes.wait(wait)
                if self._closed:
                    return
                _, _, wire, frame, arrive = heapq.heappop(self._waiting)
            self._arrive(wire, frame, arrive)

    def close(self) -> None:
        """Unplug everything, and drop what is on the way. May be repeated."""
        with self._timer_wakes:
            self._closed = True
            self._waiting.clear()
            self._timer_wakes.notify()
        if self._timer is not None and self._timer is not threading.current_thread():
            self._timer.join()
        for network in self._attached:
            network.close()
        for port in self._ports:
            port.close()

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


