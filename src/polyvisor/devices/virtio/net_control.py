"""The network device's control queue, and the filter it sets (VIRTIO 1.2, section 5.1.6.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Protocol

from polyvisor.devices.virtio.queue import Chain, QueueError, gather, length_of, scatter, split
from polyvisor.engine.memory import Memory

# Feature bits (5.1.3) that give the driver commands.
F_CTRL_GUEST_OFFLOADS = 1 << 2
F_CTRL_VQ = 1 << 17
F_CTRL_RX = 1 << 18
F_CTRL_VLAN = 1 << 19
F_CTRL_RX_EXTRA = 1 << 20
F_GUEST_ANNOUNCE = 1 << 21
F_CTRL_MAC_ADDR = 1 << 23

# Classes and commands.
CTRL_RX = 0
CTRL_MAC = 1
CTRL_MAC_TABLE_SET = 0
CTRL_MAC_ADDR_SET = 1
CTRL_VLAN = 2
CTRL_VLAN_ADD = 0
CTRL_VLAN_DEL = 1
CTRL_ANNOUNCE = 3
CTRL_ANNOUNCE_ACK = 0
CTRL_GUEST_OFFLOADS = 5
CTRL_GUEST_OFFLOADS_SET = 0
OK = 0
ERR = 1

MAX_ADDRESSES = 64
"""Addresses in each table of the filter; with more, it lets all of the kind pass."""
_RX_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
_RX_MODES_WITHOUT_EXTRA = 2
_MAX_COMMAND = 2 + 2 * (4 + 6 * 4096)
_OFFLOADS = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 54 | 1 << 55
_BROADCAST = b"\xff" * 6
_VLAN_TAGS = (b"\x81\x00", b"\x88\xa8")


@dataclass
class Filter:
    """Which frames the driver gets."""

    mac: bytes = bytes(6)
    promiscuous: bool = True
    """All frames, until the driver says otherwise."""
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    unicast: list[bytes] | None = field(default_factory=list)
    """More addresses to pass; None: too many were given, so all pass."""
    multicast: list[bytes] | None = field(default_factory=list)
    vlans: list[int] = field(default_factory=list)

    def passes(self, head: bytes, features: int) -> bool:
        """Whether the driver wants a frame that begins with ``head``."""
        if self.promiscuous:
            return True
        tagged = features & F_CTRL_VLAN and head[12:14] in _VLAN_TAGS
        if tagged and int.from_bytes(head[14:16], "big") & 0xFFF not in self.vlans:
            return False
        target = head[:6]
        if target == _BROADCAST:
            return not self.no_broadcast
        if head[0] & 1:
            return not self.no_multicast and (self.all_multicast or _is_in(target, self.multicast))
        return not self.no_unicast and (self.all_unicast or target == self.mac or _is_in(target, self.unicast))


def _is_in(address: bytes, table: list[bytes] | None) -> bool:
    return table is None or address in table


class ControlState(Protocol):
    """What the commands change: see the device's state."""

    filter: Filter
    offloads: int | None
    announce: int


def control(memory: Memory, chain: Chain, state: ControlState, features: int) -> int:
    """Do a command; gives the bytes written. Raises QueueError if there is no room for its result."""
    if not length_of(chain.writable):
        raise QueueError("a command without room for its result")
    command, _ = split(chain.readable, _MAX_COMMAND)
    data = gather(memory, command)
    try:
        done = len(data) >= 2 and _do(data[0], data[1], data[2:], state, features)
    except (struct.error, ValueError):
        done = False
    return scatter(memory, chain.writable, bytes([OK if done else ERR]))


def _do(kind: int, command: int, data: bytes, state: ControlState, features: int) -> bool:
    """Raises struct.error or ValueError for data that are cut off."""
    filter = state.filter
    if kind == CTRL_RX and features & F_CTRL_RX:
        known = len(_RX_MODES) if features & F_CTRL_RX_EXTRA else _RX_MODES_WITHOUT_EXTRA
        if command >= known or not data:
            return False
        setattr(filter, _RX_MODES[command], bool(data[0]))
    elif kind == CTRL_MAC and command == CTRL_MAC_TABLE_SET and features & F_CTRL_RX:
        unicast, rest = _addresses(data)
        multicast, _ = _addresses(rest)
        filter.unicast = unicast if len(unicast) <= MAX_ADDRESSES else None
        filter.multicast = multicast if len(multicast) <= MAX_ADDRESSES else None
    elif kind == CTRL_MAC and command == CTRL_MAC_ADDR_SET and features & F_CTRL_MAC_ADDR:
        if len(data) < 6 or data[0] & 1:
            return False
        filter.mac = data[:6]
    elif kind == CTRL_VLAN and command in (CTRL_VLAN_ADD, CTRL_VLAN_DEL) and features & F_CTRL_VLAN:
        vlan = struct.unpack_from("<H", data)[0]
        if vlan > 0xFFF:
            return False
        others = [each for each in filter.vlans if each != vlan]
        filter.vlans = [*others, vlan] if command == CTRL_VLAN_ADD else others
    elif kind == CTRL_ANNOUNCE and command == CTRL_ANNOUNCE_ACK and features & F_GUEST_ANNOUNCE:
        state.announce = 0
    elif kind == CTRL_GUEST_OFFLOADS and command == CTRL_GUEST_OFFLOADS_SET and features & F_CTRL_GUEST_OFFLOADS:
        offloads = struct.unpack_from("<Q", data)[0]
        if offloads & ~(features & _OFFLOADS):
            return False
        state.offloads = offloads
    else:
        return False
    return True


def _addresses(data: bytes) -> tuple[list[bytes], bytes]:
    """struct virtio_net_ctrl_mac, and what follows it. Raises struct.error or ValueError if it is cut off."""
    count = struct.unpack_from("<I", data)[0]
    if 4 + 6 * count > len(data):
        raise ValueError(f"{count} addresses in {len(data)} bytes")
    return [data[at : at + 6] for at in range(4, 4 + 6 * count, 6)], data[4 + 6 * count :]
