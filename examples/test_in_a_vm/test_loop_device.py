"""Tests of a kernel's loop device, in a virtual machine that they share.

    pytest examples/test_in_a_vm
"""

import pytest


@pytest.fixture
def device(vm):
    """A loop device over a file of 1 MiB."""
    vm.run("modprobe loop && truncate -s 1M /tmp/disk", check=True)
    name = vm.run("losetup -f", check=True).stdout.strip()
    vm.run(["losetup", name, "/tmp/disk"], check=True)
    yield name
    vm.run(["losetup", "-d", name], check=True)


def test_its_size(vm, device):
    assert vm.run(["blockdev", "--getsize64", device], check=True).stdout == f"{1 << 20}\n"


def test_what_is_written_is_in_the_file(vm, device):
    vm.run(f"dd of={device} bs=512 seek=3 conv=fsync", input=b"A" * 512, check=True)
    data = vm.read_file("/tmp/disk")
    assert data[3 * 512 : 4 * 512] == b"A" * 512 and not any(data[4 * 512 :])


def test_a_file_system_on_it(vm, device):
    vm.run(f"mke2fs {device} && mkdir -p /tmp/mnt && mount -t ext4 {device} /tmp/mnt", check=True)
    try:
        vm.write_file("/tmp/mnt/file", "kept")
        assert vm.read_file("/tmp/mnt/file") == b"kept"
    finally:
        vm.run("umount /tmp/mnt", check=True)


def test_reading_beyond_its_end_fails(vm, device):
    assert vm.run(f"dd if={device} bs=512 skip=2048 count=1").stdout == ""
