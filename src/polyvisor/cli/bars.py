"""Bars of files that are being fetched, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Column


class BarProgress:
    """Progress as lines with a bar below for the file that is being fetched, for terminals."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def stage(self, text: str) -> None:
        self._bars.console.print(escape(text), highlight=False)

    def transfer(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(escape(name.split("_")[0]), total=total)
        self._bars.update(self._tasks[name], completed=done)
        if done == total:
            self._bars.remove_task(self._tasks.pop(name))


@contextmanager
def bars() -> Iterator[BarProgress]:
    """Bars on stderr, which are gone at the end."""
    one_line = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32)),
        BarColumn(bar_width=20),
        DownloadColumn(table_column=one_line),
        TransferSpeedColumn(table_column=one_line),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield BarProgress(shown)
