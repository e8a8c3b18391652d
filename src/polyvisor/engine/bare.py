"""A described CPU, memory, and nothing else: for descriptions under work, tests, and boards with one CPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyvisor.adl import Architecture

from .codepages import CodePages
from .cpu import Cpu, Exit
from .executor import Executor, ReferenceExecutor
from .memory import Memory
from .native import NativeCode, native_code

if TYPE_CHECKING:
    from .regions.manager import Regions
    from .regions.region import Missing, Region, Request

TIERS = ("jit", "interpreter", "reference")


class BareMachine:
    """One CPU of an architecture, in one of the engine's tiers, and ``memory`` bytes of RAM from address 0.

    ``memory`` may also be a :class:`~polyvisor.engine.memory.Memory`. Time is counted in what the CPU executes.
    ``regions`` are the compiled regions, in the tier that has them. Raises ValueError for a tier that is none.
    """

    def __init__(
        self, architecture: Architecture, memory: int | Memory = 1 << 16, *, tier: str = "jit", pages: int = 256,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if tier not in TIERS:
            raise ValueError(f"there is no tier {tier!r}; there are {', '.join(TIERS)}")
        if isinstance(memory, int):
            size = -(-memory // 4096) * 4096
            memory = Memory()
            memory.add_ram(0, size, "ram")
        self.architecture = architecture
        self.memory = memory
        self.cpu: Executor
        self.regions: Regions | None = None
        self._pages: CodePages | None = None
        if tier == "reference":
            self.cpu = ReferenceExecutor(architecture, memory, virtual=True)
            return
        code = native_code(architecture, progress)
        code.warm()
        self._pages = CodePages(code, memory, limit=pages)
        self.cpu = Cpu(code, memory, self._pages, virtual=True)
        if tier == "jit":
            self._compile_regions(code, self._pages, self.cpu)

    def _compile_regions(self, code: NativeCode, pages: CodePages, cpu: Cpu) -> None:
        from .regions.backend import WorkerBackend
        from .regions.manager import Regions

        backend = WorkerBackend(code.workers) if code.workers.name else _ThisProcess(code)
        self.regions = Regions(code, pages, backend)
        self.regions.watch(cpu)
        self.regions.start()
        code.workers.ready()

    @property
    def state(self) -> Any:
        """The CPU's state, by its declared names."""
        return self.cpu.state

    def load(self, program: bytes, at: int = 0) -> None:
        """Put a program into memory, and let the CPU begin there."""
        self.memory.write(at, program)
        self.state.pc = at

    def run(self, most: int | None = None) -> Exit:
        """Run, for so many instructions (or clock cycles) and to the next jump at most; gives why it ended."""
        return self.cpu.run(most)

    def step(self) -> Exit:
        """Execute one instruction."""
        return self.cpu.step()

    def close(self) -> None:
        """Give back what it holds of the host."""
        if self.regions is not None:
            self.regions.close()
        if self._pages is not None:
            self._pages.close()
        self.memory.close()

    def __enter__(self) -> BareMachine:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


class _ThisProcess:
    """Compiles regions of an architecture that workers cannot import, in a thread: one at a time."""

    def __init__(self, code: NativeCode) -> None:
        from .regions.compile import RegionCompiler

        self._compiler = RegionCompiler(code.architecture, code.layout, code.compiler)
        self._lock = threading.Lock()

    @property
    def pressure(self) -> int:
        """Whether one is being compiled."""
        from .regions.backend import NONE, SOME

        return SOME if self._lock.locked() else NONE

    def room(self, quick: bool) -> int:
        """One, if none is being compiled."""
        return 0 if self._lock.locked() else 1

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; ``done`` is called from the thread."""

        def compile_it() -> None:
            from .regions.compile import UncompilableError

            result: Region | Missing | None = None
            with self._lock, contextlib.suppress(UncompilableError):
                result = self._compiler.compile(request)
            done(result)

        threading.Thread(target=compile_it, name="compile", daemon=True).start()
