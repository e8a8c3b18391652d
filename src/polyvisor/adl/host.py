"""What only the engine's own described functions may use: host memory and caught traps.

These have a meaning only when compiled; the reference executor has no use for them.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .types import Int


def _compiled_only(name: str) -> NoReturn:
    raise NotImplementedError(f"{name} works in compiled functions only")


def peek(type: type[Int], address: Int) -> Any:
    """The value at a host address (u64)."""
    _compiled_only("peek")


def poke(type: type[Int], address: Int, value: Int) -> None:
    """Store at a host address (u64); other threads see it after all earlier stores."""
    _compiled_only("poke")


def host_atomic(operation: str, type: type[Int], address: Int, value: Int) -> Any:
    """Atomically change what is at a host address (``swap``, ``and``, ``or``) and give what was there."""
    _compiled_only("host_atomic")


def host_call(cpu: Any, member: str, *arguments: Int) -> Any:
    """Call the C function whose address is in state member ``member`` with u64 arguments; gives a u64."""
    _compiled_only("host_call")


def cpu_address(cpu: Any) -> Any:
    """The host address of the CPU's block (u64)."""
    _compiled_only("cpu_address")


def attempt(function: Any, *arguments: Any) -> Any:
    """Call a described function and catch its trap: (trapped, result...).

    After a trap the results are 0 and the trap's values are in the CPU's ``trap_values``.
    """
    _compiled_only("attempt")
