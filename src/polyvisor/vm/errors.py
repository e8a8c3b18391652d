"""What can go wrong with a virtual machine, as seen by who uses one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyvisor.guest.client import CommandError

__all__ = ["BootError", "CommandError", "ForkError", "SnapshotError", "StoppedError", "VMError", "VMTimeoutError"]


class VMError(Exception):
    """Base of all errors of machines; ``str(error)`` says what happened and what to do."""


class VMTimeoutError(VMError, TimeoutError):
    """Something did not happen in time; the machine is as it was."""


class BootError(VMError):
    """The machine ended, or did not get ready; the message ends with the last lines of its console."""


class StoppedError(VMError, ConnectionError):
    """The machine is not running, or stopped while something was asked of it."""


class SnapshotError(VMError):
    """A snapshot cannot be taken, or cannot be used."""


class ForkError(VMError):
    """A machine cannot be forked; the message says what is in the way."""


def __getattr__(name: str) -> Any:
    if name != "CommandError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from polyvisor.guest.client import CommandError

    return CommandError
