"""A virtual machine for asyncio: the same object, with coroutines where :class:`VM` waits.

>>> async with polyvisor.AsyncVM("debian") as vm:     # doctest: +SKIP
...     print((await vm.run("uname -a")).stdout)
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from polyvisor.guest.client import Result
from polyvisor.guest.process import Process, Reader

from .commands import DEFAULT
from .virtual_machine import VM

if TYPE_CHECKING:
    from .snapshot.store import Snapshot

T = TypeVar("T")


async def _in_thread(
    function: Callable[..., T], *arguments: Any, discard: Callable[[T], object] | None = None, **keywords: Any
) -> T:
    """Call what waits in a thread of its own: a pool's limit would make machines wait for each other.

    ``discard`` gets the result if the caller was cancelled meanwhile.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            if discard is not None and error is None:
                discard(result)  # type: ignore[arg-type]
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def call() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function(*arguments, **keywords)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(finish, result, error)
        except RuntimeError:  # the loop is closed
            if discard is not None and error is None:
                discard(result)  # type: ignore[arg-type]

    threading.Thread(target=call, name=f"waiting in {function.__name__}", daemon=True).start()
    return await future


class AsyncProcess:
    """A running command, for asyncio. :attr:`process` is the same for threads."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """Its number in the guest."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N if signal N ended it."""
        return self.process.exit_code

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; gives its exit code."""
        return await _in_thread(self.process.wait, timeout)

    async def write(self, data: str | bytes, timeout: float | None = None) -> None:
        """Send input."""
        await _in_thread(self.process.write, data, timeout)

    def close_stdin(self) -> None:
        """The command sees the end of its input."""
        self.process.close_stdin()

    async def send_signal(self, signal: int, timeout: float | None = None) -> None:
        """Send a signal to the command and its children."""
        await _in_thread(self.process.send_signal, signal, timeout)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    async def lines(self, stream: Reader | None = None) -> AsyncIterator[Any]:
        """The lines of standard output (or ``process.stderr``) as they come."""
        reader = stream or self.process.stdout
        while line := await _in_thread(reader.readline):
            yield line

    async def __aenter__(self) -> AsyncProcess:
        return self

    async def __aexit__(self, *reason: object) -> None:
        self.process.__exit__(*reason)


class AsyncVM:
    """A machine for asyncio; takes what :class:`VM` takes. :attr:`vm` is the same machine for threads, for all that
    does not wait: registers, memory, the console's log, events."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._make = lambda: VM(*arguments, **options)
        self._vm: VM | None = None

    @classmethod
    def restore(cls, snapshot: str | os.PathLike[str], /, **options: Any) -> AsyncVM:
        """As :meth:`VM.restore`, when it is entered or booted."""
        made = cls()
        made._make = lambda: VM.restore(snapshot, **options)
        return made

    @property
    def vm(self) -> VM:
        """The machine. Raises RuntimeError before :meth:`boot`."""
        if self._vm is None:
            raise RuntimeError("the machine has not been booted yet: use `async with`, or await boot()")
        return self._vm

    async def boot(self, timeout: float | None = None) -> AsyncVM:
        """Boot, and wait until the agent answers."""
        if self._vm is None:
            # An image may have to be fetched first.
            self._vm = await _in_thread(self._make)
        await _in_thread(self._vm.boot, *(() if timeout is None else (timeout,)))
        return self

    async def run(self, command: str | Sequence[str], **options: Any) -> Result:
        """As :meth:`VM.run`. Cancelling kills the command."""
        started: list[Process] = []
        cancelled = threading.Event()

        def on_start(process: Process) -> None:
            started.append(process)
            if cancelled.is_set():
                process.kill()

        try:
            return await _in_thread(self.vm.run, command, on_start=on_start, **options)
        except asyncio.CancelledError:
            cancelled.set()
            for process in started:
                process.kill()
            raise

    async def popen(self, command: str | Sequence[str], **options: Any) -> AsyncProcess:
        """As :meth:`VM.popen`."""
        return AsyncProcess(await _in_thread(self.vm.popen, command, discard=Process.kill, **options))

    async def read_file(self, path: str, **options: Any) -> bytes:
        """As :meth:`VM.read_file`."""
        return await _in_thread(self.vm.read_file, path, **options)

    async def write_file(self, path: str, data: str | bytes, **options: Any) -> None:
        """As :meth:`VM.write_file`."""
        await _in_thread(self.vm.write_file, path, data, **options)

    async def put(self, source: str | os.PathLike[str], target: str, **options: Any) -> None:
        """As :meth:`VM.put`."""
        await _in_thread(self.vm.put, source, target, **options)

    async def get(self, source: str, target: str | os.PathLike[str] = ".", **options: Any) -> Path:
        """As :meth:`VM.get`."""
        return await _in_thread(self.vm.get, source, target, **options)

    async def expect(self, *patterns: str | bytes | re.Pattern[bytes], timeout: float | None = 60) -> re.Match[bytes]:
        """As ``VM.console.expect``."""
        return await _in_thread(self.vm.console.expect, *patterns, timeout=timeout)

    async def snapshot(self, name: str | os.PathLike[str], **options: Any) -> Snapshot:
        """As :meth:`VM.snapshot`."""
        return await _in_thread(self.vm.snapshot, name, **options)

    async def wait(self, timeout: float | None = None) -> int | None:
        """As :meth:`VM.wait`."""
        return await _in_thread(self.vm.wait, timeout)

    async def stop(self, timeout: float | object | None = DEFAULT) -> int | None:
        """As :meth:`VM.stop`."""
        return await _in_thread(self.vm.stop, timeout)

    async def __aenter__(self) -> AsyncVM:
        try:
            return await self.boot()
        except BaseException:
            if self._vm is not None:
                await _in_thread(self._vm.kill)
            raise

    async def __aexit__(self, kind: object, *reason: object) -> None:
        await _in_thread(self.vm.stop if kind is None else self.vm.kill)
