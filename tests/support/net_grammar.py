"""What drivers of the network device say, with a second machine on the same switch that must not suffer from it."""

from __future__ import annotations

import random
import struct

from polyvisor.devices.virtio import net, net_control
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.network.frame import ETHERNET_HEADER, GSO_ECN, GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP, Frame
from polyvisor.network.port import Port
from polyvisor.network.switch import Switch

from .grammar import EDGES, Grammar, Request
from .virtio_guest import Guest

MAC, PEER = "52:54:00:00:00:01", "52:54:00:00:00:02"
_MAC, _PEER, _GROUP, _ALL = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\2", b"\1\0\x5e\0\0\1", b"\xff" * 6
_HEADER = struct.Struct("<BBHHHHH")
_BUFFERS = 24
_OFFLOADS = (1 << 1, 1 << 7, 1 << 8, 1 << 9, 1 << 54, 1 << 55)
_KINDS = ((4, GSO_TCP4), (6, GSO_TCP6), (4, GSO_TCP4 | GSO_ECN), (4, GSO_UDP), (6, GSO_UDP))


def packet(rng: random.Random, to: bytes, source: bytes, length: int, kind: tuple[int, int], tag: bool) -> Frame:
    """TCP or UDP with ``length`` bytes of payload, its checksum left to do, and segmentation if that has a kind."""
    version, gso = kind
    udp = gso == GSO_UDP
    ethernet = to + source + (b"\x81\0" + bytes((0, rng.choice((1, 5)))) if tag else b"")
    transport = struct.pack(">4H", 1, 2, 8 + length, 0)
    if not udp:
        transport = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 80, 9, 9, 0, 0)
    size = len(transport) + length
    if version == 4:
        head = b"\x08\0" + struct.pack(">BBHHHBBHII", 69, 0, 20 + size & 0xFFFF, 1, 0, 64, 17 if udp else 6, 0, 1, 2)
    else:
        head = b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, size & 0xFFFF, 17 if udp else 6, 64) + bytes(32)
    head = ethernet + head
    frame = Frame(head + transport + b"\x55" * length)
    frame.offload(len(head), 6 if udp else 16, gso, rng.choice((536, 1448, 1448, 100)) if gso else 0)
    return frame


class Peer:
    """The other machine: a sane driver that takes no offloads, so that all work is done for it."""

    def __init__(self, port: Port) -> None:
        self.guest = Guest(NetDevice(port, PEER, mtu=1500))
        self.guest.start(self.guest.offered() & ~sum(_OFFLOADS), size=64)
        self.places = dict(self.buffer() for _ in range(_BUFFERS))
        self.guest.kick(net.RX)

    def buffer(self) -> tuple[int, int]:
        head, (place,) = self.guest.post(net.RX, [], [1600])
        return head, place

    def drain(self) -> list[bytes]:
        """What came, each frame in one buffer or as its first part."""
        found = []
        for head, written in self.guest.used(net.RX):
            data = self.guest.peek(self.places.pop(head), written)
            if len(data) >= 12:
                found.append(data[12:])
            head, place = self.buffer()
            self.places[head] = place
        self.guest.kick(net.RX)
        self.guest.ack()
        assert not self.guest.needs_reset and len(self.places) == _BUFFERS, "the other machine suffers"
        return found

    def send(self, frame: bytes) -> None:
        self.guest.request(net.TX, [bytes(12) + frame])
        self.guest.ack()


class Net(Grammar):
    name = "net"
    fields = ((0, 4), (4, 2), (6, 2), (8, 2), (10, 2))

    def device(self) -> VirtioDevice:
        self.switch = Switch()
        self.port = self.switch.port("a")
        self.made = NetDevice(self.port, MAC, mtu=1500)
        self.peer = Peer(self.switch.port("b"))
        self.numbers = 0
        return self.made

    def frame(self) -> Frame:
        to = self.pick((_PEER, _PEER, _PEER, _ALL, _GROUP, _MAC))
        return self.any_frame(to, _MAC if self.random() < 0.9 else bytes((2, 0, 0, 0, 0, self.below(256))))

    def any_frame(self, to: bytes, source: bytes) -> Frame:
        chance = self.random()
        if chance < 0.4:
            return Frame(to + source + b"\x88\xb5" + b"\x44" * self.pick((0, 1, 46, 500, 1500, 3000, 20000)))
        kind = self.pick(_KINDS) if chance < 0.8 else (self.pick((4, 6)), GSO_NONE)
        length = self.pick((0, 1, 1448, 1449, 9000, 30000)) if kind[1] else self.pick((0, 100, 1400))
        return packet(self.rng, to, source, length, kind, self.random() < 0.2)

    def request(self, guest: Guest) -> Request:
        chance = self.random()
        if chance < 0.45:
            frame = self.frame()
            needs = frame.needs != 0
            if needs and self.random() < 0.2:
                frame.csum_start, frame.gso_size = self.pick(EDGES) & 0xFFFF, self.pick((0, 1, 7, 0xFFFF))
            header = _HEADER.pack(
                int(needs), frame.gso_type, 0, frame.gso_size, frame.csum_start, frame.csum_offset, 0
            )
            return net.TX, [header + bytes(frame)] if self.random() < 0.5 else [header, bytes(frame)], []
        if chance < 0.75:
            return net.RX, [], [self.pick(((12,), (1600,), (1600,), (64,), (4096, 4096), (12, 1514), (5, 9, 40000)))[0]]
        kind, command, data = self.command()
        return net.CONTROL, [bytes((kind, command)), data] if data else [bytes((kind, command))], [1]

    def command(self) -> tuple[int, int, bytes]:
        chance = self.random()
        if chance < 0.35:
            # Mostly promiscuous mode, with which no other mode counts.
            return net_control.CTRL_RX, self.pick((0, 0, 1, 2, 3, 4, 5, 6)), bytes((self.pick((0, 0, 1)),))
        if chance < 0.5:
            tables = b""
            for _ in range(2):
                count = self.pick((0, 1, 2, 64, 65, 300))
                addresses = [self.pick((_MAC, _GROUP, self.rng.randbytes(6))) for _ in range(count)]
                tables += struct.pack("<I", count if self.random() < 0.95 else 2**32 - 1) + b"".join(addresses)
            return net_control.CTRL_MAC, net_control.CTRL_MAC_TABLE_SET, tables
        if chance < 0.6:
            return net_control.CTRL_MAC, net_control.CTRL_MAC_ADDR_SET, self.pick((_MAC, _GROUP, b"\2\0\0\0\0\7"))
        if chance < 0.75:
            vlan = self.pick((1, 5, 0, 4095, 4096, self.below(4096)))
            return net_control.CTRL_VLAN, self.pick((0, 0, 1, 2)), struct.pack("<H", vlan)
        if chance < 0.8:
            return net_control.CTRL_ANNOUNCE, net_control.CTRL_ANNOUNCE_ACK, b""
        if chance < 0.95:
            offloads = sum(bit for bit in _OFFLOADS if self.random() < 0.6)
            return net_control.CTRL_GUEST_OFFLOADS, 0, struct.pack("<Q", offloads | (self.random() < 0.1) << 3)
        return self.below(8), self.below(4), self.rng.randbytes(8)

    def host(self) -> None:
        chance = self.random()
        if chance < 0.1:
            self.port.set_link(not self.port.up)
            self.port.set_link(True)
        elif chance < 0.2:
            self.made.announce()
        elif chance < 0.5:
            # As if another machine had sent it, which leaves the work to this one.
            to = self.pick((_MAC, _MAC, _MAC, _ALL, _GROUP, _PEER))
            for _ in range(self.pick((1, 1, 3, 30)) if self.random() < 0.98 else 600):
                self.port.deliver(self.any_frame(to, b"\2\0\0\0\0\3"))
        elif chance < 0.6:
            self.peer.send(_MAC + _PEER + b"\x88\xb5" + b"\x77" * self.pick((46, 1000)))
        else:
            self.peer.drain()

    def works(self, guest: Guest) -> None:
        self.numbers += 1
        name = b"number %d" % self.numbers
        there, back = (to + source + b"\x88\xb5" + name for to, source in ((_PEER, _MAC), (_MAC, _PEER)))
        while self.peer.drain():
            pass
        head, (place,) = guest.post(net.RX, [], [1600])
        guest.kick(net.RX)
        # First, since the switch may have been told that the peer is here.
        self.peer.send(back)
        assert guest.used(net.RX) == [(head, 12 + len(back))]
        assert guest.peek(place + 12, len(back)) == back
        guest.request(net.TX, [bytes(12), there])
        assert there in self.peer.drain(), "the other machine gets no frames"
        assert guest.request(net.CONTROL, [b"\0\0\1"], [1]) == bytes((net_control.OK,))
        assert guest.request(net.CONTROL, [b"\0\7\1"], [1]) == bytes((net_control.ERR,))

    def check(self) -> None:
        made, found = self.made, self.made.state.filter
        assert len(made._backlog) <= net.MAX_BACKLOG
        assert made._backlog_bytes == sum(frame.length for frame in made._backlog) <= net.MAX_BACKLOG_BYTES
        assert all(len(table or ()) <= net_control.MAX_ADDRESSES for table in (found.unicast, found.multicast))
        assert len(found.vlans) <= 4096 and len(found.mac) == 6
        assert all(len(frame.head) >= ETHERNET_HEADER and not frame.body for frame in made._backlog)

    def end(self) -> None:
        self.peer.guest.close()
        self.switch.close()
