"""How images are fetched, as one sees it: lines, and bars on a terminal; and what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import typer

from polyvisor import images


class LineProgress:
    """Progress as one line per stage, for logs."""

    def stage(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def transfer(self, name: str, done: int, total: int) -> None:
        pass


class TerminalProgress:
    """Progress as bars on a terminal, once there is any: what draws them takes long to import."""

    def __init__(self, stack: ExitStack) -> None:
        """``stack`` ends them."""
        self._stack = stack
        self._bars: images.Progress | None = None

    def _shown(self) -> images.Progress:
        if self._bars is None:
            from .bars import bars

            self._bars = self._stack.enter_context(bars())
        return self._bars

    def stage(self, text: str) -> None:
        self._shown().stage(text)

    def transfer(self, name: str, done: int, total: int) -> None:
        self._shown().transfer(name, done, total)


@contextmanager
def progress() -> Iterator[images.Progress]:
    """What to pass as ``progress`` to :mod:`polyvisor.images`: bars on a terminal, else one line per stage."""
    if not sys.stderr.isatty():
        yield LineProgress()
        return
    with ExitStack() as stack:
        yield TerminalProgress(stack)


@contextmanager
def errors() -> Iterator[None]:
    """Report an ImageError, or one of the host's files, in one line on stderr, and exit with status 1."""
    try:
        yield
    except (images.ImageError, OSError) as error:
        print(f"polyvisor: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
