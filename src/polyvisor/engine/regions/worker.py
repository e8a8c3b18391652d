"""A compile worker: reads requests from its standard input, writes regions to its standard output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module

from polyvisor.adl.frontend import Compiler

from ..layout import Layout
from .backend import receive, send
from .compile import RegionCompiler, UncompilableError

_NICE = 10


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    module, _, name = sys.argv[1].partition(":")
    architecture = getattr(import_module(module), name)
    layout = Layout(architecture)
    compiler = RegionCompiler(architecture, layout, Compiler(architecture, layout.members))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    # What a library prints must not get among the answers.
    os.dup2(2, 1) if sink.fileno() != 1 else None
    while True:
        try:
            request = receive(source)
        except EOFError:
            return
        try:
            answer = compiler.compile(request)
        except UncompilableError:
            answer = None
        send(sink, answer)
