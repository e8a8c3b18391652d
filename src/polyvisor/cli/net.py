"""The ``--net`` and ``--capture`` options: a machine's network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyvisor.devices.virtio.net import NetDevice, random_mac
from polyvisor.network.capture import Capture
from polyvisor.network.frame import parse_mac
from polyvisor.network.passt import PasstNetwork
from polyvisor.network.port import Port
from polyvisor.network.user import Forward, UserNetwork

KINDS = ("none", "user", "passt")
HELP = "user, passt or none; user[,forward=tcp:8080:80][,restricted][,mac=ADDRESS][,subnet=10.0.2.0/24][,hostname=NAME]"


@dataclass
class NetOptions:
    """What ``--net`` says. ``make`` gives a new device each time, with the same address."""

    kind: str
    forwards: list[Forward] = field(default_factory=list)
    restricted: bool = False
    mac: str = field(default_factory=random_mac)
    subnet: str = "10.0.2.0/24"
    hostname: str | None = None
    capture: Capture | None = None

    def make(self) -> NetDevice:
        """A network device, and the network behind it. Raises OSError or ValueError with a line for the user."""
        port: Port
        if self.kind == "passt":
            port = PasstNetwork(forwards=self.forwards)
        else:
            port = UserNetwork(
                forwards=self.forwards, restricted=self.restricted, subnet=self.subnet, hostname=self.hostname
            )
        if self.capture is not None:
            self.capture.attach(port, "eth0")
        return NetDevice(port, self.mac)


def parse_forward(text: str) -> Forward:
    """``tcp:8080:80`` or ``tcp:0.0.0.0:8080:80``. Raises ValueError."""
    protocol, *rest = text.split(":")
    if len(rest) not in (2, 3) or not all(part.isdecimal() for part in rest[-2:]):
        raise ValueError(f"forward={text}: give protocol, host's and guest's port, for example forward=tcp:8080:80")
    return Forward(protocol, int(rest[-2]), int(rest[-1]), *rest[:-2])


def parse_net(text: str) -> NetOptions | None:
    """What ``--net`` means; None for no network. Raises ValueError with a line for the user."""
    kind, *options = text.split(",")
    if kind not in KINDS:
        raise ValueError(f"--net {text!r}: there are {', '.join(KINDS)}")
    found = NetOptions(kind)
    for option in options:
        name, _, value = option.partition("=")
        try:
            _set(found, name, value, option)
        except ValueError as error:
            raise ValueError(f"--net {text!r}: {error}") from None
    return None if kind == "none" else found


def _set(found: NetOptions, name: str, value: str, option: str) -> None:
    if found.kind != "none" and name == "forward":
        found.forwards.append(parse_forward(value))
    elif found.kind != "none" and name == "mac":
        parse_mac(value)
        found.mac = value
    elif found.kind == "user" and option == "restricted":
        found.restricted = True
    elif found.kind == "user" and name in ("subnet", "hostname") and value:
        setattr(found, name, value)
    else:
        raise ValueError(f"{found.kind!r} has no option {option!r}")


def open_capture(path: Path, nets: Sequence[NetOptions]) -> Capture:
    """Write what passes the networks to ``path``. Raises ValueError with a line for the user."""
    try:
        capture = Capture(path)
    except OSError as error:
        raise ValueError(f"--capture {str(path)!r}: {error.strerror}") from None
    for net in nets:
        net.capture = capture
    return capture
