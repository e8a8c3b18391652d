"""Looks for a run that fails, among many that differ in chance alone, and keeps its recording."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import VMError

if TYPE_CHECKING:
    from .forks.fork import Fork
    from .group.group import Group
    from .virtual_machine import VM


@dataclass(frozen=True)
class Found:
    """The run with ``seed`` failed, for ``reason``; ``recording`` is for :func:`polyvisor.replay`."""

    seed: int
    recording: Path
    reason: str


def search(
    machine: VM | Group | Callable[..., VM | Group],
    check: Callable[[Any], object],
    *,
    seeds: Iterable[int] = range(1, 101),
    keep: str | os.PathLike[str] = "failed.rec",
) -> Found | None:
    """Run a machine with one seed after the other until a check fails; None if none does.

    ``machine`` is one that runs in virtual time, or a group, and is where all runs are to begin: each is a fork of it,
    with another schedule, other random numbers, and other faults of the group's networks from there on. It stands still
    meanwhile. Or it is a function:
    ``machine(seed=..., schedule=..., record=...)`` gives a new VM with these options, for example
    ``functools.partial(polyvisor.VM, "debian", cpus=2)``, and each run begins with its boot. It may also give a new
    Group, whose switches' faults then follow from the seed too; what else is left to chance, it makes from the seed
    itself.

    ``check(vm)`` is called with the fork, or with the machine or group booted, and fails if it returns False or raises
    AssertionError or VMError. The recording of the first that fails is kept in the file ``keep``, which is replaced if
    it is there. Raises what forks and starts of machines raise, and OSError.
    """
    from .group.group import Group
    from .virtual_machine import VM

    target = Path(keep)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as directory:
        path = Path(directory) / "run.rec"
        with machine.paused() if isinstance(machine, VM | Group) else contextlib.nullcontext():
            for seed in seeds:
                if isinstance(machine, VM | Group):
                    reason = _run_fork(machine, seed, path, check)
                else:
                    reason = _run(machine(seed=seed, schedule=seed, record=path), check)
                if reason is not None:
                    path.replace(target)
                    return Found(seed, target, reason)
    return None


def _run(vm: VM | Group, check: Callable[[Any], object]) -> str | None:
    """Why a machine, or a group, fails; None if it does not."""
    try:
        vm.boot()
        try:
            result = check(vm)
        finally:
            vm.kill()
    except (AssertionError, VMError) as error:
        vm.kill()
        return _line(error)
    return _FALSE if result is False else None


def _run_fork(machine: VM | Group, seed: int, path: Path, check: Callable[[Any], object]) -> str | None:
    """Why a fork of a machine, or of a group, fails; None if it does not."""
    from .virtual_machine import VM

    path.unlink(missing_ok=True)
    fork = _fork(machine, seed, path) if isinstance(machine, VM) else machine.fork(seed, record=path)
    with fork:
        try:
            result = check(fork)
        except (AssertionError, VMError) as error:
            reason: str | None = _line(error)
        else:
            reason = _FALSE if result is False else None
        if reason is not None:
            fork.finish()
            if not path.exists():
                raise VMError(f"a fork was not recorded: {reason}")
    return reason


def _fork(vm: VM, seed: int, path: Path) -> Fork:
    begin = partial(_begin, seed, path)
    vm.on_fork.append(begin)
    try:
        return vm.fork(1, seed=seed)[0]
    finally:
        vm.on_fork.remove(begin)


def _begin(seed: int, path: Path, vm: VM, number: int) -> None:
    """In the fork, before it goes on."""
    vm.release()
    vm.machine.reconnect()
    vm.begin_recording(path, seed)


_FALSE = "the check gave False"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
