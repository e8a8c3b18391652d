"""What compiled code depends on is in its key."""

from __future__ import annotations

from polyvisor.boards.c64 import c64
from polyvisor.engine.objectcode import _modules, _packages
from polyvisor.isa.riscv import rv64


def test_packages_that_are_only_called_count() -> None:
    """Of the Commodore 64, the chips are elsewhere than the board: reached by calls, and as parts of the state."""
    names = {package.__name__ for package in _packages(_modules(c64))}
    chips = {"polyvisor.devices.c64", "polyvisor.devices.c64.vic_ii"}
    assert chips | {"polyvisor.isa.mos6502", "polyvisor.boards.c64"} <= names


def test_others_do_not() -> None:
    names = {package.__name__ for package in _packages(_modules(rv64))}
    assert names == {"polyvisor.adl", "polyvisor.engine", "polyvisor.isa.riscv"}
    assert rv64.package == "polyvisor.isa.riscv"  # which is taken at its word
