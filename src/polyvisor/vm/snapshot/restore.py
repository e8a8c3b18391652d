"""Making a VM of a snapshot in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from polyvisor.boards import memory_map as at
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.engine.codepages import BEGINNING
from polyvisor.engine.memory import Extent
from polyvisor.vm.equipment import Nic, Share
from polyvisor.vm.errors import SnapshotError
from polyvisor.vm.machine import Machine

from . import store
from .disk_state import DiskState
from .file import SnapshotFile
from .machine_state import MachineState, Shape, apply
from .ram import RamImage
from .store import Last, RamSection

if TYPE_CHECKING:
    from polyvisor.network.switch import Switch
    from polyvisor.vm.virtual_machine import VM


class Origin:
    """The snapshot that a VM begins with, and what is needed of it once."""

    def __init__(self, name: str | os.PathLike[str]) -> None:
        """Raises SnapshotError, with a line for the user."""
        store.open_file(name)
        self.chain = store.open_chain(store.path_of(name))
        self.file = self.chain[-1]
        self.vm = store.vm_of(self.file)

    def disks(self) -> list[Any]:
        """The disks, as they were. Raises SnapshotError."""
        states = [file.take(list[DiskState], "disks") for file in self.chain]
        if not states[-1]:
            return []
        from . import disks  # with all of storage

        return list(disks.restored(self.chain, states))

    def state(self) -> MachineState:
        """The machine's state. Raises SnapshotError."""
        document = self.file.document
        devices = document.get("virtio")
        if not isinstance(devices, list):
            raise SnapshotError(f"{self.file.path}: the snapshot makes no sense: virtio: not of type list")
        return MachineState(self.file.take(Shape, "shape"), document.get("board", {}), devices, self._ram())

    def _ram(self) -> list[RamImage]:
        """RAM as what the first snapshot has, and over that what each of the others has."""
        extents: dict[int, list[Extent]] = {}
        sizes: dict[int, int] = {}
        for depth, file in enumerate(self.chain):
            for base, section in _sections(file).items():
                if sizes.setdefault(base, section.size) != section.size:
                    raise SnapshotError(f"{file.path}: has RAM of another size than what is based on it")
                here = extents.setdefault(base, [])
                if depth == 0 and section.runs:
                    # Its holes are zeroes.
                    here.append(Extent(0, section.size, file.fd, section.offset, tuple(section.runs)))
                elif depth:
                    here += [Extent(start, length, file.fd, section.offset + start) for start, length in section.runs]
        return [RamImage(base, sizes[base], tuple(found), self.chain) for base, found in extents.items()]

    def machine(
        self, config: Any, output: Callable[[bytes], None], progress: Callable[[str], None] | None
    ) -> tuple[Machine, Last | None]:
        """The machine, to be started, and where it goes on from. Raises SnapshotError and what Machine does."""
        state = self.state()
        for image in state.ram:
            if image.size != {at.MROM.base: at.MROM.size, at.DRAM_BASE: config.memory}.get(image.base):
                raise SnapshotError(f"{self.file.path}: has RAM at {image.base:#x} that the machine has not")
        machine = Machine(config, output, progress, {image.base: image.extents for image in state.ram})
        try:
            apply(machine, state, with_ram=False)
        except SnapshotError as error:
            machine.close()
            raise SnapshotError(f"{self.file.path}: {error}") from error
        except BaseException:
            machine.close()
            raise
        known = machine.board.pages is not None
        return machine, Last(self.file.identity, self.file.path, BEGINNING) if known else None


def _sections(file: SnapshotFile) -> dict[int, Any]:
    found = {}
    for each in file.take(list[RamSection], "ram"):
        file.check_section(each.section)
        found[each.base] = each.section
    return found


def restored_vm(
    snapshot: str | os.PathLike[str],
    /,
    *,
    networks: Sequence[str | Switch | Nic] | None = None,
    shares: Sequence[str | os.PathLike[str] | Share] | None = None,
    devices: Sequence[Callable[[], VirtioDevice]] = (),
    **options: Any,
) -> tuple[VM, bool]:
    """A VM as it was, to be started, and whether its agent had answered; options as for :meth:`VM.restore`.

    Raises SnapshotError, OSError, ValueError.
    """
    from polyvisor.vm.virtual_machine import VM

    if options.get("record") is not None:
        raise ValueError("a machine that goes on from a snapshot cannot be recorded: its devices are in use already")
    origin = Origin(snapshot)
    saved = origin.vm
    options.setdefault("display", saved.make_screen())
    options["name"] = options.get("name") or saved.name
    vm = VM(
        software=saved.software.software(), memory=saved.memory, cpus=saved.cpus, tier=saved.tier,
        virtual_time=saved.virtual_time, bus=saved.bus, reboot=saved.reboot, disks=origin.disks(),
        shares=saved.shares if shares is None else shares, networks=saved.nics(networks), devices=devices,
        origin=origin, **options,
    )  # fmt: skip
    return vm, saved.ready
