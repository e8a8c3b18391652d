"""RAM that another process is given stays as large as it is."""

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
