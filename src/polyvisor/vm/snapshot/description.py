"""What a VM was made from, so that a snapshot of it needs nothing but its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyvisor.dataclass import dataclass
from polyvisor.network.forward import Forward
from polyvisor.vm.equipment import Nic, Screen, Share
from polyvisor.vm.errors import SnapshotError
from polyvisor.vm.software import Software

if TYPE_CHECKING:
    from polyvisor.network.switch import Switch
    from polyvisor.vm.virtual_machine import VM

_SWITCH = "switch"


@dataclass
class SoftwareState:
    """The files it was started from, which it needs only to start again; paths are absolute."""

    kernel: str | None
    initrd: str | None
    append: str
    firmware: str | None
    program: str | None
    agent: bool
    our_initrd: bool

    @classmethod
    def of(cls, software: Software) -> SoftwareState:
        """What there is to ``software`` but the disk, which is among the others."""
        paths = (software.kernel, software.initrd, software.firmware, software.program)
        kernel, initrd, firmware, program = (str(path.absolute()) if path is not None else None for path in paths)
        return cls(kernel, initrd, software.append, firmware, program, software.agent, software.our_initrd)

    def software(self) -> Software:
        """The software."""
        paths = (self.kernel, self.initrd, self.firmware, self.program)
        kernel, initrd, firmware, program = (Path(path) if path is not None else None for path in paths)
        return Software(kernel, initrd, self.append, firmware, program, self.agent, self.our_initrd)


@dataclass
class NicState:
    """A network card; ``to`` is ``user``, ``passt``, or ``switch`` for a switch of the process."""

    to: str
    mac: str
    name: str
    forwards: list[Forward]
    restricted: bool
    subnet: str
    hostname: str | None
    address: str | None

    @classmethod
    def of(cls, nic: Nic) -> NicState:
        """What there is to ``nic``."""
        to = nic.to if isinstance(nic.to, str) else _SWITCH
        return cls(to, nic.mac, nic.name, list(nic.forwards), nic.restricted, nic.subnet, nic.hostname, nic.address)

    def nic(self, to: str | Switch | Nic | None) -> Nic:
        """The card, plugged into ``to`` if that is given, with the address that it had. Raises ValueError."""
        if isinstance(to, Nic):
            to.mac = self.mac
            return to
        if isinstance(to, str):
            found = Nic.parse(to)
            if found is None:
                raise ValueError("a card cannot be taken out of a restored machine: plug it into an empty Switch")
            found.mac, found.name, found.address = self.mac, self.name, self.address
            return found
        if to is not None:
            return Nic(to, self.mac, address=self.address)
        if self.to == _SWITCH:
            raise SnapshotError(
                f"the machine's card {self.mac} was in a switch of the program that made it: give networks=[...]"
            )
        return Nic(
            self.to, self.mac, self.name, list(self.forwards), self.restricted, self.subnet, self.hostname, self.address
        )


@dataclass
class ScreenState:
    """A display, and whether it is without a keyboard and a pointer."""

    width: int
    height: int
    bare: bool


@dataclass
class VMState:
    """A VM's own part of a snapshot; its disks are another."""

    name: str
    software: SoftwareState
    memory: int
    cpus: int
    tier: str
    virtual_time: bool
    bus: str
    reboot: bool
    ready: bool
    """Whether the guest's agent had answered."""
    shares: list[Share]
    networks: list[NicState]
    screen: ScreenState | None

    @classmethod
    def of(cls, vm: VM) -> VMState:
        """What ``vm`` was made from."""
        config, screen = vm.config, vm.screen
        return cls(
            vm.name, SoftwareState.of(vm.described), config.memory, config.cpus, config.tier, config.virtual_time,
            config.bus, vm.reboot, vm.ready, [_absolute(share) for share in vm.shares],
            [NicState.of(nic) for nic in vm.networks],
            ScreenState(screen.width, screen.height, screen.bare) if screen is not None else None,
        )  # fmt: skip

    def nics(self, given: Sequence[str | Switch | Nic] | None) -> list[Nic]:
        """The cards; ``given``: what each of them is plugged into now. Raises ValueError, SnapshotError."""
        if given is not None and len(given) != len(self.networks):
            raise SnapshotError(f"{len(given)} networks for a machine with {len(self.networks)} cards")
        return [
            saved.nic(given[index] if given is not None else None) for index, saved in enumerate(self.networks)
        ]

    def make_screen(self) -> Screen | None:
        """A display like the one it had."""
        return None if self.screen is None else Screen(self.screen.width, self.screen.height, self.screen.bare)


def _absolute(share: Share) -> Share:
    return Share(
        str(Path(share.directory).absolute()), share.tag, share.mount, share.read_only, share.owner, share.via
    )
