"""What is plugged into a machine: each piece says in words or in Python what it is, and makes its devices.

A guest that restarts gets new devices; what the pieces keep (a disk's overlay, a card's address) outlives that. Each
piece is imported when it is used, and what a device needs when that is made: most machines have few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .disk import Disk
    from .nic import Nic
    from .screen import Screen
    from .share import Share

__all__ = ["Disk", "Nic", "Screen", "Share"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{name.lower()}", __name__), name)
