"""RAM as the host sees it: it stays as large as it is, and goes back at the end."""

from __future__ import annotations

import os

import pytest

from polyvisor.engine.memory import Memory


def test_ram_cannot_be_shortened() -> None:
    memory = Memory()
    ram = memory.add_ram(0x8000_0000, 1 << 20)
    for size in (0, 1 << 21):
        with pytest.raises(PermissionError):
            os.ftruncate(ram.fd, size)
    memory.close()


def test_closing_gives_the_memory_back_at_once() -> None:
    memory = Memory()
    ram = memory.add_ram(0x8000_0000, 1 << 20)
    copy = os.dup(ram.fd)
    view = memory.view(0x8000_0000, 1 << 20)  # somebody keeps this
    view[:] = b"x" * (1 << 20)
    assert os.fstat(copy).st_blocks * 512 >= 1 << 20
    memory.close()
    assert os.fstat(copy).st_blocks == 0
    os.close(copy)
