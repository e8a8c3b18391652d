"""Linux's own drivers of virtio, over both buses and with both ring formats."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from pathlib import Path

import pytest

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.vm.machine import Machine
from support.guests import guest_image

# What is on the bus, how the interrupts get there, and what was negotiated (bit 34 is the packed ring); then data both
# ways, with enough requests for the rings to wrap.
COMMAND = """
set -e
readlink -f /sys/block/vda/device
cut -c 35 /sys/bus/virtio/devices/virtio1/features
md5sum /dev/vda
dd if=/dev/vda of=/dev/null bs=512 iflag=direct 2>/dev/null
dd if=/dev/vda of=/dev/vdb bs=64k 2>/dev/null
sync
head -c 16 /dev/hwrng | wc -c
"""


@pytest.mark.parametrize(
    ("bus", "packed", "cpus"),
    [
        ("pci", False, 1),
        ("mmio", True, 2),
        pytest.param("pci", True, 2, marks=pytest.mark.slow),
        pytest.param("mmio", False, 2, marks=pytest.mark.slow),
    ],
)
def test_linux_uses_disks(tmp_path: Path, bus: str, packed: bool, cpus: int) -> None:
    data = random.Random(3).randbytes(1 << 19)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(bytes(len(data)))
    image = guest_image()
    output = bytearray()
    disks = tuple(partial(BlockDevice.open, tmp_path / name, name == "a") for name in "ab")
    config = VirtConfig(memory=256 << 20, cpus=cpus, devices=disks, bus=bus, packed=packed)
    with Machine(config, output.extend) as machine:
        command_line = image.command_line(run=COMMAND)
        machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), command_line)
        machine.start()
        assert machine.wait(120), output.decode()
        assert machine.exit_code == 0, output.decode()
    where, bit, digest, count = output.decode().splitlines()[:4]
    assert ("/pci0000:00/0000:00:02.0/" if bus == "pci" else "virtio_mmio") in where
    assert bit == str(int(packed))
    assert digest.split()[0] == hashlib.md5(data).hexdigest()
    assert (tmp_path / "b").read_bytes() == data
    assert count.strip() == "16"


def test_a_full_pci_bus(tmp_path: Path) -> None:
    """All lines are shared by eight devices or so, and each device reads."""
    for number in range(30):
        (tmp_path / f"{number}").write_bytes(f"{number}\n".encode().ljust(4096, b"."))
    image = guest_image()
    output = bytearray()
    disks = tuple(partial(BlockDevice.open, tmp_path / f"{number}", True) for number in range(30))
    with Machine(VirtConfig(memory=256 << 20, devices=disks, bus="pci"), output.extend) as machine:
        command_line = image.command_line(run="for d in /sys/block/vd*; do head -n 1 /dev/${d##*/}; done")
        machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), command_line)
        machine.start()
        assert machine.wait(120), output.decode()
    assert sorted(map(int, output.split()[:30])) == list(range(30)), output.decode()
