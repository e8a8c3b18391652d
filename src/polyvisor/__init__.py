"""polyvisor: virtual machines described once, in Python.

>>> import polyvisor
>>> with polyvisor.VM("debian") as vm:               # doctest: +SKIP
...     vm.run("uname -m").stdout
'riscv64\n'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .collection import Lasting

__version__ = "0.1.0"

# Where each public name lives. They are imported when they are first used: a description of a CPU needs no machine.
_PUBLIC = {
    "VM": "polyvisor.vm.virtual_machine",
    "C64": "polyvisor.vm.c64.machine",
    "AsyncVM": "polyvisor.vm.asynchronous",
    "Process": "polyvisor.guest.process",
    "Result": "polyvisor.guest.client",
    "VMError": "polyvisor.vm.errors",
    "VMTimeoutError": "polyvisor.vm.errors",
    "BootError": "polyvisor.vm.errors",
    "StoppedError": "polyvisor.vm.errors",
    "CommandError": "polyvisor.vm.errors",
    "Snapshot": "polyvisor.vm.snapshot.store",
    "SnapshotError": "polyvisor.vm.errors",
    "ImageError": "polyvisor.images",
    "Group": "polyvisor.vm.group.group",
    "replay": "polyvisor.vm.replay.replay",
    "replay_group": "polyvisor.vm.replay.together",
    "GroupReplay": "polyvisor.vm.replay.together",
    "search": "polyvisor.vm.search",
    "Replay": "polyvisor.vm.replay.replay",
    "DivergenceError": "polyvisor.vm.replay.replay",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from polyvisor.guest.client import Result as Result
    from polyvisor.guest.process import Process as Process
    from polyvisor.images import ImageError as ImageError
    from polyvisor.vm.asynchronous import AsyncVM as AsyncVM
    from polyvisor.vm.c64.machine import C64 as C64
    from polyvisor.vm.errors import BootError as BootError
    from polyvisor.vm.errors import CommandError as CommandError
    from polyvisor.vm.errors import SnapshotError as SnapshotError
    from polyvisor.vm.errors import StoppedError as StoppedError
    from polyvisor.vm.errors import VMError as VMError
    from polyvisor.vm.errors import VMTimeoutError as VMTimeoutError
    from polyvisor.vm.group.group import Group as Group
    from polyvisor.vm.replay.replay import DivergenceError as DivergenceError
    from polyvisor.vm.replay.replay import Replay as Replay
    from polyvisor.vm.replay.replay import replay as replay
    from polyvisor.vm.replay.together import GroupReplay as GroupReplay
    from polyvisor.vm.replay.together import replay_group as replay_group
    from polyvisor.vm.search import search as search
    from polyvisor.vm.snapshot.store import Snapshot as Snapshot
    from polyvisor.vm.virtual_machine import VM as VM


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'polyvisor' has no attribute {name!r}")
    with Lasting():
        value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
