"""Ports of the host that lead to a guest."""

from __future__ import annotations

from polyvisor.dataclass import dataclass


@dataclass(frozen=True)
class Forward:
    """Connections to ``host_port`` at ``host`` go to ``guest_port`` at ``guest`` (None: the first DHCP lease).

    ``protocol`` is ``tcp`` or ``udp``. Port 0 of the host is any free one.
    """

    protocol: str
    host_port: int
    guest_port: int
    host: str = "127.0.0.1"
    guest: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what is impossible."""
        if self.protocol not in ("tcp", "udp"):
            raise ValueError(f"forward of {self.protocol!r}: is neither tcp nor udp")
        if not 0 <= self.host_port <= 65535:
            raise ValueError(f"host port {self.host_port}: must be from 0 to 65535")
        if not 1 <= self.guest_port <= 65535:
            raise ValueError(f"guest port {self.guest_port}: must be from 1 to 65535")
        import ipaddress

        for address in filter(None, (self.host, self.guest)):
            try:
                ipaddress.IPv4Address(address)
            except ValueError:
                raise ValueError(f"address {address!r}: is not an IPv4 address") from None
