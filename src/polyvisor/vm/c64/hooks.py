"""Hooks of a Commodore 64: functions that become part of the code that executes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from polyvisor.boards.c64.machine import Commodore64
from polyvisor.engine.hooks.declare import State
from polyvisor.engine.hooks.events import values_of
from polyvisor.engine.hooks.install import HookPoint
from polyvisor.engine.hooks.states import Installed
from polyvisor.vm.hooks import Added, AddedHook, to_install


class C64Event:
    """What a callback is told: ``kind``, and the values that come with it as attributes."""

    def __init__(self, kind: str, machine: Commodore64, values: dict[str, int]) -> None:
        self.kind = kind
        self.values = values
        self._machine = machine

    def __getattr__(self, name: str) -> int:
        if name not in self.__dict__.get("values", ()):
            raise AttributeError(f"an event {self.kind} has no {name!r}; it has {', '.join(self.values)}")
        return self.values[name]

    @property
    def cpu(self) -> Any:
        """The registers, of the chips too."""
        return self._machine.state

    @property
    def cycle(self) -> int:
        """Clock cycles since the last reset, at the beginning of the instruction."""
        return self._machine.cycles

    def peek(self, address: int) -> int:
        """A byte of RAM."""
        return self._machine.peek(address)

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(f'{n}=${v:x}' for n, v in self.values.items())}>"


class C64Hooks:
    """The hooks of a machine."""

    def __init__(self, machine: Commodore64) -> None:
        self._machine = machine
        self._added: list[AddedHook] = []
        self._point: HookPoint | None = None

    def add(
        self, hook: Added, state: type[State] | None = None, *, on: str | None = None, at: int | range | None = None
    ) -> AddedHook:
        """Add a hook, as :meth:`polyvisor.vm.hooks.Hooks.add` does; addresses are those of the 6510, and a callback
        gets a :class:`C64Event`.

        While hooks are there, code is compiled anew. Raises DescriptionError, ValueError.
        """
        added = AddedHook(self, to_install(hook, state, on, at, 1, self._callback))
        self._apply([*self._added, added])
        self._added.append(added)
        return added

    def remove(self, hook: AddedHook) -> None:
        """Take a hook out; nothing happens if it is out already."""
        hook._installed.removed = True
        if hook in self._added:
            rest = [each for each in self._added if each is not hook]
            self._apply(rest)
            self._added = rest

    def still(self) -> Any:
        """It stands still whenever it is not run."""
        return contextlib.nullcontext()

    def __len__(self) -> int:
        return len(self._added)

    def _callback(
        self, installed: Installed, function: Callable[[Any], object], kind: str
    ) -> Callable[..., None]:
        names = values_of(self._machine.model.architecture, kind)

        def call(cpu: int, *values: int) -> None:
            if not installed.removed:
                function(C64Event(kind, self._machine, dict(zip(names, values, strict=True))))

        return call

    def _apply(self, hooks: list[AddedHook]) -> None:
        if self._point is None:
            self._point = HookPoint(self._machine.model.architecture, [self._machine.cpu], self._machine.regions)
        self._point.apply([each._installed for each in hooks])
