"""Network cards of a machine, and what they are plugged into."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from polyvisor.dataclass import dataclass, field, replace
from polyvisor.network.frame import format_mac, parse_mac, random_mac

if TYPE_CHECKING:
    from polyvisor.devices.virtio.net import NetDevice
    from polyvisor.network.capture import Capture
    from polyvisor.network.conditions import Conditions
    from polyvisor.network.forward import Forward
    from polyvisor.network.port import Port
    from polyvisor.network.switch import Switch

KINDS = ("none", "user", "passt")
HELP = "user, passt or none; user[,forward=tcp:8080:80][,restricted][,mac=ADDRESS][,subnet=10.0.2.0/24][,hostname=NAME]"


@dataclass
class Nic:
    """A network card. ``to``: ``user`` or ``passt``, a way out of the host without root, or a Switch of this process.

    ``forwards``, and for ``user`` ``restricted``, ``subnet`` and ``hostname``, are those of
    :class:`~polyvisor.network.user.UserNetwork`; ``name`` is that of the switch's port, and of captures; ``address``,
    such as ``10.0.0.1/24``, is given to the interface in the guest by its agent. Without a ``mac``, one is drawn.
    """

    to: str | Switch = "user"
    mac: str = ""
    name: str = ""
    forwards: list[Forward] = field(default_factory=list)
    restricted: bool = False
    subnet: str = "10.0.2.0/24"
    hostname: str | None = None
    address: str | None = None
    captures: list[Capture] = field(default_factory=list, repr=False)
    _drawn: bool = field(default=False, repr=False, compare=False)
    _port: Port | None = field(default=None, repr=False, compare=False)
    _device: NetDevice | None = field(default=None, repr=False, compare=False)
    _outgoing: Conditions | None = field(default=None, repr=False, compare=False)
    _incoming: Conditions | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError for an address or a kind of network that cannot be."""
        if not self.mac:
            self.mac, self._drawn = random_mac(), True
        parse_mac(self.mac)
        if self.address is not None:
            import ipaddress

            ipaddress.ip_interface(self.address)
        if isinstance(self.to, str) and self.to not in KINDS[1:]:
            raise ValueError(f"network {self.to!r}: there are {', '.join(KINDS[1:])}, or give a Switch")

    def draw_mac(self, seed: str) -> None:
        """Let the hardware address follow from ``seed``, if it was not given."""
        if self._drawn:
            self.mac = format_mac(b"\x52\x54\x00" + hashlib.sha256(seed.encode()).digest()[:3])

    @property
    def port(self) -> Port:
        """What the card is plugged into now; a new one after each reset. Raises ValueError before the start."""
        if self._port is None:
            raise ValueError("the card is not plugged in: the machine has not been started")
        return self._port

    def set_conditions(self, outgoing: Conditions | None, incoming: Conditions | None = None) -> None:
        """What happens to frames between card and switch, from now on. Raises ValueError if there is no switch."""
        if isinstance(self.to, str):
            raise ValueError("conditions are a switch's: plug the card into one, and the network outside, too")
        from polyvisor.network.switch import SwitchPort

        self._outgoing, self._incoming = outgoing, incoming
        if isinstance(self._port, SwitchPort):
            self._port.outgoing, self._port.incoming = outgoing, incoming

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it."""
        self.port.set_link(up)

    def make(self) -> NetDevice:
        """A network device, and the network behind it. Raises OSError or ValueError with a line for the user."""
        from polyvisor.devices.virtio.net import NetDevice

        self._device = NetDevice(self._new_port(), self.mac)
        return self._device

    def revive(self) -> None:
        """In a copy of the process, which has none of its threads: plug the card into a network of its own.

        Its forwards are from free ports of the host; instead of a Switch there is a new one, with nobody else at it;
        but one in virtual time has no threads, and is there. Raises OSError.
        """
        if not isinstance(self.to, str) and self.to.time is not None:
            return
        self.forwards = [replace(forward, host_port=0) for forward in self.forwards]
        self.captures = []
        if not isinstance(self.to, str):
            from polyvisor.network.switch import Switch

            self.to = Switch(seed=self.to.seed, hub=self.to.hub)
        if self._device is not None:
            self._device.plug(self._new_port())

    def _new_port(self) -> Port:
        port: Port
        if not isinstance(self.to, str):
            port = switch_port = self.to.port(self.name)
            switch_port.outgoing, switch_port.incoming = self._outgoing, self._incoming
        elif self.to == "passt":
            from polyvisor.network.passt import PasstNetwork

            port = PasstNetwork(forwards=self.forwards)
        else:
            from polyvisor.network.user import UserNetwork

            port = UserNetwork(
                forwards=self.forwards, restricted=self.restricted, subnet=self.subnet, hostname=self.hostname
            )
        for capture in self.captures:
            capture.attach(port, self.name or "eth0")
        self._port = port
        return port

    @classmethod
    def parse(cls, text: str) -> Nic | None:
        """``user`` or ``passt`` with options behind commas (see HELP); None for ``none``. Raises ValueError."""
        kind, *options = text.split(",")
        if kind not in KINDS:
            raise ValueError(f"network {text!r}: there are {', '.join(KINDS)}")
        found: dict[str, Any] = {"forwards": []}
        for option in options:
            name, _, value = option.partition("=")
            try:
                if kind != "none" and name == "forward":
                    found["forwards"].append(parse_forward(value))
                elif kind != "none" and name == "mac":
                    parse_mac(value)
                    found["mac"] = value
                elif kind == "user" and option == "restricted":
                    found["restricted"] = True
                elif kind == "user" and name in ("subnet", "hostname") and value:
                    found[name] = value
                else:
                    raise ValueError(f"{kind!r} has no option {option!r}")
            except ValueError as error:
                raise ValueError(f"network {text!r}: {error}") from None
        return None if kind == "none" else cls(kind, **found)


def parse_forward(text: str) -> Forward:
    """``tcp:8080:80`` or ``tcp:0.0.0.0:8080:80``. Raises ValueError."""
    from polyvisor.network.forward import Forward

    protocol, *rest = text.split(":")
    if len(rest) not in (2, 3) or not all(part.isdecimal() for part in rest[-2:]):
        raise ValueError(f"forward={text}: give protocol, host's and guest's port, for example forward=tcp:8080:80")
    return Forward(protocol, int(rest[-2]), int(rest[-1]), *rest[:-2])
