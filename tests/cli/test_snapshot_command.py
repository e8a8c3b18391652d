"""``polyvisor snapshot`` and ``polyvisor restore``, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_machines import Cli, environment

from support.guests import guest_image

__all__ = ["environment"]


@pytest.fixture(scope="module")
def cli(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """With one machine, and a snapshot of it."""
    guest_image()
    cli = Cli({**environment, "POLYVISOR_DATA": str(tmp_path_factory.mktemp("data"))})
    done = cli("run", "debian", "-d", "--name", "web", "--memory", "128M", timeout=120)
    assert done.returncode == 0 and done.stdout == b"web\n", done
    cli("exec", "web", "sh", "-c", "echo kept > /tmp/file")
    done = cli("snapshot", "save", "ready", "web")
    assert done.returncode == 0 and done.stdout.decode().endswith(" MB\n"), done
    yield cli
    for name in ("web", "again"):
        cli("stop", "--force", name)


def test_a_machine_is_saved_and_goes_on(cli: Cli) -> None:
    cli("exec", "web", "sh", "-c", "echo changed > /tmp/file")
    done = cli("restore", "ready", "-d", "--name", "again")
    assert done.returncode == 0 and done.stdout == b"again\n", done
    done = cli("exec", "again", "cat", "/tmp/file")
    assert done.stdout == b"kept\n", done
    assert cli("exec", "web", "cat", "/tmp/file").stdout == b"changed\n"
    assert cli("snapshot", "save", "more", "again", "--base", "ready").returncode == 0
    whole, more = json.loads(cli("snapshot", "list", "--json").stdout)[::-1]
    assert (whole["name"], whole["vm"], whole["memory"], whole["parent"]) == ("ready", "web", 128 << 20, None)
    assert more["name"] == "more" and more["parent"] == whole["path"] and more["stored"] < whole["stored"] / 4
    lines = cli("snapshot", "list").stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "OF", "MEMORY", "HARTS", "SIZE", "BASE", "CREATED"] and len(lines) == 3
    found = json.loads(cli("snapshot", "inspect", "more", "--json").stdout)
    assert found["shape"]["cpus"] == 1 and found["board"]["harts"][0]["registers"]["pc"] and found["disks"] == []
    assert "is needed by the snapshot" in cli.fails("snapshot", "delete", "ready")
    assert cli("snapshot", "delete", "more", "ready").returncode == 0
    # It has what it needs.
    assert cli("exec", "again", "cat", "/tmp/file").stdout == b"kept\n"


def test_the_terminal_is_the_console(cli: Cli) -> None:
    assert cli("snapshot", "save", "typed", "web").returncode == 0
    assert "memory: 128M, of which" in cli("snapshot", "inspect", "typed").stdout.decode()
    assert cli("snapshot", "check", "typed").stdout == b"typed: all is as it was saved\n"
    done = cli("restore", "typed", stdin=b"echo $((6 * 7)); exit 3\n")
    assert done.returncode == 3 and b"42" in done.stdout, done


def test_what_goes_wrong_is_one_line(cli: Cli, tmp_path: Path) -> None:
    assert cli.fails("restore", "nosuch").startswith("there is no snapshot 'nosuch'")
    assert cli.fails("snapshot", "inspect", "no such").startswith("'no such' cannot be a snapshot's name")
    assert "no machine 'nosuch' is running" in cli.fails("snapshot", "save", "x", "nosuch")
    assert "can be the base" in cli.fails("snapshot", "save", "x", "web", "--base", "other")
    bad = tmp_path / "bad.pvsnap"
    bad.write_bytes(b"something else" * 1000)
    for words in (["snapshot", "delete"], ["restore"]):
        assert "is not a snapshot" in cli.fails(*words, str(bad))
    assert bad.exists()
