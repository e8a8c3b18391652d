"""Files that are loaded without being read first."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from test_loader import BASE, MIB, elf, image

from polyvisor.boards.linux_boot import load_kernel
from polyvisor.boards.placing import LoadError, place_high
from polyvisor.boards.stored_file import StoredFile
from polyvisor.engine.memory import Memory
from polyvisor.vm.software import Software

CONTENT = random.Random(1).randbytes(9 * MIB + 4321)


@pytest.fixture
def memory():
    memory = Memory()
    memory.add_ram(BASE, 32 * MIB)
    yield memory
    memory.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


@pytest.mark.parametrize("length", [0, 1, 4096, 5 * MIB, 9 * MIB + 4321])
@pytest.mark.parametrize("how", ["sendfile", "read"])
def test_a_file_is_copied_whole_with_its_tail(memory, path, monkeypatch, length, how):
    if how == "read":

        def refuse(*arguments):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "sendfile", refuse)
    os.truncate(path, length)
    told = []
    memory.on_write = lambda address, count: told.append((address, count))
    memory.write(BASE, b"\xcc" * 10 * MIB)
    told.clear()
    with StoredFile(path, b"tail") as file:
        assert len(file) == length + 4
        file.place(memory, BASE + 4096 + 7)
    assert memory.read(BASE + 4096 + 7, length + 5) == CONTENT[:length] + b"tail\xcc"
    assert memory.read(BASE + 4096, 7) == b"\xcc" * 7
    assert sum(count for _, count in told) == length + 4


def test_slices_are_those_of_the_bytes(path):
    with StoredFile(path, b"tail") as file:
        whole = CONTENT + b"tail"
        for part in (slice(0, 4), slice(None, 100), slice(5, 5), slice(7, 3), slice(-6, None), slice(-3, None),
                     slice(len(CONTENT) - 2, len(CONTENT) + 2), slice(10**9, 10**9 + 4), slice(None)):  # fmt: skip
            assert file[part] == whole[part]


def test_a_file_that_is_cut_off_meanwhile(memory, path):
    with StoredFile(path) as file:
        os.truncate(path, 5 * MIB)
        with pytest.raises(EOFError):
            file.place(memory, BASE)
        with pytest.raises(EOFError):
            file[6 * MIB : 7 * MIB]


def test_only_regular_files(tmp_path):
    with pytest.raises(OSError, match="regular"):
        StoredFile(tmp_path)


@pytest.mark.parametrize("data", [image(), image(3 * MIB, image_size=MIB), elf()], ids=["image", "long", "elf"])
def test_a_kernel_is_loaded_as_from_its_bytes(memory, tmp_path, data):
    (tmp_path / "kernel").write_bytes(data)
    with StoredFile(tmp_path / "kernel") as file:
        found = load_kernel(memory, file)
    other = Memory()
    other.add_ram(BASE, 32 * MIB)
    assert load_kernel(other, data) == found
    assert memory.read(BASE, 32 * MIB) == other.read(BASE, 32 * MIB)
    other.close()


@pytest.mark.parametrize("data", [b"", b"x", b"MZ", image()[:60], b"\x7fELF", image(flags=1), image(image_size=0)])
def test_a_bad_kernel_is_refused_as_its_bytes_are(memory, tmp_path, data):
    (tmp_path / "kernel").write_bytes(data)
    with pytest.raises(LoadError) as expected:
        load_kernel(memory, data)
    with StoredFile(tmp_path / "kernel") as file, pytest.raises(LoadError) as caught:
        load_kernel(memory, file)
    assert str(caught.value) == str(expected.value)


def test_what_has_no_room_is_refused(memory, path):
    with StoredFile(path) as file, pytest.raises(LoadError, match="too small"):
        place_high(memory, file, floor=BASE + 31 * MIB)


class _Machine:
    """Takes what would be loaded."""

    def __init__(self) -> None:
        self.board = self
        self.given: tuple[bytes, bytes | None] | None = None

    def load_linux(self, kernel, initrd, line, firmware):
        self.given = kernel[:], initrd[:] if initrd is not None else None


@pytest.mark.parametrize("piped", [False, True])
def test_the_agent_is_put_behind_an_initramfs_at_a_multiple_of_512(tmp_path, piped):
    """As the kernel wants archives that follow each other; a pipe's bytes are read, a file's are not."""
    (tmp_path / "kernel").write_bytes(b"kernel")
    initrd = tmp_path / "initrd"
    if piped:
        initrd.symlink_to("/dev/null")
    else:
        initrd.write_bytes(b"initrd")
    machine = _Machine()
    Software(kernel=tmp_path / "kernel", initrd=initrd, agent=True).load(machine)  # type: ignore[arg-type]
    assert machine.given is not None
    kernel, found = machine.given
    assert kernel == b"kernel"
    assert found is not None
    start = 0 if piped else 512
    assert found[:start].rstrip(b"\0") == (b"" if piped else b"initrd")
    assert found[start : start + 6] == b"070701"
    assert b"polyvisor/agent" in found
    Software(kernel=tmp_path / "kernel").load(machine)  # type: ignore[arg-type]
    assert machine.given == (b"kernel", None)
