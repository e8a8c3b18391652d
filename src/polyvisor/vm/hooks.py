"""Hooks of a VM: functions that its harts call while they execute; added and removed at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from polyvisor.adl import Trap
from polyvisor.engine.hooks.declare import Hook, State
from polyvisor.engine.hooks.events import values_of
from polyvisor.engine.hooks.install import HookPoint, check
from polyvisor.engine.hooks.states import HookStates, Installed
from polyvisor.isa.riscv import rv64

from .errors import VMError
from .inspect import physical_pieces
from .machine import Machine

if TYPE_CHECKING:
    from .virtual_machine import VM

Added = Hook | Sequence[Hook] | Callable[[Any], object]
"""What can be added: functions of :mod:`polyvisor.hooks`, or one of Python's that is called with an event."""
Caller = Callable[[Installed, Callable[[Any], object], str], Callable[..., None]]
"""Makes what the engine calls of a function that Python runs, for events of a kind."""


class Owner(Protocol):
    """Who has hooks: a VM's, or another machine's."""

    def remove(self, hook: AddedHook) -> None:
        """Take a hook out."""

    def still(self) -> Any:
        """The machine stands still for a block."""


def to_install(
    hook: Added, state: type[State] | None, on: str | None, at: int | range | None, cpus: int, caller: Caller
) -> Installed:
    """What the engine is to install; the arguments are those of :meth:`Hooks.add`. Raises ValueError."""
    where = range(at, at + 1) if isinstance(at, int) else at
    functions = list(hook) if isinstance(hook, Sequence) else [hook]
    names = ", ".join(f.name if isinstance(f, Hook) else getattr(f, "__name__", repr(f)) for f in functions)
    installed = Installed(HookStates(state, cpus, names))
    for function in functions:
        if isinstance(function, Hook):
            if on is not None:
                raise ValueError(f"{function.name} says itself what it is called on: {function.kind}")
            installed.add(function.kind, function, None, where)
        elif on is None:
            raise ValueError(f"say what {names} is called on, for example on='write', or use @hooks.on_write")
        elif state is not None:
            raise ValueError("a function that Python runs needs no state: it can keep what it likes itself")
        else:
            installed.add(on, None, caller(installed, function, on), where)
    return installed


class Event:
    """What a callback is told: ``kind``, the values that come with it as attributes, and the hart that stands there.

    ``cpu`` is the state of that hart: ``event.cpu.pc``, ``event.cpu.x[10]``.
    """

    def __init__(self, kind: str, machine: Machine, hart: int, values: dict[str, int]) -> None:
        self.kind = kind
        self.hart = hart
        self.values = values
        self._hart = machine.board.harts[hart]
        self._memory = machine.board.memory

    def __getattr__(self, name: str) -> int:
        if name not in self.__dict__.get("values", ()):
            raise AttributeError(f"an event {self.kind} has no {name!r}; it has {', '.join(self.values)}")
        return self.values[name]

    @property
    def cpu(self) -> Any:
        """The hart's registers."""
        return self._hart.state

    def read(self, address: int, length: int) -> bytes:
        """Memory by the hart's virtual addresses. Raises LookupError where nothing is mapped."""
        try:
            pieces = list(physical_pieces(self._hart, address, length))
        except Trap as error:
            raise LookupError(f"nothing is mapped at some of {address:#x}..{address + length - 1:#x}") from error
        return b"".join(self._memory.read(*piece) for piece in pieces)

    def text(self, address: int, most: int = 4096) -> str:
        """The text at a virtual address, up to a NUL. Raises LookupError."""
        found = b""
        while len(found) < most and b"\0" not in found:
            found += self.read(address + len(found), 64 - (address + len(found)) % 64)
        return found[:most].split(b"\0")[0].decode(errors="replace")

    def __repr__(self) -> str:
        return f"<{self.kind} on hart {self.hart}: {', '.join(f'{n}={v:#x}' for n, v in self.values.items())}>"


class AddedHook:
    """A hook that was added. Its state's members are attributes; they can be read after it was removed, too.

    ``harts`` are the states of the harts, each for itself.
    """

    def __init__(self, owner: Owner, installed: Installed) -> None:
        self._owner = owner
        self._installed = installed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._installed.states.read(name)

    @property
    def harts(self) -> tuple[Any, ...]:
        """The state of each hart."""
        self._installed.states.check()
        return self._installed.states.harts

    def reset(self) -> None:
        """Begin anew with the state's first values."""
        with self._owner.still():
            self._installed.states.reset()

    def remove(self) -> None:
        """Take it out; nothing happens if it is out already."""
        self._owner.remove(self)

    def __enter__(self) -> AddedHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
        if kind is None:
            self._installed.states.check()

    def __repr__(self) -> str:
        names = ", ".join(f.hook.name if f.hook is not None else f.kind for f in self._installed.functions)
        return f"<hook {names}>"


class Hooks:
    """The hooks of a VM."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._added: list[AddedHook] = []
        self._lock = threading.RLock()
        self._point: tuple[Machine, HookPoint] | None = None
        vm.on_machine.append(self._attach)
        vm.on_fork.append(lambda fork, number: self.revive())
        if vm.running:
            self._attach(vm.machine)

    def add(
        self, hook: Added, state: type[State] | None = None, *, on: str | None = None, at: int | range | None = None
    ) -> AddedHook:
        """Add a hook; may be called while the machine runs, and before it starts.

        ``hook``: a function made by the decorators of :mod:`polyvisor.hooks`, or several that share a ``state``; or an
        ordinary function that is called with an :class:`Event`, for events ``on``: ``"instruction"``, ``"block"``,
        ``"read"``, ``"write"``, ``"csr_write"``, ``"trap"``, ``"syscall"``. ``at``: for one address, or a range of
        them, only. Raises DescriptionError, which names file and line, and ValueError.
        """
        installed = to_install(hook, state, on, at, self._vm.config.cpus, self._callback)
        added = AddedHook(self, installed)
        if self._is_hart():
            raise VMError("a hook cannot be added by a function that a hart calls: its hart cannot stand still")
        with self._lock:
            self._apply([*self._added, added])
            self._added.append(added)
        return added

    def remove(self, hook: AddedHook) -> None:
        """Take a hook out; nothing happens if it is out already.

        In a callback, it is called no more at once, and taken out soon: its hart cannot stand still yet.
        """
        hook._installed.removed = True
        if self._is_hart():
            threading.Thread(target=self.remove, args=(hook,), name="removing a hook", daemon=True).start()
            return
        with self._lock:
            if hook in self._added:
                rest = [each for each in self._added if each is not hook]
                self._apply(rest)
                self._added = rest

    def revive(self) -> None:
        """Go on in a copy of the process (``os.fork``): what is hooked stays so, and counts go on from there."""
        self._lock = threading.RLock()
        self._vm.on_machine.append(self._attach)

    def __getitem__(self, number: int) -> AddedHook:
        """What was added, by the order in which it was, without what was removed since."""
        return self._added[number]

    def __len__(self) -> int:
        return len(self._added)

    def still(self) -> Any:
        """The machine stands still for a block, if it runs."""
        return self._vm.paused() if self._vm.running else self._lock

    # Inside

    def _is_hart(self) -> bool:
        """Whether a hart is calling."""
        return self._point is not None and any(hart.is_this_thread for hart in self._point[0].board.harts)

    def _callback(
        self, installed: Installed, function: Callable[[Event], object], kind: str
    ) -> Callable[..., None]:
        def call(hart: int, *values: int) -> None:
            if installed.removed:
                return
            assert self._point is not None
            names = values_of(rv64, kind)
            function(Event(kind, self._point[0], hart, dict(zip(names, values, strict=True))))

        return call

    def _apply(self, hooks: Sequence[AddedHook]) -> None:
        installed = [each._installed for each in hooks]
        if self._vm.running:
            assert self._point is not None
            machine, point = self._point
            prepared = point.prepare(installed)
            with self._vm.paused():
                if self._point[0] is machine:  # else a new one has begun with the hooks it knows of
                    point.swap(prepared)
        else:
            check(rv64, installed)

    def _attach(self, machine: Machine) -> None:
        """A new machine, that does not run yet: it gets the hooks that are there."""
        board = machine.board
        with self._lock:
            self._point = machine, HookPoint(rv64, [hart.cpu for hart in board.harts], board.regions)
            if self._added:
                self._point[1].apply([each._installed for each in self._added])
