"""Machines in the background, as a user reaches them: by name, from other processes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor.vm import running as running_machines
from polyvisor.vm.errors import VMError
from polyvisor.vm.remote import RemoteVM
from support.guests import guest_image, image_cache


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where no other machine runs, and the image is there."""
    # Short, because a socket's path has 107 bytes at most.
    directory = Path(f"/tmp/pv-{os.getpid()}")
    directory.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVISOR_RUN", str(directory))
        yield {**os.environ, "POLYVISOR_CACHE": str(image_cache())}
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


class Cli:
    """The command, in an environment."""

    def __init__(self, environment: dict[str, str], name: str = "") -> None:
        self.environment = environment
        self.name = name
        """Of the machine that runs."""

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "polyvisor", *arguments], env=self.environment, **options,  # type: ignore[call-overload]
        )  # fmt: skip

    def __call__(self, *arguments: str, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "polyvisor", *arguments], env=self.environment, input=stdin, capture_output=True,
            timeout=timeout,
        )  # fmt: skip

    def fails(self, *arguments: str) -> str:
        """The one line that it says."""
        done = self(*arguments)
        assert done.returncode in (1, 2), done
        (line,) = done.stderr.decode().strip().splitlines()
        assert line.startswith("polyvisor: ")
        return line.removeprefix("polyvisor: ")


@pytest.fixture(scope="module")
def cli(environment: dict[str, str]) -> Iterator[Cli]:
    """With one machine, which the tests share."""
    guest_image()
    cli = Cli(environment, "web")
    done = cli("run", "debian", "-d", "--name", "web", "--memory", "256M", timeout=120)
    assert done.returncode == 0 and done.stdout == b"web\n", done
    yield cli
    cli("stop", "--force", "web")


def wait_for(condition: object) -> bool:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_what_runs(cli: Cli) -> None:
    (found,) = json.loads(cli("ps", "--json").stdout)
    assert (found["name"], found["memory"], found["cpus"], found["ready"]) == ("web", 256 << 20, 1, True)
    os.kill(found["pid"], 0)
    lines = cli("ps").stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "UP", "MEMORY", "HARTS", "STATE", "PID"]
    assert lines[1].split()[::2] == ["web", "256M", "ready"] and len(lines) == 2


def test_commands(cli: Cli) -> None:
    done = cli("exec", "web", "sh", "-c", "cat; echo error >&2; exit 7", stdin=b"input\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"input\n", b"error\n", 7)
    done = cli("exec", "--cwd", "/tmp", "-e", "A=b c", "-u", "nobody", "web", "sh", "-c", "pwd; echo $A; id -u")
    assert done.stdout == b"/tmp\nb c\n65534\n"
    assert cli("exec", "web", "--", "echo", "-t").stdout == b"-t\n"
    data = bytes(range(256)) * 8000
    assert cli("exec", "web", "cat", stdin=data).stdout == data


def test_how_commands_end(cli: Cli) -> None:
    assert cli("exec", "web", "sh", "-c", "kill -9 $$").returncode == 137
    for words, status, says in (
        (["web", "nosuch"], 127, b"nosuch: not found in the guest"), (["web", "/etc/passwd"], 126, b"cannot be exec"),
        (["--timeout", "0.2", "web", "sleep", "99"], 124, b"did not end within 0.2 seconds"),
        (["-u", "nosuch", "web", "true"], 1, b"no user 'nosuch'"), (["-u", "9" * 20, "web", "true"], 1, b"a number"),
        (["nosuch", "true"], 1, b"no machine 'nosuch' is running; there are: web"),
        (["--timeout", "inf", "web", "true"], 2, b"--timeout inf: give seconds"),
    ):  # fmt: skip
        done = cli("exec", *words)
        assert done.returncode == status and says in done.stderr and done.stderr.count(b"\n") == 1, done
    cli("exec", "web", "mv", "/dev/ptmx", "/dev/ptmx.not")
    done = cli("exec", "-t", "web", "true")
    cli("exec", "web", "mv", "/dev/ptmx.not", "/dev/ptmx")
    assert done.returncode == 1 and b"polyvisor: cannot open a terminal in the guest: No such file" in done.stderr
    done = cli("exec", "--json", "web", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert json.loads(done.stdout) == {"exit_code": 3, "stdout": "out\n", "stderr": "err\n"} and done.returncode == 3


def test_signals_are_passed_on(cli: Cli) -> None:
    command = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    process = cli.start("exec", "web", "sh", "-c", command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == b"caught\n" and process.returncode == 9


def running(words: str) -> bool:
    """Whether the guest has a process with ``words`` on its command line."""
    return RemoteVM("web").client.run(f"ps -o args | grep '[{words[0]}]{words[1:]}'", timeout=60).ok


def test_what_is_left_ends(cli: Cli) -> None:
    # By whoever read the output,
    process = cli.start("exec", "web", "yes", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(30) == 137
    # and by who asked for it, also while it has input that nobody takes.
    process = cli.start("exec", "web", "sh", "-c", "echo; sleep 7654", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdout.readline()
    os.set_blocking(process.stdin.fileno(), False)
    stuck = 0
    while stuck < 20:
        if not process.stdin.raw.write(bytes(1 << 16)):  # type: ignore[attr-defined]
            stuck += 1
            time.sleep(0.02)
    process.kill()
    process.wait()
    assert wait_for(lambda: not running("sleep 7654"))


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, cli: Cli, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        os.set_inheritable(slave, True)
        self.process = cli.start(*arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        end = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = self.seen.split(text, 1)[1]

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def end(self) -> int:
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            os.close(self.master)


def test_a_terminal_in_the_guest(cli: Cli) -> None:
    terminal = Terminal(cli, "exec", "-t", "web", "sh", "-c", "stty -echo; echo \"<$(tty)>\"; exec sh")
    terminal.expect(b"</dev/pts/")
    terminal.type(b"sleep 100\r")
    time.sleep(0.5)
    terminal.type(b"\x03")  # to the guest, where it ends the sleep and not the shell
    terminal.type(b"echo sta''tus $?\r")
    terminal.expect(b"status 130")
    terminal.type(b"exit 5\r")
    assert terminal.end() == 5


def test_the_end_of_a_pipe_is_one_for_a_terminal_too(cli: Cli) -> None:
    done = cli("exec", "-t", "web", "cat", stdin=b"through a pipe\n")
    assert done.returncode == 0 and b"through a pipe" in done.stdout


def test_keys_reach_a_command_without_a_terminal_of_its_own(cli: Cli) -> None:
    terminal = Terminal(cli, "exec", "web", "sh", "-c", "echo ready; read x; echo \"got $x\"")
    terminal.expect(b"ready")
    terminal.type(b"word\n")
    terminal.expect(b"got word")
    assert terminal.end() == 0


def test_copies(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(range(256)) * 1000)
    assert cli("cp", str(tmp_path / "tree"), "web:/tmp/").returncode == 0
    assert cli("cp", "web:/tmp/tree/file", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "tree" / "file").read_bytes()
    assert cli("cp", ":/tmp/tree", str(tmp_path / "tree2")).returncode == 0  # the only machine there is
    assert [p.name for p in (tmp_path / "tree2").iterdir()] == ["file"]
    assert "nosuch" in cli.fails("cp", "web:/nosuch", str(tmp_path))
    assert "nosuch" in cli.fails("cp", str(tmp_path / "nosuch"), "web:/tmp")
    assert "one of the two" in cli.fails("cp", "a", "b")
    assert "no machine 'other'" in cli.fails("cp", "other:/x", "y")


def test_the_console_and_its_log(cli: Cli) -> None:
    follower = cli.start("logs", "-f", "web", stdout=subprocess.PIPE)
    terminal = Terminal(cli, "console", "web")
    terminal.expect(b"# ")
    terminal.type(b"echo con''sole $((6 * 7))\r")
    terminal.expect(b"console 42")
    terminal.type(b"\x01x")
    assert terminal.end() == 0
    log = cli("logs", "web").stdout
    assert b"console 42" in log and b"powers the machine off" in log
    assert follower.stdout
    seen = b""
    while b"console 42" not in seen:
        seen += follower.stdout.read1()  # type: ignore[attr-defined]
    assert b"powers the machine off" in seen  # from the beginning
    follower.kill()
    follower.communicate()


def test_names_are_taken_once(cli: Cli) -> None:
    assert cli.fails("run", "debian", "--name", "web") == "a machine called 'web' runs already: choose another --name"
    assert "runs already" in cli.fails("run", "debian", "-d", "--name", "web")
    assert "cannot be a machine's name" in cli.fails("run", "debian", "--name", "../x")
    for name in ("", "-a", "a b", "a/b", "x" * 100):
        with pytest.raises(VMError, match="cannot be a machine's name"):
            running_machines.socket_path(name)
    assert running_machines.names() == ["web"]


def test_a_detached_machine_that_cannot_start(cli: Cli) -> None:
    assert "16M at least" in cli.fails("run", "debian", "-dm", "1M")
    assert "/nosuch" in cli.fails("run", "debian", "-d", "--name", "bad", "--disk", "/nosuch")
    assert running_machines.names() == ["web"]


def test_sockets_of_the_dead_are_cleared_away(cli: Cli) -> None:
    path = Path(cli.environment["POLYVISOR_RUN"]) / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert "no machine 'dead'" in cli.fails("exec", "dead", "true")
    assert not path.exists()


def test_requests_that_are_none(cli: Cli) -> None:
    requests = (
        *('nonsense', '[]', '{"op": 5}', '{"op": "nosuch"}', '{}', '{"op": "stop", "timeout": []}'),
        *('{"op": "stop", "timeout": Infinity}', '{"op": "stop", "timeout": NaN}', '{"op": "stop", "timeout": 1e300}'),
        *('{"op": "wait_ready", "timeout": -Infinity}', '{"op": "agent", "timeout": 1e300}'),
    )
    for request in requests:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(Path(cli.environment["POLYVISOR_RUN"]) / "web.sock"))
            connection.sendall(request.encode() + b"\n")
            assert "error" in json.loads(connection.makefile().readline())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(Path(cli.environment["POLYVISOR_RUN"]) / "web.sock"))
        connection.sendall(b"x" * 10_000)
        connection.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert RemoteVM("web").client.run("echo fine", timeout=60).stdout == "fine\n"


def test_a_directory_that_others_can_change_is_refused(cli: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    other = Cli({**cli.environment, "POLYVISOR_RUN": str(tmp_path)})
    assert "can be changed by others" in other.fails("ps")


@pytest.mark.slow
def test_stopping_one_that_was_never_named(cli: Cli) -> None:
    """Two of them, which get names of their own; one is asked to end, the other is not asked."""
    names = []
    for _ in range(2):
        done = cli("run", "debian", "--detach", timeout=120)
        names.append(done.stdout.decode().strip())
    assert names == ["debian", "debian-2"]
    pids = [each["pid"] for each in json.loads(cli("ps", "--json").stdout) if each["name"] in names]
    assert cli("stop", "debian").returncode == 0 and cli("stop", "-f", "debian-2").returncode == 0
    assert wait_for(lambda: running_machines.names() == ["web"])
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert "no machine 'debian'" in cli.fails("stop", "debian")
