"""Several machines and the networks between them, described in a TOML file.

    [network.lan]
    loss = 0.01
    delay = 0.02

    [machine.server]
    image = "debian"
    networks = [{ to = "lan", address = "10.0.0.1/24" }]
    setup = ["httpd -p 80 -h /etc"]

    [machine.client]
    image = "debian"
    networks = [{ to = "lan", address = "10.0.0.2/24" }]
    run = "wget -O - http://10.0.0.1/hosts"

All machines boot at once. When all are ready, each one's ``setup`` is run to its end; then all ``run`` commands at
once. With ``virtual_time = true`` they are a :class:`~polyvisor.vm.group.group.Group`.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polyvisor.guest.client import Result
from polyvisor.guest.process import Reader
from polyvisor.network.capture import Capture
from polyvisor.network.conditions import Conditions
from polyvisor.network.switch import Switch
from polyvisor.network.user import UserNetwork

from .equipment import Nic
from .errors import CommandError, VMError, VMTimeoutError
from .group.group import Group
from .virtual_machine import VM

# The keys of each table, and of what types their values are.
_Kinds = Mapping[str, tuple[type, ...]]
_STRING, _NUMBER = (str,), (int, float)
_CONDITIONS: _Kinds = dict.fromkeys(
    ("loss", "duplicate", "reorder", "corrupt", "delay", "jitter", "bandwidth"), _NUMBER
)
_NETWORK: _Kinds = {
    **_CONDITIONS, "seed": (int,), "hub": (bool,), "capture": _STRING, "outside": _STRING, "partitions": (list,),
}
_PARTITION: _Kinds = {"at": _NUMBER, "until": _NUMBER, "machines": (list,)}
_FILE: _Kinds = {
    "machine": (object,), "network": (object,), "virtual_time": (bool,), "seed": (int,), "schedule": (int,),
}
_MACHINE: _Kinds = {
    **dict.fromkeys(("image", "kernel", "initrd", "append", "firmware", "program", "tier", "run"), _STRING),
    **dict.fromkeys(("disks", "shares", "setup"), (str, list)),
    "memory": (str, int), "cpus": (int,), "networks": (list,), "display": (bool, list), "virtual_time": (bool,),
    "timeout": _NUMBER,
}  # fmt: skip
_NIC: _Kinds = dict.fromkeys(("to", "mac", "address"), _STRING)
_TYPES = {str: "a string", bool: "true or false", float: "a number", int: "a whole number", list: "a list"}


@dataclass(frozen=True)
class Partition:
    """From ``at`` to ``until``, in seconds of virtual time, ``machines`` only see each other."""

    at: float
    until: float
    machines: frozenset[str]


@dataclass
class NetworkPlan:
    """A switch: what happens to frames on their way to it from each machine, and what else is plugged in."""

    conditions: Conditions | None
    seed: int | None = None
    """None: 0, or in virtual time that of the lab."""
    hub: bool = False
    capture: Path | None = None
    outside: bool = False
    partitions: list[Partition] = field(default_factory=list)


@dataclass
class MachinePlan:
    """A machine: arguments of :class:`VM`, its cards, and what it is to do."""

    options: dict[str, Any]
    cards: list[dict[str, str]]
    setup: list[str] = field(default_factory=list)
    run: str | None = None
    timeout: float | None = None


class SetupError(CommandError):
    """A command of a machine's ``setup`` failed; ``machine`` is the machine's name."""

    def __init__(self, machine: str, result: Result) -> None:
        super().__init__(result)
        self.machine = machine

    def __str__(self) -> str:
        return f"{self.machine}: {super().__str__()}"


class Lab:
    """The machines of a file. As a context manager it boots them all; leaving stops them."""

    def __init__(self, machines: Mapping[str, MachinePlan], networks: Mapping[str, NetworkPlan]) -> None:
        self.plans = dict(machines)
        self.network_plans = dict(networks)
        self.virtual_time = False
        """Whether the machines have one virtual time; set before the start, as the next three, which need that."""
        self.seed: int | None = None
        self.schedule: int | None = None
        self.record: str | Path | None = None
        """The file to record all machines to."""
        self.group: Group | None = None
        """What the machines are in virtual time, once it has started."""
        self.networks: dict[str, Switch] = {}
        """The switches by name, once it has started."""
        self.machines: dict[str, VM] = {}
        """The machines by name, once it has started."""
        self.on_output: Callable[[str, bytes], None] | None = None
        """Called with a machine's name and what its console printed."""
        self.on_machine: Callable[[VM], None] | None = None
        """Called with each machine before it starts."""
        self._captures: list[Capture] = []

    @classmethod
    def load(cls, path: str | Path) -> Lab:
        """Read a file. Raises ValueError with a line for the user, and OSError."""
        try:
            with Path(path).open("rb") as file:
                return _lab(tomllib.load(file), Path(path).parent)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def start(self) -> None:
        """Make the networks and let all machines run. Raises what VMs raise, ImageError too."""
        if self.virtual_time or self.record is not None:
            self.group = Group(seed=self.seed, schedule=self.schedule, record=self.record)
        elif self.seed is not None or self.schedule is not None:
            raise ValueError("a seed and a schedule go with virtual_time = true")
        for name, plan in self.network_plans.items():
            self.networks[name] = self._network(name, plan)
        for name, machine in self.plans.items():
            cards = [self._card(name, card) for card in machine.cards]
            output = None if self.on_output is None else partial(self.on_output, name)
            self.machines[name] = VM(
                **machine.options, name=name, networks=cards, on_output=output, group=self.group
            )
        for vm in self.machines.values():
            if self.on_machine is not None:
                self.on_machine(vm)
            if self.group is None:
                vm.start()
        if self.group is not None:
            self.group.start()

    def _network(self, name: str, plan: NetworkPlan) -> Switch:
        group = self.group
        if group is None:
            if plan.partitions:
                raise ValueError(f"network.{name}.partitions: they need virtual_time = true")
            switch = Switch(seed=plan.seed or 0, hub=plan.hub)
        else:
            switch = group.switch(seed=plan.seed, hub=plan.hub)
            for each in plan.partitions:
                for moment in (each.at, each.until):
                    group.at(moment, partial(_divide, switch, plan.partitions, moment))
        if plan.capture is not None:
            clock = {} if group is None else {"clock": lambda: group.wall_clock}
            capture = Capture(plan.capture, **clock)
            capture.attach(switch, name)
            self._captures.append(capture)
        if plan.outside:
            switch.attach(UserNetwork(), "outside")
        return switch

    def _card(self, machine: str, card: dict[str, str]) -> Nic:
        to = card["to"]
        options: dict[str, Any] = {"mac": card["mac"]} if "mac" in card else {}
        if to not in self.networks:
            nic = Nic.parse(to)
            assert nic is not None
            return nic
        nic = Nic(self.networks[to], name=machine, address=card.get("address"), **options)
        nic.set_conditions(self.network_plans[to].conditions)
        return nic

    def boot(self, timeout: float | None = 120.0) -> None:
        """Wait until all agents answer, and do each machine's setup. Raises VMError, SetupError."""
        for vm in self.machines.values():
            vm.boot(timeout)
        for name, plan in self.plans.items():
            for command in plan.setup:
                result = self.machines[name].run(command)
                if not result.ok:
                    raise SetupError(name, result)

    def run(self, on_line: Callable[[str, str], object] = lambda name, line: None) -> dict[str, Result | Exception]:
        """Run all ``run`` commands at once, to their ends: what came of each, by the machine's name.

        ``on_line`` is called with the name and each line of output as it comes.
        """
        found: dict[str, Result | Exception] = {}

        def one(name: str, plan: MachinePlan) -> None:
            try:
                found[name] = _follow(self.machines[name], plan, lambda line: on_line(name, line))
            except (VMError, OSError) as error:
                found[name] = error

        threads = [threading.Thread(target=one, args=each) for each in self.plans.items() if each[1].run is not None]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def stop(self) -> None:
        """Stop all machines, take the networks down, and finish the recording. Raises RecordingError."""
        stopping = [threading.Thread(target=vm.stop) for vm in self.machines.values()]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        if self.group is not None:
            self.group.stop()
        for switch in self.networks.values():
            switch.close()
        for capture in self._captures:
            capture.close()

    def __enter__(self) -> Lab:
        try:
            self.start()
            self.boot()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()


def _divide(switch: Switch, partitions: list[Partition], now: float) -> None:
    """Let the partitions be what they are to be now."""
    apart = [each.machines for each in partitions if each.at <= now < each.until]
    switch.partition(*([port for port in switch.ports if port.name in names] for names in apart))


def _follow(vm: VM, plan: MachinePlan, on_line: Callable[[str], object]) -> Result:
    """Run a plan's command, telling each line."""
    assert plan.run is not None

    def read(reader: Reader, lines: list[str]) -> None:
        with contextlib.suppress(OSError):
            for line in reader:
                lines.append(line)
                on_line(line.rstrip("\n"))

    with vm.popen(plan.run) as process:
        process.close_stdin()
        kept: tuple[list[str], list[str]] = ([], [])
        readers = [
            threading.Thread(target=read, args=(process.stdout, kept[0])),
            threading.Thread(target=read, args=(process.stderr, kept[1])),
        ]
        for reader in readers:
            reader.start()
        try:
            process.wait_end(plan.timeout)
        except TimeoutError as error:
            process.kill()
            raise VMTimeoutError(f"{vm.name}: {error}") from error
        finally:
            for reader in readers:
                reader.join()
        return Result(process.args, process.wait(), "".join(kept[0]), "".join(kept[1]))


# Reading


def _table(what: str, found: Any, known: _Kinds) -> dict[str, Any]:
    """A table with no keys but those known, and values of their types."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} is not a table")
    for key, value in found.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"{what} has {key!r}: {hint}")
        kinds = known[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = [text for kind, text in _TYPES.items() if kind in kinds and not (kind is int and float in kinds)]
            raise ValueError(f"{what}.{key} is not {' or '.join(names)}")
    return found


def _strings(what: str, found: Any) -> list[str]:
    values = [found] if isinstance(found, str) else found
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what} is neither a string nor a list of strings")
    return values


def _lab(found: dict[str, Any], base: Path) -> Lab:
    _table("the file", found, _FILE)
    networks = {
        name: _network(f"network.{name}", table, base)
        for name, table in _named("network", found.get("network", {})).items()
    }
    machines = {
        name: _machine(f"machine.{name}", table, networks, base)
        for name, table in _named("machine", found.get("machine", {})).items()
    }
    if not machines:
        raise ValueError("there is no machine: describe one under [machine.NAME]")
    for name, network in networks.items():
        for each in network.partitions:
            if unknown := sorted(each.machines - machines.keys()):
                raise ValueError(f"network.{name}.partitions: there is no machine {unknown[0]!r}")
    lab = Lab(machines, networks)
    lab.virtual_time = found.get("virtual_time", False)
    lab.seed, lab.schedule = found.get("seed"), found.get("schedule")
    for key in ("seed", "schedule"):
        if found.get(key, 0) < 0:
            raise ValueError(f"{key} {found[key]}: must not be negative")
    return lab


def _named(what: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise ValueError(f"give each {what} a name, as in [{what}.NAME]")
    return found


def _network(what: str, table: Any, base: Path) -> NetworkPlan:
    table = _table(what, table, _NETWORK)
    numbers = {key: table[key] for key in _CONDITIONS if key in table}
    try:
        conditions = Conditions(**numbers) if numbers else None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if table.get("outside", "none") not in ("none", "user"):
        raise ValueError(f'{what}.outside is "user" or "none"')
    capture = base / table["capture"] if "capture" in table else None
    return NetworkPlan(
        conditions, table.get("seed"), table.get("hub", False), capture, table.get("outside") == "user",
        [_partition(f"{what}.partitions", each) for each in table.get("partitions", [])],
    )


def _partition(what: str, table: Any) -> Partition:
    table = _table(what, table, _PARTITION)
    if missing := sorted(_PARTITION.keys() - table.keys()):
        raise ValueError(f"{what}: one has no {missing[0]!r}")
    if not 0 <= table["at"] < table["until"] < float("inf"):
        raise ValueError(f"{what}: from {table['at']} until {table['until']} is no time")
    return Partition(table["at"], table["until"], frozenset(_strings(f"{what}.machines", table["machines"])))


def _machine(what: str, table: Any, networks: Mapping[str, NetworkPlan], base: Path) -> MachinePlan:
    table = _table(what, table, _MACHINE)
    options = {key: table[key] for key in ("image", "append", "memory", "cpus", "tier", "virtual_time") if key in table}
    for key in ("kernel", "initrd", "firmware", "program"):
        if key in table:
            options[key] = base / table[key]
    for key in ("disks", "shares"):
        if key in table:
            # As everywhere in the file, paths are relative to it.
            options[key] = [str(base / text) for text in _strings(f"{what}.{key}", table[key])]
    if "display" in table:
        options["display"] = _display(f"{what}.display", table["display"])
    cards = [_card(what, each, networks) for each in table.get("networks", [])]
    setup = _strings(f"{what}.setup", table.get("setup", []))
    return MachinePlan(options, cards, setup, table.get("run"), table.get("timeout"))


def _display(what: str, found: bool | list[Any]) -> bool | tuple[int, int]:
    if isinstance(found, bool):
        return found
    if len(found) != 2 or not all(type(each) is int for each in found):
        raise ValueError(f"{what} is neither true nor [width, height]")
    return found[0], found[1]


def _card(what: str, found: Any, networks: Mapping[str, NetworkPlan]) -> dict[str, str]:
    card = {"to": found} if isinstance(found, str) else _table(f"{what}.networks", found, _NIC)
    to = card.get("to")
    if to is None:
        raise ValueError(f"{what}.networks: say where the card is plugged in: to = ...")
    if to not in networks:
        try:
            known = Nic.parse(to)
        except ValueError as error:
            there = ", ".join(networks) or "none"
            raise ValueError(f"{what}.networks: {error}; networks of this file: {there}") from error
        if known is None or len(card) > 1:
            raise ValueError(f"{what}.networks: {to!r} takes its options as in to = 'user,mac=...'")
        return card
    options: dict[str, Any] = {key: value for key, value in card.items() if key != "to"}
    try:
        Nic(**options)
    except ValueError as error:
        raise ValueError(f"{what}.networks: {error}") from error
    return card
