"""Fixtures for pytest: tests that run in virtual machines.

``vm`` is a booted machine that the tests of a session share; ``fresh_vm`` one of a test's own; ``vm_factory`` makes
any. What they are made of says the fixture ``vm_options`` (arguments of :class:`polyvisor.VM`), which a ``conftest.py``
may define anew, or the options ``--vm-image``, ``--vm-memory``, ``--vm-cpus``. The console's output during a test is
in the report of its failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # pytest loads this for tests without machines too
    from polyvisor.vm.virtual_machine import VM

_MACHINES = pytest.StashKey["list[VM]"]()
_MARKS = pytest.StashKey[dict[int, int]]()
# The longest part of a console that a report shows, in bytes.
_MOST = 16_384


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's options."""
    group = parser.getgroup("polyvisor", "virtual machines")
    group.addoption("--vm-image", default="debian", help="image of the machines (default: debian)")
    group.addoption("--vm-memory", default="512M", help="their memory (default: 512M)")
    group.addoption("--vm-cpus", type=int, default=1, help="their harts (default: 1)")


def pytest_configure(config: pytest.Config) -> None:
    """Keep account of the machines that run."""
    config.stash[_MACHINES] = []


@pytest.fixture(scope="session")
def vm_options(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What ``vm`` and ``fresh_vm`` are made of: arguments of :class:`polyvisor.VM`."""
    option = pytestconfig.getoption
    return {"image": option("--vm-image"), "memory": option("--vm-memory"), "cpus": option("--vm-cpus")}


def _make(config: pytest.Config, options: dict[str, Any]) -> VM:
    from polyvisor.vm.virtual_machine import VM

    machine = VM(**options)
    config.stash[_MACHINES].append(machine)
    return machine


def _end(config: pytest.Config, machine: VM) -> None:
    config.stash[_MACHINES].remove(machine)
    machine.kill()


@pytest.fixture(scope="session")
def _shared(pytestconfig: pytest.Config, vm_options: dict[str, Any]) -> Iterator[Callable[[], VM]]:
    """Gives the session's machine, booted; a new one if the last has ended or does not answer any more."""
    current: list[VM] = []

    def get() -> VM:
        if current and not _answers(current[0]):
            _end(pytestconfig, current.pop())
        if not current:
            current.append(_make(pytestconfig, vm_options))
            current[0].boot()
        return current[0]

    yield get
    for machine in current:
        _end(pytestconfig, machine)


def _answers(machine: VM) -> bool:
    from polyvisor.vm.errors import VMError

    if not machine.running or not machine.software.agent:
        return machine.running
    try:
        return machine.run(["/bin/true"], timeout=10).ok
    except (VMError, OSError):
        return False


@pytest.fixture
def vm(_shared: Callable[[], VM]) -> VM:
    """A booted machine that all tests of the session share: they find what others left in it."""
    return _shared()


@pytest.fixture
def vm_factory(pytestconfig: pytest.Config, vm_options: dict[str, Any]) -> Iterator[Callable[..., VM]]:
    """Makes machines for one test: ``vm_factory(cpus=2)``. They are not booted yet, and ended after the test."""
    made: list[VM] = []

    def make(**options: Any) -> VM:
        made.append(_make(pytestconfig, {**vm_options, **options}))
        return made[-1]

    yield make
    for machine in made:
        _end(pytestconfig, machine)


@pytest.fixture
def fresh_vm(vm_factory: Callable[..., VM]) -> VM:
    """A booted machine of the test's own."""
    return vm_factory().boot()


# Reports


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note where each console is before a test."""
    item.stash[_MARKS] = {id(m): m.console.position for m in item.config.stash[_MACHINES]}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put what the consoles have shown since into the report of a failure."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if not report.failed:
        return
    before = item.stash.get(_MARKS, {})
    for machine in item.config.stash[_MACHINES]:
        text = machine.console.since(max(before.get(id(machine), 0), machine.console.position - _MOST))
        if text.strip():
            report.sections.append((f"console of {machine.name} during {report.when}", text.replace("\r", "")))
