"""Medians, spreads, ratios, geometric means: from outcomes to a table and to JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .catalogue import GROUPS, Program
from .console import Outcome

OURS, PEER, NATIVE = "polyvisor", "qemu", "native"
Outcomes = Mapping[str, Mapping[str, Sequence[Outcome | None]]]


@dataclass(frozen=True)
class Spread:
    """The median, the least and the greatest of some numbers."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there are no values."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known)) if known else None

    def json(self) -> dict[str, float]:
        """For a JSON file."""
        return {"median": self.median, "min": self.least, "max": self.greatest}


@dataclass(frozen=True)
class Row:
    """One program: seconds on each machine by the host's clock; QEMU's time through ours, round by round; the share
    of the host's own speed that we, and that QEMU, reach."""

    program: Program
    seconds: Mapping[str, Spread]
    ratio: Spread | None
    share: Spread | None
    peer_share: Spread | None


def quotients(over: Sequence[Outcome | None], under: Sequence[Outcome | None], factor: float = 1.0) -> Spread | None:
    """The quotients of the times of each round in which both ran."""
    rounds = zip(over, under, strict=False)
    return Spread.of(factor * a.wall / b.wall for a, b in rounds if a is not None and b is not None and b.wall)


def rows(programs: Iterable[Program], outcomes: Outcomes) -> list[Row]:
    """The lines of the table, in the order of ``programs``; those that did not run are left out."""
    table = []
    for program in programs:
        machines = outcomes.get(program.name, {})
        seconds = {
            machine: spread
            for machine, runs in machines.items()
            if (spread := Spread.of(run.wall for run in runs if run is not None)) is not None
        }
        ours, peer, native = (machines.get(machine, ()) for machine in (OURS, PEER, NATIVE))
        if machines:
            table.append(
                Row(program, seconds, quotients(peer, ours), quotients(native, ours), quotients(native, peer))
            )
    return table


def geometric_mean(values: Iterable[float]) -> float | None:
    """None where there are no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None


def means(table: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """The geometric means of the medians of each group but harts and boot, and of all those together."""
    averaged = [group for group in GROUPS if group not in ("harts", "boot")]
    groups = {group: [row for row in table if row.program.group == group] for group in averaged}
    groups["all"] = [row for members in groups.values() for row in members]
    return {
        group: {
            "ratio": geometric_mean(row.ratio.median for row in members if row.ratio),
            "share": geometric_mean(row.share.median for row in members if row.share),
            "peer_share": geometric_mean(row.peer_share.median for row in members if row.peer_share),
        }
        for group, members in groups.items()
        if any(row.seconds for row in members)
    }


def hart_throughput(outcomes: Outcomes) -> dict[str, Spread]:
    """How much more work two harts do than one in the same time, by machine: 2 is perfect."""
    one, two = outcomes.get("harts1", {}), outcomes.get("harts2", {})
    found = {machine: quotients(one[machine], two[machine], 2.0) for machine in one if machine in two}
    return {machine: spread for machine, spread in found.items() if spread is not None}


def _seconds(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    digits = 2 if spread.median >= 1 else 3
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f}..{spread.greatest:.{digits}f})"


def _ratio(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.2f} ({spread.least:.2f}..{spread.greatest:.2f})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def text(table: Sequence[Row], outcomes: Outcomes) -> str:
    """The table for people."""
    head = ("program", "polyvisor s", "QEMU s", "native s", "QEMU / polyvisor", "of native", "QEMU of native")
    cells: list[Sequence[str]] = [head]
    group = ""
    for row in table:
        if row.program.group != group:
            group = row.program.group
            cells.append((f"[{group}]",))
        cells.append(
            (
                row.program.name,
                *(_seconds(row.seconds.get(machine)) for machine in (OURS, PEER, NATIVE)),
                _ratio(row.ratio),
                *(_share(spread.median if spread else None) for spread in (row.share, row.peer_share)),
            )
        )
    averages = means(table)
    cells.append(("[geometric means]",))
    for name, mean in averages.items():
        ratio = "-" if mean["ratio"] is None else f"{mean['ratio']:.2f}"
        cells.append((name, "", "", "", ratio, _share(mean["share"]), _share(mean["peer_share"])))
    widths = [max(len(line[i]) for line in cells if len(line) > 1) for i in range(len(head))]
    lines = []
    for line in cells:
        if len(line) == 1:
            lines.append(line[0])
        else:
            first, *others = line
            padded = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join((first.ljust(widths[0]), *padded)).rstrip())
    if throughput := hart_throughput(outcomes):
        told = ", ".join(f"{machine} {_ratio(spread)}" for machine, spread in throughput.items())
        lines.append(f"throughput of two harts against one: {told}")
    return "\n".join(lines)


def as_json(
    table: Sequence[Row], outcomes: Outcomes, about: Mapping[str, object], failures: Sequence[str]
) -> dict[str, Any]:
    """Everything that was measured, for a JSON file."""
    return {
        **about,
        "programs": {
            row.program.name: {
                "group": row.program.group,
                "seconds": {machine: spread.json() for machine, spread in row.seconds.items()},
                "ratio": row.ratio and row.ratio.json(),
                "share_of_native": row.share and row.share.json(),
                "qemu_share_of_native": row.peer_share and row.peer_share.json(),
                "runs": {
                    machine: [
                        run and {"result": run.result, "seconds": run.wall, "guest_seconds": run.guest} for run in runs
                    ]
                    for machine, runs in outcomes[row.program.name].items()
                },
            }
            for row in table
        },
        "geometric_means": means(table),
        "hart_throughput": {machine: spread.json() for machine, spread in hart_throughput(outcomes).items()},
        "failures": list(failures),
    }
