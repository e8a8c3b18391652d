"""The programs of the suite: what they are called, how they are started and how much work they get.

The scales are such that a run takes QEMU some two to five seconds on a machine of 2020.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SuiteError

GROUPS = ("integer", "float", "system", "harts", "real", "boot")


@dataclass(frozen=True)
class Program:
    """One line of the table. ``source`` is a file in programs/; ``arguments`` precede the scale on its command line."""

    name: str
    group: str
    source: str
    scale: int
    about: str
    arguments: tuple[str, ...] = ()

    @property
    def binary(self) -> str:
        """What the built file is called."""
        return self.source.partition(".")[0]

    @property
    def compiled(self) -> bool:
        """Whether it is C, and so runs on the host too."""
        return self.source.endswith(".c")

    def command(self, factor: float = 1.0) -> tuple[str, ...]:
        """Name and arguments, with ``factor`` times the usual work."""
        return (self.binary, *self.arguments, str(max(1, round(self.scale * factor))))


PROGRAMS = (
    Program("sieve", "integer", "sieve.c", 250, "sieve of Eratosthenes over half a megabyte"),
    Program("sort", "integer", "sort.c", 200, "quicksort of integers, merge sort of strings"),
    Program("hash", "integer", "hash.c", 250, "hash table with string keys, SHA-256"),
    Program("lz", "integer", "lz.c", 70, "LZ77 compression and decompression"),
    Program("bignum", "integer", "bignum.c", 400, "digits of pi, a factorial, long multiplication"),
    Program("interp", "integer", "interp.c", 30, "a bytecode interpreter with a switch"),
    Program("calls", "integer", "calls.c", 2000, "calls between pages, some through pointers"),
    Program("chase", "integer", "chase.c", 1500, "pointers through 1 MiB", ("1",)),
    Program("chase_far", "integer", "chase.c", 150, "pointers through 64 MiB, beyond TLBs and caches", ("64",)),
    Program("nbody", "float", "nbody.c", 40, "bodies that attract each other"),
    Program("spectral", "float", "spectral.c", 200, "spectral norm of a matrix"),
    Program("matmul", "float", "matmul.c", 30, "matrix product"),
    Program("mandelbrot", "float", "mandelbrot.c", 50, "Mandelbrot set"),
    Program("fft", "float", "fft.c", 450, "fast Fourier transform"),
    Program("filter", "float", "filter.c", 200, "digital filters, single precision"),
    Program("syscall", "system", "syscall.c", 300, "getppid"),
    Program("pipe", "system", "pipe.c", 60, "two processes, two pipes"),
    Program("forkexec", "system", "forkexec.c", 300, "fork, exec, wait"),
    Program("pagefault", "system", "pagefault.c", 6, "first writes to fresh pages"),
    Program("mmap", "system", "mmap.c", 30, "mmap, mprotect, munmap"),
    Program("fileread", "system", "fileread.c", 100, "read a cached file"),
    Program("harts1", "harts", "harts.c", 30000, "one busy process on one hart", ("1",)),
    Program("harts2", "harts", "harts.c", 30000, "two busy processes on two harts", ("2",)),
    Program("python", "real", "python.sh", 60, "CPython of Debian: dictionaries, strings, objects, long integers"),
    Program("xz", "real", "xz.sh", 12, "xz of Debian compresses and decompresses text"),
    Program("gzip", "real", "gzip.sh", 120, "gzip of Debian's busybox compresses text"),
    Program("sqlite", "real", "sqlite.sh", 40, "sqlite3 of Debian: inserts, an index, a join, groups"),
    Program("boot_warm", "boot", "", 1, "start to first line of user space, compiled code cached"),
    Program("boot_cold", "boot", "", 1, "start to first line of user space, empty cache of compiled code"),
)


def select(groups: Sequence[str] = (), only: Sequence[str] = ()) -> list[Program]:
    """The programs of ``groups`` (none: all) whose names match one of the patterns ``only`` (none: all)."""
    if unknown := [group for group in groups if group not in GROUPS]:
        raise SuiteError(f"unknown group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    for pattern in only:
        if not any(fnmatch.fnmatch(program.name, pattern) for program in PROGRAMS):
            raise SuiteError(f"no program is called {pattern!r}; --list shows them")
    return [
        program
        for program in PROGRAMS
        if (not groups or program.group in groups)
        and (not only or any(fnmatch.fnmatch(program.name, pattern) for pattern in only))
    ]
