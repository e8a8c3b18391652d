"""Looks for a run that fails, among many that differ in chance alone, and keeps its recording."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import VMError

if TYPE_CHECKING:
    from .virtual_machine import VM


@dataclass(frozen=True)
class Found:
    """The run with ``seed`` failed, for ``reason``; ``recording`` is for :func:`polyvisor.replay`."""

    seed: int
    recording: Path
    reason: str


def search(
    make: Callable[..., VM],
    check: Callable[[VM], object],
    *,
    seeds: Iterable[int] = range(1, 101),
    keep: str | os.PathLike[str] = "failed.rec",
) -> Found | None:
    """Run a machine with one seed after the other until a check fails; None if none does.

    ``make(seed=..., schedule=..., record=...)`` gives a new VM with these options, for example
    ``functools.partial(polyvisor.VM, "debian", cpus=2)``; what else is left to chance, such as the faults of a switch,
    it makes from the seed itself. ``check(vm)`` is called with the machine booted, and fails if it returns False or
    raises AssertionError or VMError. The recording of the first that fails is kept in the file ``keep``, which is
    replaced if it is there. Raises what ``make`` and the start of a machine raise, and OSError.
    """
    target = Path(keep)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as directory:
        path = Path(directory) / "run.rec"
        for seed in seeds:
            reason = _run(make(seed=seed, schedule=seed, record=path), check)
            if reason is not None:
                path.replace(target)
                return Found(seed, target, reason)
    return None


def _run(vm: VM, check: Callable[[VM], object]) -> str | None:
    """Why a machine fails; None if it does not."""
    try:
        vm.boot()
        try:
            result = check(vm)
        finally:
            vm.kill()
    except (AssertionError, VMError) as error:
        vm.kill()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "the check gave False" if result is False else None
