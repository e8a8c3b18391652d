"""Tiers of the engine against each other, on random programs with loops.

Short in the tests (``tests/engine/test_program_fuzz.py``); as long as one likes by command::

    python -m tests.support.program_fuzz --instructions 10_000_000 --seed 1 --processes 4 --tiers interpreter,restless

The reference executor is slow: ``--reference-share`` is the part of the programs in which it takes the second tier's
place; they are short ones. A program that two tiers disagree about is shrunk, and printed with both states.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64

from .fuzz_machine import TIERS, NativeTier, Tier, describe, differences, make_tier
from .fuzz_program import Program
from .program_maker import make_program

LONG, SHORT = 20_000, 400  # instructions of a program
_RUNAWAY = 30  # a program is given up after that many times the instructions it was made for


def _align(a: Tier, b: Tier) -> str:
    """Step the one that is behind until both have executed as much; what then differs."""
    for _ in range(100_000):
        while a.retired != b.retired:
            behind = a if a.retired < b.retired else b
            if behind.over:
                break
            behind.step()
        found = differences(a, b)
        if not found:
            return found
        # One may have taken a trap that the other one is about to take.
        mine, theirs, count = a.state, b.state, a.retired
        for one, state in ((a, theirs), (b, mine)):
            for _ in range(3):
                if one.over or one.retired != count:
                    break
                one.step()
                if one.retired == count and one.state == state:
                    break
            else:
                continue
            if one.retired == count and one.state == state:
                break
        else:
            return found
        if a.retired == b.retired:
            return differences(a, b)
    return "the tiers do not come to the same place"


Stop = Callable[[random.Random, Tier, Tier], None]


def compare(program: Program, a: Tier, b: Tier, budget: int, stop: Stop | None = None) -> str:
    """Run a program in both; what differs, empty if nothing does. ``stop`` is called now and then, where both stand."""
    given = program.load()
    a.load(given)
    b.load(given)
    rng = random.Random(program.seed)
    goal = 0
    most = budget * _RUNAWAY
    while not (a.over and b.over) and (goal < most or (goal < 2 * most and (a.over or b.over))):
        goal += rng.choice((3, 50, 500, 500, 5000))
        stopped = [tier.run(goal) for tier in (a, b)]
        if any(stopped):
            # Endless traps, in both alike: not what this is about.
            return "" if all(stopped) else f"{a.name} and {b.name} stop: {stopped}"
        if not program.loosely and (found := _align(a, b)):
            return f"after {a.retired} instructions:\n{found}"
        if stop is not None:
            stop(rng, a, b)
    if program.loosely and not (a.over or b.over):
        return ""  # Given up, in the midst of whatever each was doing.
    return differences(a, b, program.loosely)


def compare_turns(program: Program, a: NativeTier, b: NativeTier, budget: int) -> str:
    """Run a program in turns, without interruption in ``a`` and with in ``b``; both must end each at the same place.

    That is so with interrupts, too. The tiers are native.
    """
    given = program.load()
    a.load(given)
    b.load(given)
    rng, disturbing = random.Random(program.seed), random.Random(program.seed + 1)
    while not (a.over or b.over) and a.retired < budget * _RUNAWAY:
        length = rng.choice((1, 3, 50, 500, 500, 5000))
        before = a.retired
        stopped = a.turn(length), b.turn(length, disturbing)
        if any(stopped):
            # Endless traps, in both alike: not what this is about.
            return "" if all(stopped) else f"{a.name} and {b.name} stop: {stopped}"
        if found := differences(a, b):
            return f"a turn of {length} after {before} instructions:\n{found}"
    return differences(a, b)


# Shrinking


def shrink(program: Program, fails: Callable[[Program], bool], seconds: float = 60.0) -> Program:
    """A smaller program that still fails."""
    deadline = time.monotonic() + seconds

    def attempt(candidate: Program) -> bool:
        nonlocal program
        if time.monotonic() > deadline or not fails(candidate):
            return False
        program = candidate
        return True

    while True:
        before = program
        size = len(list(program.nodes()))
        while size:
            at = 0
            while at < len(ids := [n.id for n in program.nodes() if n.id not in program.opened]):
                if not attempt(replace(program, dropped=program.dropped | set(ids[at : at + size]))):
                    at += size
            size //= 2
        for node in list(program.nodes()):
            # A change of the mode inside another one says where it comes from.
            inside = [n.kind for n in node.walk()]
            if node.id in program.opened:
                continue
            if node.kind in ("loop", "if") or inside.count("mode") == 1 == inside[:1].count("mode"):
                attempt(replace(program, opened=program.opened | {node.id}))
        for node in list(program.nodes()):
            if node.kind == "loop":
                now = program.counts.get(node.id, node.values[1])
                for count in (1, 2, 3, now // 2):
                    if 0 < count < now and attempt(replace(program, counts={**program.counts, node.id: count})):
                        break
        if program is before or time.monotonic() > deadline:
            break
    for name, count in (("x", 32), ("f", 32)):
        for n in range(count):
            state: Any = rv64.state_type(bytearray(program.state))  # type: ignore[misc]
            if getattr(state, name)[n] and not (name == "x" and n in (2, 23)):
                getattr(state, name)[n] = 0
                attempt(replace(program, state=bytes(state.block)))
    return program


def check(seed: int, a: Tier, b: Tier, budget: int, seconds: float = 60.0) -> str:
    """Run the program of a seed; a report of the mismatch, with the program shrunk, or nothing."""
    program = make_program(seed, budget)
    found = compare(program, a, b, budget)
    if not found:
        return ""
    small = shrink(program, lambda p: bool(compare(p, a, b, budget)), seconds)
    again = compare(small, a, b, budget) or f"(not again) {found}"
    title = f"seed {seed}, about {budget} instructions, {a.name} and {b.name}:"
    return "\n".join([title, small.text(), describe(a), describe(b), again])


# Campaigns

_JOB = 16  # programs at a time


@dataclass
class Result:
    """What came of some programs."""

    programs: int = 0
    instructions: int = 0
    by_reference: int = 0  # of the instructions
    problems: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        self.programs += other.programs
        self.instructions += other.instructions
        self.by_reference += other.by_reference
        self.problems += other.problems


@cache
def _tier(name: str, number: int) -> Tier:
    native_code(rv64).warm()
    return make_tier(name)


def _job(given: tuple[int, tuple[str, str], float]) -> Result:
    first, names, share = given
    result = Result()
    for seed in range(first, first + _JOB):
        by_reference = "reference" in names or random.Random(seed).random() < share
        second = "reference" if by_reference and "reference" not in names else names[1]
        a, b = _tier(names[0], 0), _tier(second, 1)
        problem = check(seed, a, b, SHORT if by_reference else LONG)
        result.programs += 1
        result.instructions += a.retired
        result.by_reference += a.retired if by_reference else 0
        if problem:
            result.problems.append(problem)
            break
    return result


def campaign(
    instructions: int, seed: int, names: tuple[str, str], share: float, results: Callable[..., Iterable[Result]],
    report: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Programs until that many instructions were executed, or five were found that differ; ``results`` maps `_job`."""
    total = Result()
    jobs = ((seed * 10_000_000 + n * _JOB, names, share) for n in range(100_000))
    for result in results(_job, jobs):
        total.add(result)
        report(total)
        if total.instructions >= instructions or len(total.problems) >= 5:
            break
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare tiers of the engine on random programs.")
    parser.add_argument("--instructions", type=int, default=10_000_000, help="about how many, in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tiers", default="interpreter,restless", help=f"two of {', '.join(TIERS)}")
    parser.add_argument("--reference-share", type=float, default=0.05)
    parser.add_argument("--program", type=int, help="run the program of this seed only, as reported")
    parser.add_argument("--budget", type=int, default=LONG, help="for --program: its number of instructions")
    given = parser.parse_args()
    names = tuple(given.tiers.split(","))
    if len(names) != 2 or not set(names) <= set(TIERS):
        parser.error(f"--tiers takes two of {', '.join(TIERS)}, with a comma between")
    if given.program is not None:
        problem = check(given.program, _tier(names[0], 0), _tier(names[1], 1), given.budget)
        print(problem or "no difference")
        return 1 if problem else 0
    started = time.monotonic()

    def report(total: Result) -> None:
        if sys.stderr.isatty():
            seconds = time.monotonic() - started
            print(
                f"\r{total.instructions:,} instructions, {total.instructions / seconds:,.0f} a second, "
                f"{len(total.problems)} mismatches ", end="", file=sys.stderr, flush=True,
            )

    # Made once, not by all processes at a time.
    code = native_code(rv64)
    for index in range(len(rv64.instructions) + 1):
        code.handler(index)
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        results = _bounded(pool, given.processes)
        total = campaign(given.instructions, given.seed, names, given.reference_share, results, report)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for problem in total.problems:
        print(f"{'-' * 70}\n{problem}")
    print(
        f"{total.instructions:,} instructions in {total.programs:,} programs, "
        f"{total.by_reference:,} of them with the reference, {time.monotonic() - started:.0f} s, "
        f"{len(total.problems)} mismatches"
    )
    return 1 if total.problems else 0


def _bounded(pool: Any, processes: int) -> Callable[..., Iterable[Result]]:
    """A map over a pool that looks only a little ahead."""

    def results(function: Callable[..., Result], jobs: Iterable[Any]) -> Iterable[Result]:
        waiting: list[Any] = []
        for job in jobs:
            waiting.append(pool.apply_async(function, (job,)))
            if len(waiting) >= 2 * processes:
                yield waiting.pop(0).get()

    return results


if __name__ == "__main__":
    sys.exit(main())
