"""A compile worker: reads requests from its standard input, writes what it compiled to its standard output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module
from typing import Any

from .codecache import CodeCache
from .handlers import handler_units
from .image import renew_image
from .objectcode import cache_key
from .regions.compile import RegionCompiler, UncompilableError
from .units import Units
from .workers import receive, send

_NICE = 15


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    source = sys.stdin.buffer
    # What a library prints must not get among the answers.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    architecture = getattr(import_module(module), name)
    units = Units(architecture)
    key = cache_key(architecture)
    if key != sys.argv[2]:
        return  # the sources have changed since that process started: nothing more is compiled for it
    cache = CodeCache(key)
    # For the hooks that were asked for last: they change rarely.
    regions: RegionCompiler | None = None
    hooks = ""
    while True:
        try:
            kind, payload = receive(source)
        except EOFError:
            return
        answer: Any = None
        if kind == "handlers":
            answer = handler_units(units, cache, payload)
        elif kind == "image":
            renew_image(units, cache)
        elif kind == "region":
            wanted = payload.hooks.digest if payload.hooks else ""
            if regions is None or wanted != hooks:
                regions = RegionCompiler(architecture, units.layout, units.compiler, payload.hooks)
                hooks = wanted
            with contextlib.suppress(UncompilableError):
                answer = regions.compile(payload)
        try:
            send(sink, answer)
        except BrokenPipeError:
            return
