"""Where a machine's time went: instructions per tier, regions, exits from native code, TLB misses, caches."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from polyvisor.engine.cpu import Cpu

from .machine import Machine


@dataclass(frozen=True)
class Stats:
    """A machine's profile. Counts are of all harts; ``seconds`` is wall time since ``started``.

    ``exits`` counts returns from native code to the platform by cause; ``samples`` are looks at where execution is.
    """

    seconds: float
    harts: int
    instructions: int
    region_instructions: int
    region_entries: int
    region_jumps: int
    tlb_misses: int
    samples: int
    exits: dict[str, int] = field(default_factory=dict)
    regions: dict[str, int] = field(default_factory=dict)
    handlers_compiled: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    worker_deaths: int = 0

    @property
    def interpreted(self) -> int:
        """Instructions that were not executed in compiled regions."""
        return self.instructions - self.region_instructions

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "interpreter_instructions": self.interpreted}

    def text(self) -> str:
        """For people."""
        share = 100 * self.region_instructions / max(1, self.instructions)
        rate = self.instructions / max(1e-9, self.seconds) / 1e6
        rows = [
            ("wall time", f"{self.seconds:.2f} s, {self.harts} hart{'s' if self.harts != 1 else ''}"),
            ("instructions", f"{self.instructions:,} ({rate:,.0f} million a second)"),
            ("  in regions", f"{self.region_instructions:,} ({share:.1f} %)"),
            ("  interpreted", f"{self.interpreted:,}"),
            ("region entries", f"{self.region_entries:,}; left by a jump {self.region_jumps:,} times"),
            ("regions", ", ".join(f"{n:,} {name}" for name, n in self.regions.items()) or "none"),
            ("exits", ", ".join(f"{name} {n:,}" for name, n in sorted(self.exits.items())) or "none"),
            ("TLB misses", f"{self.tlb_misses:,}"),
            ("compiled units", f"{self.cache_hits:,} from the cache, {self.cache_misses:,} looked for in vain, "
                               f"{self.handlers_compiled:,} compiled"),
        ]
        if self.worker_deaths:
            rows.append(("workers", f"{self.worker_deaths} died"))
        return "\n".join(f"{name:15} {value}" for name, value in rows)


def collect(machine: Machine, started: float) -> Stats:
    """The profile of a machine whose harts stand still; ``started`` is a time of ``time.monotonic()``.

    The reference tier counts instructions only.
    """
    board = machine.board
    cpus = [hart.cpu for hart in board.harts]
    native = [cpu for cpu in cpus if isinstance(cpu, Cpu)]
    exits: Counter[str] = Counter()
    for cpu in native:
        exits.update(cpu.exits)

    def total(name: str) -> int:
        return sum(int(getattr(cpu.engine, name)) for cpu in native)

    regions = {}
    if board.regions is not None:
        stats = board.regions.stats
        regions = {
            "compiled": stats.compiled, "from the cache": stats.cached, "installed": stats.installed,
            "dropped as their code was written to": total("region_drops"), "that did not fit": stats.stale,
            "that could not be compiled": stats.failed,
        }
    code = board.code
    return Stats(
        seconds=time.monotonic() - started,
        harts=len(cpus),
        instructions=sum(cpu.retired for cpu in cpus),
        region_instructions=total("region_instructions"),
        region_entries=total("region_entries"),
        region_jumps=total("jump_count"),
        tlb_misses=total("translations"),
        samples=total("sample_count"),
        exits=dict(exits),
        regions=regions,
        handlers_compiled=code.compiled if code else 0,
        cache_hits=code.cache.hits if code else 0,
        cache_misses=code.cache.misses if code else 0,
        worker_deaths=code.workers.deaths if code else 0,
    )
