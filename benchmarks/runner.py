"""Run the programs on every machine, in rounds, so that what else the host does touches all of them alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from . import boot
from .build import build, host_target
from .catalogue import Program
from .console import Guest, Outcome, run_natively
from .errors import SuiteError

POLYVISOR, NATIVE = "polyvisor", "native"


@dataclass(frozen=True)
class Plan:
    """What to run. ``commands`` maps each emulator to a function from a number of harts to its command;
    ``boots`` likewise, for the group boot; ``warm_ups`` are rounds before those that count."""

    programs: Sequence[Program]
    commands: Mapping[str, Callable[[int], list[str]]]
    boots: Mapping[str, Callable[[int], list[str]]]
    native: bool
    runs: int
    cpus: int
    scale: float
    timeout: float
    warm_ups: int = 0


@dataclass
class Results:
    """Outcomes by program and machine, one for each round (None: failed), and what went wrong."""

    outcomes: dict[str, dict[str, list[Outcome | None]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, program: str, machine: str, outcome: Outcome | None) -> None:
        """Note one run."""
        self.outcomes.setdefault(program, {}).setdefault(machine, []).append(outcome)

    def fail(self, program: str, machine: str, why: object) -> None:
        """Note a run that failed."""
        self.add(program, machine, None)
        self.failures.append(f"{program} on {machine}: {why}")


def run(plan: Plan, progress: Callable[[str], None]) -> Results:
    """All rounds. Failures of single runs are collected, not raised."""
    results = Results()
    names = [program.binary for program in plan.programs if program.compiled]
    natives = build(names, host_target(), progress) if plan.native else {}
    usual = [program for program in plan.programs if program.group not in ("harts", "boot")]
    wide = [program for program in plan.programs if program.group == "harts"]
    boots = [program for program in plan.programs if program.group == "boot"]
    parts = [(programs, cpus) for programs, cpus in ((usual, plan.cpus), (wide, max(2, plan.cpus))) if programs]
    # What is warmed up is polyvisor's cache of compiled code; the others keep nothing from one run to the next.
    ours = {name: command for name, command in plan.commands.items() if name == POLYVISOR}
    for number in range(plan.warm_ups if ours else 0):
        tell = partial(_tell, progress, f"warming up, round {number + 1} of {plan.warm_ups}")
        if boots:
            tell("boot")
            with contextlib.suppress(boot.BootError):  # if it fails again, it is reported
                boot.boot_once(plan.boots[POLYVISOR](plan.cpus), plan.timeout)
        for programs, cpus in parts:
            _round(replace(plan, commands=ours), programs, cpus, {}, 0, Results(), tell)
    for number in range(plan.runs):
        tell = partial(_tell, progress, f"round {number + 1} of {plan.runs}")
        for program in boots:
            _boot_round(plan, program, number, results, tell)
        for programs, cpus in parts:
            _round(plan, programs, cpus, natives, number, results, tell)
    check(results)
    return results


def _tell(progress: Callable[[str], None], prefix: str, text: str) -> None:
    progress(f"{prefix}: {text}")


def _turns(machines: Sequence[str], number: int) -> list[str]:
    """The machines in this round's order: each is first in its turn."""
    start = number % len(machines)
    return [*machines[start:], *machines[:start]]


def _boot_round(
    plan: Plan, program: Program, number: int, results: Results, progress: Callable[[str], None]
) -> None:
    for machine in _turns(list(plan.boots), number):
        progress(f"{program.name} on {machine}")
        try:
            seconds = boot.boot_once(
                plan.boots[machine](plan.cpus), plan.timeout, cold=program.name == "boot_cold" and machine != "qemu"
            )
        except boot.BootError as error:
            results.fail(program.name, machine, error)
        else:
            results.add(program.name, machine, Outcome("booted", seconds))


def _round(
    plan: Plan,
    programs: Sequence[Program],
    cpus: int,
    natives: Mapping[str, Path],
    number: int,
    results: Results,
    progress: Callable[[str], None],
) -> None:
    guests: dict[str, Guest] = {}
    broken: dict[str, SuiteError] = {}
    with contextlib.ExitStack() as stack:
        for program in programs:
            command = program.command(plan.scale)
            machines = [*plan.commands, *([NATIVE] if program.binary in natives else [])]
            for machine in _turns(machines, number):
                progress(f"{program.name} on {machine}")
                if machine in broken:
                    results.fail(program.name, machine, broken[machine])
                    continue
                try:
                    if machine == NATIVE:
                        outcome = run_natively([str(natives[program.binary]), *command[1:]], plan.timeout)
                    else:
                        if machine not in guests:
                            try:
                                guests[machine] = Guest(plan.commands[machine](cpus), plan.timeout)
                            except SuiteError as error:
                                broken[machine] = error
                                raise
                            stack.callback(guests[machine].close)
                        outcome = guests[machine].run(command, plan.timeout)
                except SuiteError as error:
                    why = str(error)
                    if guest := guests.pop(machine, None):  # the next program gets a new one
                        guest.close(kill=True)
                        why += f"; its console:\n{guest.console()}"
                    results.fail(program.name, machine, why)
                else:
                    results.add(program.name, machine, outcome)


def check(results: Results) -> None:
    """Every machine must compute the same in every round; where they do not, that is a failure."""
    for program, machines in results.outcomes.items():
        found: dict[str, list[str]] = {}
        for machine, outcomes in machines.items():
            for outcome in outcomes:
                if outcome is not None and machine not in found.setdefault(outcome.result, []):
                    found[outcome.result].append(machine)
        if len(found) > 1:
            told = "; ".join(f"{result} on {', '.join(names)}" for result, names in found.items())
            results.failures.append(f"{program}: the results differ: {told}")
