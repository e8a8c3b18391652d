"""The VM object, with Linux: one machine that the tests share, and a few of their own for what ends one."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyvisor
from polyvisor.boards.placing import LoadError
from polyvisor.isa.riscv import rv64
from polyvisor.storage.open import open_disk
from polyvisor.vm.control import ControlServer
from polyvisor.vm.machine import Machine
from polyvisor.vm.remote import RemoteVM
from polyvisor.vm.running import read_line
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image
from support.programs import POWER_OFF, elf


@pytest.fixture(scope="module")
def vm() -> Iterator[VM]:
    with VM(guest_image(), cpus=2, timeout=60) as machine:
        yield machine


def gone(vm: VM, words: str) -> bool:
    """Whether no process of the guest has a command line with ``words``, soon."""
    for _ in range(200):
        # The brackets keep the search from finding itself.
        if not vm.run(f"ps -o args | grep '[{words[0]}]{words[1:]}'").ok:
            return True
        time.sleep(0.02)
    return False


# Commands


def test_a_command_has_output_and_a_status(vm: VM) -> None:
    result = vm.run("uname -m; echo oops >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("riscv64\n", "oops\n", 3, False)
    assert vm.run("nproc").stdout == "2\n"


def test_a_sequence_is_run_as_it_is(vm: VM) -> None:
    words = ["a  b", "$HOME", "*", "", "'\"\\", "-n", "ümläut"]
    assert vm.run(["printf", "<%s>", *words]).stdout == "".join(f"<{word}>" for word in words)


def test_check_raises_with_what_it_said(vm: VM) -> None:
    with pytest.raises(polyvisor.CommandError, match="'echo one; echo two >&2; exit 4' gave 4: two") as caught:
        vm.run("echo one; echo two >&2; exit 4", check=True)
    assert caught.value.result.stdout == "one\n"
    with pytest.raises(polyvisor.CommandError, match="was ended by signal 9"):
        vm.run("kill -9 $$", check=True)


def test_a_signal_is_a_negative_status(vm: VM) -> None:
    assert vm.run("kill -TERM $$").exit_code == -signal.SIGTERM
    assert vm.run("ulimit -c 0; kill -SEGV $$").exit_code == -signal.SIGSEGV


def test_what_cannot_be_started(vm: VM) -> None:
    with pytest.raises(FileNotFoundError, match="nosuch"):
        vm.run(["nosuch"])
    with pytest.raises(FileNotFoundError):
        vm.run(["/nosuch/program"])
    with pytest.raises(PermissionError):
        vm.run(["/etc/passwd"])
    with pytest.raises(FileNotFoundError, match="/nosuch/dir"):
        vm.run("true", cwd="/nosuch/dir")
    with pytest.raises(NotADirectoryError):
        vm.run("true", cwd="/etc/passwd")
    assert vm.run("nosuch").exit_code == 127
    with pytest.raises(KeyError, match="nosuch"):
        vm.run("true", user="nosuch")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], {}), ([""], {}), ("echo \0", {}), ("true", {"env": {"A": "\0"}}), ("true", {"env": {"A=B": "1"}}),
        ("true", {"cwd": "\0"}), ("x" * 300_000, {}), (["true"] * 20_000, {}), ("true", {"user": -1}),
        ("true", {"user": 2**32}), ("true", {"tty": (-1, 80)}),
    ],
    ids=repr,
)  # fmt: skip
def test_what_no_command_can_be(vm: VM, command: object, options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        vm.run(command, **options)  # type: ignore[arg-type]


def test_a_long_command_line(vm: VM) -> None:
    word = "x" * 100_000
    assert vm.run(["sh", "-c", 'echo ${#1} $#', "sh", word, "y"]).stdout == "100000 2\n"


def test_environment_and_directory(vm: VM) -> None:
    result = vm.run("echo $HOME $USER $GREETING; pwd", env={"GREETING": "hällo wörld"}, cwd="/tmp")
    assert result.stdout == "/root root hällo wörld\n/tmp\n"
    vm.write_file("/tmp/tool", "#!/bin/sh\necho found\n", mode=0o755)
    assert vm.run(["tool"], env={"PATH": "/nosuch:/tmp"}).stdout == "found\n"


def test_users_and_their_groups(vm: VM) -> None:
    vm.run(
        "echo 'ann:x:1234:2345:Ann:/tmp:/bin/sh' >> /etc/passwd; echo 'ann:x:2345:' >> /etc/group;"
        "echo 'crew:x:3456:bob,ann' >> /etc/group", check=True,
    )  # fmt: skip
    found = vm.run("id -u; id -G; echo $USER $HOME; cat /proc/kmsg", user="ann")
    assert found.stdout == "1234\n2345 3456\nann /tmp\n" and "denied" in found.stderr
    assert vm.run("id -u", user=1234).stdout == vm.run("id -u", user="1234").stdout == "1234\n"
    assert vm.run("id -u; id -g; id -G", user=4321).stdout == "4321\n4321\n4321\n"
    assert vm.run("id -u", user="nobody").stdout == "65534\n"


def test_text_and_bytes(vm: VM) -> None:
    assert vm.run("cat", input="Grüße, 世界\n").stdout == "Grüße, 世界\n"
    data = bytes(range(256)) * 3
    assert vm.run("cat", input=data, encoding=None).stdout == data
    assert vm.run("printf '\\303'").stdout == "\ufffd"  # cut off in the middle of a character
    assert vm.run("printf '\\344'", encoding="latin-1").stdout == "ä"


def test_megabytes_go_both_ways(vm: VM) -> None:
    data = bytes(range(256)) * 12_000
    result = vm.run("tee /proc/self/fd/2", input=data, encoding=None)
    assert result.stdout == data and result.stderr == data


def test_a_command_need_not_read_its_input(vm: VM) -> None:
    assert vm.run("exec <&-; echo done", input="x" * 2_000_000).stdout == "done\n"
    assert vm.run("head -c 5", input="abcdefgh" * 300_000).stdout == "abcde"


def test_nothing_is_the_default_input(vm: VM) -> None:
    assert vm.run("cat").stdout == ""


def test_a_command_that_takes_too_long_is_killed(vm: VM) -> None:
    with pytest.raises(polyvisor.VMTimeoutError, match=r"within 0.5 seconds: sleep 4321 & sleep 4321"):
        vm.run("sleep 4321 & sleep 4321", timeout=0.5)
    assert gone(vm, "sleep 4321")


@pytest.mark.parametrize("size", [100, 400_000, 580_000, 650_000, 2_000_000])
def test_a_command_that_does_not_read_is_killed_in_time(vm: VM, size: int) -> None:
    with pytest.raises(polyvisor.VMTimeoutError):
        vm.run("sleep 4322", input=b"x" * size, timeout=0.4)
    assert gone(vm, "sleep 4322")


def test_many_commands_at_once(vm: VM) -> None:
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = vm.run(f"cat; echo {number}", input=f"{number} " * 20_000).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: f"{number} " * 20_000 + f"{number}\n" for number in range(20)}


def test_a_background_process_outlives_its_command_and_holds_up_nobody(vm: VM) -> None:
    command = "(while echo chatter; do sleep 0.02; done) & echo $! >&2; exit 5"
    result = vm.run(command)
    assert result.exit_code == 5
    pid = result.stderr.strip()
    vm.run("sleep 0.2")
    assert vm.run(f"kill -0 {pid}").ok, "it ended, of a full or closed pipe perhaps"
    assert vm.run(f"kill {pid}").ok


# Processes


def server(vm: VM) -> list[str]:
    """The guest's process that serves the next command: its number, and its descriptors."""
    with vm.popen("read line; echo $PPID; ls /proc/$PPID/fd | wc -l") as process:
        process.write("\n")  # which it passes on when it has closed what belongs to the command
        return str(process.stdout.read()).split()


def test_one_process_of_the_guest_serves_many_requests_and_keeps_nothing_of_them(vm: VM) -> None:
    before = server(vm)
    vm.write_file("/tmp/kept", "x" * 100_000)
    for _ in range(3):
        assert vm.run("cd /; umask 77; cat", input="in", cwd="/tmp", user=1234).stdout == "in"
        assert vm.run("echo on a terminal", tty=True).stdout == "on a terminal\r\n"
        assert vm.run("head -c 1", input="x" * 1_000_000).stdout == "x"
        with pytest.raises(FileNotFoundError):
            vm.run(["nosuch"])
        with pytest.raises(FileNotFoundError):
            vm.run("true", cwd="/nosuch")
        with pytest.raises(OSError, match=r"Invalid argument"):
            vm.run("true", user=2**32 - 1)
        with pytest.raises(FileNotFoundError):
            vm.read_file("/nosuch")
        with pytest.raises(FileNotFoundError):
            vm.client.stat("/nosuch")
        with pytest.raises(IsADirectoryError):
            vm.read_file("/tmp")
        assert len(vm.read_file("/tmp/kept")) == vm.client.stat("/tmp/kept").size == 100_000
        assert vm.run("kill -9 $$").exit_code == -9
    assert server(vm) == before
    assert vm.run("pwd; umask; id -u; cat").stdout == "/\n0022\n0\n"


def test_what_commands_begin_with(vm: VM) -> None:
    """Every signal at its default, no descriptors but three, and an input that cannot be written to."""
    for options in ({}, {"tty": True}, {"user": 1234}):
        found = vm.run("grep Sig /proc/self/status", **options).stdout.split()
        assert int(found[found.index("SigIgn:") + 1], 16) == int(found[found.index("SigBlk:") + 1], 16) == 0
    assert vm.run("ls -l /proc/self/fd/0; echo >&0").stdout.endswith("-> /dev/null\n")
    assert "write error" in vm.run("echo >&0").stderr
    assert vm.run(["ls", "/proc/self/fd"]).stdout == "0\n1\n2\n3\n"  # the last is the directory


def test_processes_of_the_agent_that_end_are_replaced(vm: VM) -> None:
    for _ in range(2):
        cats = [vm.popen("cat") for _ in range(4)]
        for cat in cats:
            cat.close_stdin()
            assert cat.wait() == 0
        # All that wait for a request; the one that serves this, and the first, from which all come, go on.
        vm.run(
            "first=$(cut -d ' ' -f 4 /proc/$PPID/stat)\n"
            "for p in $(pidof agent); do case $p in $PPID | $first) ;; *) kill -9 $p ;; esac; done"
        )


def test_a_conversation_with_a_process(vm: VM) -> None:
    with vm.popen("while read line; do echo \"<$line>\"; done; echo end") as process:
        for word in ("one", "zwölf"):
            process.write(f"{word}\n")
            assert process.stdout.readline(30) == f"<{word}>\n"
        assert process.running and process.exit_code is None
        with pytest.raises(TimeoutError):
            process.stdout.readline(0.05)
        process.close_stdin()
        assert list(process.stdout) == ["end\n"]
        assert process.wait(30) == 0
        with pytest.raises(BrokenPipeError):
            for _ in range(50):
                process.write("more")
                time.sleep(0.02)


def test_lines_of_more_than_is_kept(vm: VM) -> None:
    with vm.popen("seq 1 200000; printf last") as process:
        count = 0
        for count, line in enumerate(process.stdout, 1):
            assert line == f"{count}\n" or line == "last"
    assert count == 200_001


def test_a_reader_that_is_slow_holds_the_command_up(vm: VM) -> None:
    with vm.popen("yes", encoding=None) as process:
        time.sleep(0.5)
        assert process.stdout.waiting < 2 << 20
        got = 0
        while got < 3 << 20:
            got += len(process.stdout.read_some(30))
    assert gone(vm, "yes")


def test_signals_reach_the_command_and_its_children(vm: VM) -> None:
    with vm.popen("trap 'echo caught; exit 9' TERM; sleep 4323 & echo ready; wait") as process:
        assert process.stdout.readline(30) == "ready\n"
        process.terminate(30)
        assert process.wait(30) == 9 and process.stdout.read() == "caught\n"
    assert gone(vm, "sleep 4323")
    process.send_signal(signal.SIGKILL)  # it is over: nothing happens
    # No shell: busybox's can lose a SIGINT that comes while it starts its first child.
    with vm.popen(["sleep", "4324"]) as process:
        with pytest.raises(ValueError):
            process.send_signal(-1)
        with pytest.raises(OSError, match="Invalid argument"):
            process.send_signal(999, 30)
        process.send_signal(signal.SIGINT, 30)
        assert process.wait(30) == -signal.SIGINT


def test_killing_ends_it_at_once(vm: VM) -> None:
    process = vm.popen("sleep 4325; sleep 4325")
    process.kill()
    process.kill()
    assert process.wait(30) == -signal.SIGKILL and gone(vm, "sleep 4325")


def test_leaving_the_block_kills_it(vm: VM) -> None:
    with vm.popen("sleep 4326"):
        pass
    assert gone(vm, "sleep 4326")


def test_a_terminal(vm: VM) -> None:
    result = vm.run("tty; stty size; echo $TERM; echo error >&2", tty=(33, 99))
    lines = result.stdout.replace("\r", "").split("\n")
    assert lines[0].startswith("/dev/pts/") and lines[1:4] == ["33 99", "xterm-256color", "error"]
    assert result.stderr == ""
    assert "not a tty" in vm.run("tty").stdout


def test_the_end_of_input_on_a_terminal(vm: VM) -> None:
    assert vm.run("stty -echo; cat", tty=True, timeout=30).stdout == ""
    assert vm.run("cat", tty=True, input="x\n", timeout=30).stdout.count("x") == 2  # echo, and cat
    assert vm.run("cat", tty=True, input="no newline", timeout=30).stdout.count("no newline") == 2


def test_keys_on_a_terminal(vm: VM) -> None:
    with vm.popen("trap 'stty size; exit 7' INT; echo ready; while :; do sleep 0.05; done", tty=True) as process:
        while "ready" not in process.stdout.readline(30):
            pass
        process.resize(44, 111)
        process.write(b"\x03")
        assert process.wait(30) == 7
        assert "44 111" in process.stdout.read()


# Files


def test_files_are_written_and_read(vm: VM) -> None:
    vm.write_file("/tmp/text", "Grüße\n")
    assert vm.read_file("/tmp/text") == "Grüße\n".encode()
    vm.write_file("/tmp/text", b"more", append=True)
    assert vm.run("cat /tmp/text").stdout == "Grüße\nmore"
    vm.write_file("/tmp/text", b"", mode=0o640)
    assert vm.run("stat -c '%a %s' /tmp/text").stdout == "640 0\n"
    with pytest.raises(FileExistsError):
        vm.write_file("/tmp/text", "x", exclusive=True)
    assert b"Linux" in vm.read_file("/proc/version")  # whose size is 0


def test_files_that_cannot_be_read_or_written(vm: VM) -> None:
    for path, error in (
        ("/nosuch", FileNotFoundError), ("/tmp", IsADirectoryError), ("/etc/passwd/x", NotADirectoryError),
        ("/" + "x" * 300, OSError), ("/x" * 5_000, OSError), ("/x" * 200_000, OSError), ("\0", ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            vm.read_file(path)
        with pytest.raises(error if path != "/nosuch" else FileNotFoundError):
            vm.write_file(path if path != "/nosuch" else "/nosuch/x", "data")
    assert vm.run("rm -f /tmp/fifo; mkfifo /tmp/fifo").ok
    assert vm.read_file("/tmp/fifo", timeout=30) == b""  # nobody writes to it


def test_a_full_file_system(vm: VM, tmp_path: Path) -> None:
    vm.run("mkdir -p /tmp/small; mount -t tmpfs -o size=64k small /tmp/small", check=True)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "big").write_bytes(bytes(3_000_000))
    try:
        with pytest.raises(OSError, match="No space left"):
            vm.write_file("/tmp/small/big", bytes(3_000_000))
        with pytest.raises(OSError, match="No space left"):
            vm.put(tmp_path / "dir" / "big", "/tmp/small/big")
        with pytest.raises(OSError, match="No space left"):
            vm.put(tmp_path / "dir", "/tmp/small/dir")
    finally:
        vm.run("umount /tmp/small")


def test_big_files_there_and_back(vm: VM, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "big").chmod(0o751)
    vm.put(tmp_path / "big", "/tmp/copy")
    assert vm.run("stat -c '%a %u %s' /tmp/copy").stdout == f"751 0 {len(data)}\n"
    assert vm.get("/tmp/copy", tmp_path) == tmp_path / "copy"
    assert (tmp_path / "copy").read_bytes() == data and (tmp_path / "copy").stat().st_mode & 0o777 == 0o751


def test_where_copies_go(vm: VM, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "link").symlink_to("file")
    vm.run("rm -rf /tmp/place; mkdir -p /tmp/place", check=True)
    vm.put(file, "/tmp/place")
    vm.put(file, "/tmp/place/")
    vm.put(file, "/tmp/place/other")
    vm.put(tmp_path / "link", "/tmp/place")
    assert vm.run("ls /tmp/place").stdout.split() == ["file", "link", "other"]
    with pytest.raises(FileNotFoundError):
        vm.put(file, "/tmp/nosuch/file")
    with pytest.raises(FileNotFoundError):
        vm.put(tmp_path / "nosuch", "/tmp/place")
    with pytest.raises(FileNotFoundError):
        vm.get("/nosuch", tmp_path)
    with pytest.raises(FileNotFoundError):
        vm.get("/etc/passwd", tmp_path / "nosuch" / "passwd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"], "something was left behind"


def test_directories_there_and_back(vm: VM, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    long = "n" * 120
    (tree / "sub" / long).mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "sub" / long / "fïle").write_text("deep")
    (tree / "run").write_text("#!/bin/sh\necho it runs\n")
    (tree / "run").chmod(0o755)
    (tree / "relative").symlink_to("sub")
    (tree / "absolute").symlink_to("/proc/version")
    (tree / "twin").hardlink_to(tree / "run")
    (tmp_path / "alias").symlink_to("tree")
    vm.run("rm -rf /tmp/tree /tmp/alias", check=True)
    vm.put(tree, "/tmp/tree")
    vm.put(tmp_path / "alias", "/tmp/")
    assert vm.run("/tmp/tree/run; cat /tmp/alias/sub/*/*; readlink /tmp/tree/absolute").stdout == (
        "it runs\ndeep/proc/version\n"
    )
    back = vm.get("/tmp/tree", tmp_path / "back")

    def shape(root: Path) -> dict[str, object]:
        return {
            str(p.relative_to(root)): p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else "dir"
            for p in sorted(root.rglob("*"))
        }

    assert shape(back) == shape(tree)
    assert (back / "run").stat().st_mode & 0o777 == 0o755
    with pytest.raises(FileExistsError):
        vm.get("/tmp/tree", tmp_path / "back" / "run")
    assert vm.get("/tmp/tree", tmp_path / "back") == tmp_path / "back" / "tree"


def test_a_guest_cannot_write_outside_of_the_copy(vm: VM, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    # A `tar` of the guest's own: a link, and then a file that would be written through it.
    vm.run("mkdir -p /usr/local/bin /tmp/evil /tmp/e1 /tmp/e2/a; echo bad > /tmp/e2/a/f", check=True)
    vm.run(["ln", "-s", str(tmp_path / "outside"), "/tmp/e1/a"], check=True)
    script = "busybox tar -c -f - -C /tmp/e1 ./a | head -c 512; exec busybox tar -c -f - -C /tmp/e2 ./a/f"
    vm.write_file("/usr/local/bin/tar", f"#!/bin/sh\n{script}\n", mode=0o755)
    try:
        with pytest.raises(OSError, match="File exists"):
            vm.get("/tmp/evil", tmp_path / "copy")
    finally:
        vm.run("rm /usr/local/bin/tar")
    assert [path.name for path in tmp_path.rglob("*")] == ["outside"]


# The console


def test_typing_and_waiting_for_text(vm: VM) -> None:
    vm.console.sendline("echo $((6 * 7))-ok")
    match = vm.console.expect(r"(\d+)-ok\r\n", timeout=30)
    assert match[1] == b"42"
    vm.console.send("echo first; echo sec''ond\r")
    assert vm.console.expect("second\r", "first\r", timeout=30)[0] == b"first\r"
    vm.console.expect(b"second", timeout=30)
    with pytest.raises(polyvisor.VMTimeoutError, match="did not show 'never'"):
        vm.console.expect("never", timeout=0.05)
    with pytest.raises(ValueError):
        vm.console.expect()
    assert "42-ok" in vm.console.log


def test_console_output_since(vm: VM) -> None:
    position = vm.console.position
    vm.run("echo to the console > /dev/ttyS0; stty < /dev/ttyS0 > /dev/null")
    vm.console.expect("to the console", timeout=30)
    assert vm.console.since(position).startswith("to the console")
    assert vm.console.tail(1)


# Inside


def test_registers_and_symbols(vm: VM) -> None:
    with vm.paused():
        with pytest.raises(polyvisor.VMError, match="stands still"):
            _ = vm.symbols
        pc = vm.cpu[0].pc
        assert pc == vm.cpu[0].pc and vm.cpu[1].started
        vm.cpu[0].x["t6"], before = 0x1234, vm.cpu[0].x["t6"]
        assert vm.cpu[0].x[31] == 0x1234 and vm.cpu[0].x["zero"] == 0
        vm.cpu[0].x["t6"] = before
    count = vm.cpu[0].instructions
    vm.run("true")
    assert vm.cpu[0].instructions > count
    with pytest.raises(AttributeError, match="nosuch"):
        _ = vm.cpu[0].nosuch
    with pytest.raises(KeyError, match="eax"):
        _ = vm.cpu[0].x["eax"]
    assert vm.symbols["linux_banner"] > 2**63
    assert vm.symbols.find(vm.symbols["schedule"] + 2) == ("schedule", 2)


def test_memory_by_physical_and_virtual_address(vm: VM) -> None:
    banner = vm.run("cat /proc/version").stdout.strip().encode()
    address = vm.symbols["linux_banner"]
    virtual = vm.memory.virtual()
    assert virtual[address : address + 13] == b"Linux version" == banner[:13]
    assert virtual[address] == ord("L")
    base = 0x8000_0000
    end = base + vm.config.memory
    saved = vm.memory[end - 8 : end]
    vm.memory[end - 8 : end] = b"polyviso"
    assert vm.memory[end - 8 : end] == b"polyviso"
    vm.memory[end - 8 :] = saved
    with pytest.raises(LookupError, match="nothing is mapped"):
        virtual.read(8, 4)
    with pytest.raises(Exception, match="no memory or device"):
        vm.memory.read(end, 1)
    for wrong in (slice(4, 2), slice(None, 4), slice(0, 8, 2)):
        with pytest.raises(ValueError):
            _ = vm.memory[wrong]
    with pytest.raises(ValueError, match="5 bytes"):
        vm.memory[base : base + 4] = b"12345"


def test_looking_at_memory_changes_nothing_of_a_hart(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    hart = vm.machine.board.harts[0]
    address = vm.symbols["linux_banner"]
    data_context = rv64.hooks["data_context"]

    def driven(cpu: object) -> object:
        """A device interrupts while the hart stands still."""
        hart.line("meip").set(True)
        return data_context(cpu)

    with vm.paused():
        monkeypatch.setitem(rv64.hooks, "data_context", driven)
        assert vm.memory.virtual()[address : address + 5] == b"Linux"
        assert int(hart.state.line_meip) == 1
        hart.line("meip").set(False)


def test_a_machine_that_stands_still(vm: VM) -> None:
    with vm.paused():
        vm.pause()
        count = vm.cpu[0].instructions
        with pytest.raises(polyvisor.VMTimeoutError):
            vm.run("true", timeout=0.2)
        assert vm.cpu[0].instructions == count
        vm.resume()
    assert vm.run("echo again", timeout=30).stdout == "again\n"
    with pytest.raises(polyvisor.VMError, match="does not stand still"):
        vm.resume()


def test_what_a_machine_says_of_itself(vm: VM) -> None:
    assert repr(vm) == "<VM debian: 512 MiB, 2 harts, running>"
    assert [event.kind for event in vm.events][:2] == ["started", "ready"]
    with pytest.raises(ValueError, match="no events 'nosuch'"):
        vm.events.wait("nosuch")
    with pytest.raises(polyvisor.VMTimeoutError):
        vm.events.wait("stopped", 0.01)
    with pytest.raises(polyvisor.VMError, match="already"):
        vm.start()
    with pytest.raises(polyvisor.VMTimeoutError):
        vm.wait(0.01)


# Its life


def test_a_reset_starts_it_again_and_power_off_ends_it() -> None:
    with VM(guest_image(), timeout=60) as vm:
        vm.write_file("/tmp/there", "x")
        with pytest.raises((polyvisor.StoppedError, polyvisor.VMTimeoutError)):
            vm.run("reboot -f; sleep 100")
        vm.events.wait("ready", 60, count=2)
        assert not vm.run("cat /tmp/there").ok
        vm.restart()
        assert vm.run("echo back").stdout == "back\n"  # waits until it is
        assert [event.kind for event in vm.events].count("reset") == 2
        process = vm.popen("sleep 1000")
        with pytest.raises(polyvisor.StoppedError, match=r"it has ended; the console ends:\n(.|\n)*Power down"):
            vm.run("poweroff -f; sleep 100")
        with pytest.raises(ConnectionError):
            process.wait(60)
        assert vm.wait(60) == 0 and not vm.running and vm.exit_code == 0
        for attempt in (lambda: vm.run("true"), lambda: vm.read_file("/x"), lambda: vm.console.send("x")):
            with pytest.raises(polyvisor.StoppedError):
                attempt()
        with pytest.raises(polyvisor.StoppedError, match="ended before its console showed"):
            vm.console.expect("something", timeout=60)
        assert "Power down" in vm.console.log
        assert vm.stop() == 0 and isinstance(vm.cpu[0].pc, int)
        vm.kill()
        assert "ended with 0" in repr(vm)


def test_without_reboot_a_reset_is_the_end_and_a_lost_agent_is_noticed() -> None:
    with VM(guest_image(), reboot=False, timeout=60) as vm:
        process = vm.popen("sleep 1000")
        for command in ("for p in $(pidof agent); do kill -9 $p; done", "true"):
            with pytest.raises(polyvisor.StoppedError, match="its agent is gone"):
                vm.run(command)
        with pytest.raises(ConnectionError):
            process.wait(60)
        vm.console.sendline("reboot -f")
        vm.events.wait("stopped", 60)
        assert not any(event.kind == "reset" for event in vm.events)


def test_power_is_cut_where_the_guest_does_not_answer() -> None:
    vm = VM(guest_image(), timeout=60).boot()
    vm.pause()
    vm.stop(0.1)
    assert not vm.running
    with pytest.raises(polyvisor.VMError, match="make a new VM"):
        vm.start()


def test_a_boot_that_fails_says_what_the_console_said(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    vm = VM(kernel=guest_image().kernel, initrd=tmp_path / "empty", agent=True, reboot=False, append="panic=-1")
    with pytest.raises(polyvisor.BootError, match=r"ended while it booted; its console ends:\n(.|\n)*panic"):
        vm.boot(60)
    with pytest.raises(polyvisor.StoppedError, match="is not running"):
        vm.run("true")


def test_a_boot_that_takes_too_long() -> None:
    vm = VM(guest_image(), timeout=0.1)
    with pytest.raises(polyvisor.VMTimeoutError, match=r"no agent answered within 0.1 seconds"), vm:
        pass
    assert not vm.running


@pytest.mark.slow
def test_an_initramfs_of_ones_own_with_the_agent() -> None:
    image = guest_image()
    vm = VM(kernel=image.kernel, initrd=image.initrd, append="quiet", agent=True, timeout=60)
    with vm:
        assert vm.run("echo hi").stdout == "hi\n"


@pytest.mark.slow
def test_machines_without_an_agent() -> None:
    with VM(guest_image(), agent=False, timeout=60) as vm:
        vm.console.expect("powers the machine off")
        with pytest.raises(polyvisor.VMError, match="has no agent"):
            vm.run("true")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "say what to run"), ({"kernel": "/nosuch"}, "there is no such file"), ({"kernel": "/"}, "is a directory"),
        ({"program": "/nosuch"}, "no such file"), ({"image": "x", "program": __file__}, "not several"),
        ({"image": "nosuch"}, "nosuch"), ({"kernel": __file__, "memory": "1K"}, "16M at least"),
        ({"kernel": __file__, "memory": "lots"}, "512M or 2G"), ({"kernel": __file__, "memory": "9999T"}, "at most"),
    ],
    ids=repr,
)  # fmt: skip
def test_mistakes_are_told_at_once(options: dict[str, str], says: str) -> None:
    with pytest.raises(Exception, match=says):
        VM(**options)  # type: ignore[arg-type]


def test_a_machine_is_started_once_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = VM(program=__file__, tier="reference")
    begun: list[int] = []

    def begin() -> None:
        begun.append(1)
        time.sleep(0.2)
        vm._machine = Machine(vm.config, vm.console.feed)

    monkeypatch.setattr(vm, "_begin", begin)
    threads = [threading.Thread(target=vm.boot) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begun == [1] and vm.running
    with pytest.raises(polyvisor.VMError, match="started already"):
        vm.start()
    vm.kill()


def test_who_hears_the_console_can_cut_the_power(tmp_path: Path) -> None:
    """That is a thread of the machine's own, which must not wait for its own end."""
    path = tmp_path / "program"
    path.write_bytes(elf("li t0, 0x10000000\nli t1, 0x78\nagain: sb t1, 0(t0)\nj again\n"))
    heard: list[bytes] = []

    def listen(data: bytes) -> None:
        heard.append(data)
        vm.kill()

    vm = VM(program=path, tier="reference", on_output=listen)
    vm.start()
    assert vm.has_ended(20) and b"".join(heard) == b"x"
    vm.kill()


def test_who_waits_for_the_end_hears_of_what_fails_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(elf(POWER_OFF))
    vm = VM(program=path, tier="reference")

    def fail() -> None:
        raise RuntimeError("the recording")

    monkeypatch.setattr(vm._recording, "close", fail)
    with pytest.raises(RuntimeError, match="the recording"):
        vm.start().wait(20)


def test_whatever_is_sent_to_a_machine_has_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYVISOR_RUN", str(tmp_path))
    server = ControlServer(VM(kernel=__file__, name="asked"))
    for line in (
        "", "5", "[]", "{}", '{"op": 5}', '{"op": "agent", "timeout": "x"}', '{"op": "snapshot"}', "[" * 2000,
        '{"op": "console", "since": Infinity}', '{"op": "console", "since": NaN}',
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(tmp_path / "asked.sock"))
            connection.sendall(line.encode() + b"\n")
            assert (read_line(connection, 4096) or b"").startswith(b'{"error": "'), line
    server.close()


def test_who_waits_for_a_machine_does_not_start_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has its name before it starts, and whoever has started it in the background waits for it at once."""
    monkeypatch.setenv("POLYVISOR_RUN", str(tmp_path))
    vm = VM(kernel=__file__, agent=True, name="early")
    server = ControlServer(vm)
    machine = RemoteVM("early")
    for operation in ("wait_ready", "agent"):
        with pytest.raises(polyvisor.VMError, match=r"no agent answered within 0\.1 seconds"):
            machine.ask(operation, timeout=0.1)
    assert not vm.running and "new" in repr(vm)
    server.close()


def test_a_machine_that_cannot_start_leaves_its_disks(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(65536))
    (tmp_path / "program").write_text("no program")
    vm = VM(program=tmp_path / "program", disks=[f"{disk},snapshot"], tier="reference")
    with pytest.raises(LoadError, match="ELF"):
        vm.start()
    open_disk(disk, False).close()


def test_what_cannot_run_yet() -> None:
    vm = VM(guest_image())
    for attempt in (lambda: vm.run("true"), lambda: vm.machine, lambda: vm.cpu[0].pc, lambda: vm.pause()):
        with pytest.raises(polyvisor.StoppedError):
            attempt()
    assert not vm.running and vm.stop() is None and "new" in repr(vm)
