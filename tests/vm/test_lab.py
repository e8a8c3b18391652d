"""Several machines from a file, and the guide about packet loss."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyvisor.cli.main import make_app
from polyvisor.network.conditions import Conditions
from polyvisor.vm.lab import Lab
from support.guests import guest_image, image_cache

ROOT = Path(__file__).resolve().parents[2]
MACHINE = "[machine.a]\nprogram = 'x'\n"


def environment() -> dict[str, str]:
    guest_image()
    return {**os.environ, "POLYVISOR_CACHE": str(image_cache())}


def load(tmp_path: Path, text: str) -> Lab:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return Lab.load(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[machine", "lab.toml: "),
        ("", "there is no machine"),
        ("[machines.a]", "did you mean machine"),
        ("machine = 3", "give each machine a name"),
        ("[machine.a]\nmemroy = '1G'", "did you mean memory"),
        ("[machine.a]\nrun = ['x']", "run is not a string"),
        ("[machine.a]\nsetup = 3", "setup is not a string or a list"),
        ("[machine.a]\nnetworks = ['lan']", "networks of this file: none"),
        ("[machine.a]\nnetworks = [{ mac = 'x' }]", "say where the card is plugged in"),
        ("[machine.a]\nnetworks = [{ to = 'user', mac = '52:54:00:00:00:01' }]", "user,mac"),
        (f"{MACHINE}[network.n]\nloss = 2", "loss"),
        (f"{MACHINE}[network.n]\nloss = true", "network.n.loss is not a number"),
        (f"{MACHINE}[network.n]\nlos = 0.5", "did you mean loss"),
        ("[machine.a]\ncpus = '2'", "machine.a.cpus is not a whole number"),
        ("[machine.a]\ncpus = true", "machine.a.cpus is not a whole number"),
        ("[machine.a]\nkernel = 5", "machine.a.kernel is not a string"),
        ("[machine.a]\nmemory = 2.5", "machine.a.memory is not a string or a whole number"),
        ("[machine.a]\ntimeout = 'x'", "machine.a.timeout is not a number"),
        ("[machine.a]\nnetworks = 'n'", "machine.a.networks is not a list"),
        ("[machine.a]\nnetworks = [5]", "machine.a.networks is not a table"),
        ("[machine.a]\ndisks = ['a', 5]", "machine.a.disks is neither"),
        ("[machine.a]\ndisplay = [640]", "[width, height]"),
        ("[machine.a]\ndisplay = ['a', 'b']", "[width, height]"),
        ("[machine.a]\nnetworks = [{ to = 'n', mac = 'x' }]\n[network.n]", "MAC address 'x'"),
        ("[machine.a]\nnetworks = [{ to = 'n', address = 'x' }]\n[network.n]", "'x' does not appear"),
        (f"{MACHINE}[network.n]\nseed = 'x'", "network.n.seed is not a whole number"),
        (f"{MACHINE}[network.n]\ncapture = 5", "network.n.capture is not a string"),
        (f"{MACHINE}[network.n]\nhub = 'no'", "network.n.hub is not true or false"),
        (f"{MACHINE}[network.n]\noutside = 'tap'", 'outside is "user" or "none"'),
        (f"{MACHINE}[network.n]\npartitions = 3", "network.n.partitions is not a list"),
        (f"{MACHINE}[network.n]\npartitions = [{{ at = 1 }}]", "one has no 'machines'"),
        (f"{MACHINE}[network.n]\npartitions = [{{ at = 2, until = 1, machines = [] }}]", "is no time"),
        (f"{MACHINE}[network.n]\npartitions = [{{ at = 1, until = 2, machines = ['b'] }}]", "no machine 'b'"),
        (f"virtual_time = 1\n{MACHINE}", "virtual_time is not true or false"),
        (f"seed = -1\n{MACHINE}", "seed -1: must not be negative"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value).split(": ", 1)[1].strip()


def test_what_a_file_means(tmp_path: Path) -> None:
    lab = load(
        tmp_path,
        """
        [network.n]
        loss = 0.5
        delay = 0.1
        seed = 3
        capture = "n.pcapng"
        [machine.a]
        program = "a.elf"
        disks = ["d.qcow2,ro"]
        networks = ["n", { to = "n", mac = "52:54:00:00:00:01", address = "10.0.0.1/24" }, "user,restricted"]
        display = [640, 480]
        setup = "true"
        """,
    )
    plan = lab.plans["a"]
    assert plan.options == {
        "program": tmp_path / "a.elf", "disks": [f"{tmp_path}/d.qcow2,ro"], "display": (640, 480),
    }
    assert [card["to"] for card in plan.cards] == ["n", "n", "user,restricted"] and plan.setup == ["true"]
    network = lab.network_plans["n"]
    assert network.conditions == Conditions(loss=0.5, delay=0.1)
    assert (network.seed, network.capture) == (3, tmp_path / "n.pcapng")


def test_the_example_runs() -> None:
    command = [sys.executable, "-m", "polyvisor", "run", str(ROOT / "examples" / "lab.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "client | hello from the server" in done.stdout
    assert "20 packets transmitted" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "lab.toml", "--memory", "512M", "--net=user", "-c", "1"], "--memory, --cpus, --net"),
        (["record", "out.rec", "lab.toml", "--cpus", "2"], "--cpus"),
    ],
)
def test_options_beside_a_lab_are_refused(words: list[str], told: str) -> None:
    found = CliRunner().invoke(make_app(()), words)
    assert found.exit_code == 2
    assert found.stderr == (
        f"polyvisor: {told}: what a lab's machines have is in its file, lab.toml, and not in options\n"
    )


def test_what_goes_wrong_before_the_commands_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    for text, status, says in (
        ("image = 'debian'\nmemory = '256M'\nsetup = ['echo no >&2; exit 7']", 7, "a: command 'echo no >&2"),
        ("image = 'nosuch'", 1, "there is no image 'nosuch'"),
        ("image = 'debian'\ndisks = '/nonexistent'", 2, "/nonexistent: cannot open"),
    ):
        path.write_text(f"[machine.a]\n{text}\n")
        done = subprocess.run(
            [sys.executable, "-m", "polyvisor", "run", str(path)], env=environment(), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        assert done.returncode == status, done
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("polyvisor: ") and says in line


def test_the_status_is_that_of_the_command_that_failed(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(
        "[machine.one]\nimage = 'debian'\nmemory = '128M'\nrun = 'echo to stderr >&2; exit 7'\n"
    )
    command = [sys.executable, "-m", "polyvisor", "run", str(tmp_path / "lab.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 7
    assert "one | to stderr" in done.stdout and "one | polyvisor: exit code 7" in done.stdout


def test_the_guide_about_packet_loss(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guide-packet-loss.md").read_text()
    (program,) = re.findall(r"```python\n(# test_service.py.*?)```", text, re.DOTALL)
    (tmp_path / "test_service.py").write_text(program)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), cwd=tmp_path)
    assert "4 passed" in done.stdout, done.stdout + done.stderr
