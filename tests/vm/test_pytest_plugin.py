"""The fixtures for pytest, used by a pytest in a process of its own, with Linux."""

from __future__ import annotations

import importlib.metadata

import pytest

from support.guests import guest_image, image_cache

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    guest_image()
    monkeypatch.setenv("POLYVISOR_CACHE", str(image_cache()))


def run(pytester: pytest.Pytester, test: str, *arguments: str, conftest: str = "") -> pytest.RunResult:
    pytester.makepyfile(test)
    if conftest:
        pytester.makeconftest(conftest)
    installed = any(
        entry.value == "polyvisor.vm.pytest_plugin" for entry in importlib.metadata.entry_points(group="pytest11")
    )
    plugin = () if installed else ("-p", "polyvisor.vm.pytest_plugin")
    return pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *arguments, timeout=120)


def test_what_tests_share_and_what_they_do_not(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import polyvisor
        import pytest

        machines = []

        def test_one(vm):
            machines.append(vm)
            vm.console.expect("powers the machine off")  # the agent may be there before the shell
            vm.run("echo 1 > /tmp/left", check=True)
            assert vm.config.cpus == 2

        def test_the_same_machine(vm):
            assert vm is machines[0] and vm.read_file("/tmp/left") == b"1\\n"
            assert [e.kind for e in vm.events] == ["started", "ready"]

        def test_fails_and_shows_the_console(vm):
            vm.run("echo printed by the guest > /dev/ttyS0")
            vm.console.expect("by the guest")
            assert vm.run("false").ok

        def test_ends_it(vm):
            with pytest.raises(polyvisor.StoppedError):
                vm.run("poweroff -f; sleep 100")
            vm.wait(60)

        def test_gets_another(vm, fresh_vm):
            assert vm is not machines[0] and vm.run("echo back").stdout == "back\\n"
            assert fresh_vm is not vm and not fresh_vm.run("cat /tmp/left").ok
            machines.append(fresh_vm)

        def test_the_fresh_one_is_gone(vm_factory):
            assert not machines[1].running
            made = vm_factory(cpus=1, memory="128M", name="small")
            assert not made.running and made.boot().run("nproc").stdout == "1\\n"
            machines.append(made)

        def test_what_was_made_is_gone():
            assert not machines[2].running
        """,
        "--vm-cpus=2", "--vm-memory=256M",
    )  # fmt: skip
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["*console of debian during call*", "printed by the guest*"])
    assert "powers the machine off" not in str(result.stdout)  # which was printed before the test that failed


@pytest.mark.slow
def test_what_machines_are_made_of(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_name(vm):
            assert vm.name == "mine" and vm.run("cat /proc/cmdline").stdout.split()[-1] == "word=1"
        """,
        conftest="""
        import pytest

        @pytest.fixture(scope="session")
        def vm_options():
            return {"image": "debian", "append": "word=1", "name": "mine"}
        """,
    )
    result.assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_machine_that_cannot_boot_is_an_error_with_its_console(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_boots(vm):
            pass

        def test_needs_none():
            pass
        """,
        conftest="""
        import pytest

        @pytest.fixture(scope="session")
        def vm_options():
            return {"image": "debian", "append": "rdinit=/nosuch panic=-1", "reboot": False}
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*BootError: debian ended while it booted*"])


def test_an_image_that_is_not_there(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_x(vm): pass", "--vm-image=nosuch")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nosuch*"])
