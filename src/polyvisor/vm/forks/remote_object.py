"""Objects of another process, over a connection: attributes, items and calls.

What is plain data comes as it is; of everything else comes a stand-in. Both ends are copies of one process, so what is
pickled is what they would have handed each other anyway.
"""

from __future__ import annotations

import itertools
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

from polyvisor.engine.workers import receive, send
from polyvisor.vm.errors import StoppedError, VMError

Ask = Callable[[tuple[Any, ...]], Any]
"""Sends a request, and gives the answer; raises what it raised there."""


class RemoteObject:
    """Stands for an object in the process that ``ask`` leads to."""

    def __init__(self, ask: Ask, number: int, shown: str, forgotten: list[int]) -> None:
        # Not by setattr, which is for the object there.
        self.__dict__.update(_ask=ask, _number=number, _shown=shown, _forgotten=forgotten)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask((self._number, "getattr", (name,), {}))

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask((self._number, "setattr", (name, value), {}))

    def __getitem__(self, key: Any) -> Any:
        return self._ask((self._number, "getitem", (key,), {}))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask((self._number, "setitem", (key, value), {}))

    def __len__(self) -> int:
        return int(self._ask((self._number, "len", (), {})))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask((self._number, "call", arguments, keywords))

    def __enter__(self) -> Any:
        return self._ask((self._number, "getattr", ("__enter__",), {}))()

    def __exit__(self, *reason: object) -> None:
        self._ask((self._number, "getattr", ("__exit__",), {}))(None, None, None)

    def __repr__(self) -> str:
        return f"<in another process: {self._shown}>"

    def __del__(self) -> None:
        # Said with the next request: this may run at any moment, in any thread.
        self._forgotten.append(self._number)


class Client:
    """Asks for objects; ``connect`` gives a new connection to who serves them.

    ``forgotten`` are the numbers of those that nobody here has any more, as all clients of one server know them.
    """

    def __init__(self, connect: Callable[[], socket.socket], forgotten: list[int]) -> None:
        self._connect = connect
        self._forgotten = forgotten

    @property
    def root(self) -> RemoteObject:
        """The first object."""
        return RemoteObject(self._ask, 0, "the machine", [])

    def _ask(self, request: tuple[Any, ...]) -> Any:
        try:
            pickle.dumps(request)
        except Exception as error:
            raise VMError(f"this cannot be given to another process: {error}") from None
        gone, self._forgotten[:] = list(self._forgotten), []
        try:
            with self._connect() as connection, connection.makefile("rwb") as stream:
                send(stream, (gone, *request))
                kind, value = receive(stream)
        except (EOFError, OSError) as error:
            if isinstance(error, VMError):
                raise
            raise StoppedError("the fork has ended") from error
        if kind == "error":
            raise value
        if kind == "object":
            number, shown = value
            return RemoteObject(self._ask, number, shown, self._forgotten)
        return value


class Server:
    """Serves ``root`` and what comes of it. Any thread may call it."""

    def __init__(self, root: Any) -> None:
        self._objects: dict[int, Any] = {0: root}
        self._numbers = itertools.count(1)

    def serve(self, connection: socket.socket) -> None:
        """Answer one request. Raises OSError, EOFError."""
        with connection.makefile("rwb") as stream:
            gone, number, what, arguments, keywords = receive(stream)
            for each in gone:
                self._objects.pop(each, None)
            try:
                answer = self._answer(self._do(self._objects[number], what, arguments, keywords))
            except BaseException as error:
                answer = "error", _portable(error)
            send(stream, answer)

    def _do(self, target: Any, what: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        match what:
            case "getattr":
                return getattr(target, *arguments)
            case "setattr":
                return setattr(target, *arguments)
            case "getitem":
                return target[arguments[0]]
            case "setitem":
                target[arguments[0]] = arguments[1]
            case "len":
                return len(target)
            case "call":
                return target(*arguments, **keywords)
        return None

    def _answer(self, value: Any) -> tuple[str, Any]:
        plain = _plain(value)
        if plain is not None or value is None:
            return "value", plain
        number = next(self._numbers)
        self._objects[number] = value
        return "object", (number, repr(value)[:200])


def _plain(value: Any) -> Any:
    """The value as data that can be handed over as it is; None if it is something else."""
    # Of the type itself: others, derived from it, may not be what they are there.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, bytes):
        return bytes(value)
    if type(value) in (bytearray, memoryview):
        return bytes(value)
    if type(value) in (list, tuple, set, frozenset):
        items = [_plain(each) for each in value]
        if all(item is not None or each is None for item, each in zip(items, value, strict=True)):
            return type(value)(items)
    if type(value) is dict:
        pairs = {_plain(key): _plain(each) for key, each in value.items()}
        if len(pairs) == len(value) and all(pairs[_plain(k)] is not None or v is None for k, v in value.items()):
            return pairs
    return None


def _portable(error: BaseException) -> BaseException:
    """The error, or one that can be handed over in its place."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return copy if isinstance(copy, Exception) else VMError(f"{type(error).__name__}: {error}")
