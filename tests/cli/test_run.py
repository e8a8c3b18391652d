"""`polyvisor run` as a user calls it: real kernels, pipes, exit statuses, mistakes."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from polyvisor.network.slirp import SlirpMissingError, library
from polyvisor.vm.equipment import Share
from polyvisor.vm.equipment.share import check_tags
from support.guests import guest_image

FIRMWARE = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin")


def run(*arguments: str, stdin: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "polyvisor", "run", *arguments], input=stdin, capture_output=True, timeout=timeout
    )


def linux(command: str | None = None) -> list[str]:
    image = guest_image()
    return [
        "--kernel", str(image.kernel), "--initrd", str(image.initrd), "--append", image.command_line(run=command),
    ]


def test_all_output_arrives_before_the_power_goes() -> None:
    done = run(*linux("head -c 3000 /dev/zero | tr '\\0' x"), "--cpus", "2")
    assert done.stdout.count(b"x") == 3000


@pytest.mark.parametrize("cpus", [1, 2])
def test_linux_boots_and_passes_its_exit_status_on(cpus: int) -> None:
    done = run(*linux("uname -m; nproc; exit 7"), "--cpus", str(cpus))
    assert done.returncode == 7, done.stdout + done.stderr
    assert done.stdout.split() == [b"riscv64", str(cpus).encode()]


def test_disks_can_be_on_pci(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"hello, pci\n".ljust(4096, b"."))
    done = run(*linux("head -n 1 /dev/vda; readlink /sys/block/vda/device"), "--pci", "--disk", f"{disk},ro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == b"hello, pci"
    assert b"virtio" in done.stdout.splitlines()[1]


@pytest.mark.skipif(not FIRMWARE.exists(), reason="Debian's opensbi is not installed")
@pytest.mark.parametrize("cpus", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_linux_boots_through_real_firmware(cpus: int) -> None:
    done = run(*linux("nproc"), "--firmware", str(FIRMWARE), "--cpus", str(cpus))
    assert done.returncode == 0, done.stderr
    assert b"OpenSBI" in done.stdout
    assert done.stdout.split()[-1] == str(cpus).encode() or b"reboot: Power down" in done.stdout


def test_commands_come_through_a_pipe() -> None:
    done = run(*linux(), stdin=b"echo two plus two is $((2 + 2))\nexit 3\n")
    assert done.returncode == 3, done.stderr
    assert b"two plus two is 4" in done.stdout


def test_directories_are_shared(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("shared\n")
    command = "cat here; echo made > made; cp here /work/deep/copy; cat /mnt/kept/here; ! touch /mnt/kept/x"
    done = run(
        *linux(f"cd /mnt/host && {command}"),
        *("--share", str(tmp_path), "--share", f"{tmp_path}:/work/deep", "--share", f"{tmp_path}:kept,ro"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(b"shared") == 2
    assert (tmp_path / "made").read_text() == "made\n" and (tmp_path / "copy").read_text() == "shared\n"
    assert not (tmp_path / "x").exists()


def test_what_share_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("odd:name", "odd,ro"):
        (tmp_path / name).mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("odd:socket")
    for text, wanted in {
        ".": Share(".", "host", None, False, "guest"),
        "/a/b:src": Share("/a/b", "src", None, False, "guest"),
        "/a:b:src,ro": Share("/a:b", "src", None, True, "guest"),
        ".:/usr/src,owner=host,ro": Share(".", "usr-src", "/usr/src", True, "host"),
        "odd:name": Share("odd:name", "host", None, False, "guest"),
        "odd:name:x,rw": Share("odd:name", "x", None, False, "guest"),
        "odd,ro": Share("odd,ro", "host", None, False, "guest"),
        "odd,ro,ro": Share("odd,ro", "host", None, True, "guest"),
        ".:src,via=virtiofs,ro": Share(".", "src", None, True, "host", "virtiofs"),
        ".,owner=host,via=9p": Share(".", "host", None, False, "host", "9p"),
        "odd:socket,via=virtiofs": Share("odd:socket", "host", None, False, "host", "virtiofs"),
        "odd:socket:x,via=virtiofs": Share("odd:socket", "x", None, False, "host", "virtiofs"),
    }.items():
        assert Share.parse(text) == wanted


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([".:/"], "cannot be mounted at '/'"),
        ([".:/a b"], "cannot be mounted at '/a b'"),
        ([":tag"], "give a directory"),
        ([""], "give a directory"),
        ([".", ".,ro"], "shared as 'host': name them"),
        ([".,via=nfs"], "via=9p and via=virtiofs"),
        ([".,via=virtiofs,owner=guest"], "always the host's"),
    ],
)
def test_shares_that_make_no_sense(texts: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_tags([Share.parse(text) for text in texts])
    assert "\n" not in str(caught.value)


def test_the_end_of_a_pipe_ends_the_shell() -> None:
    done = run(*linux(), stdin=b"")
    assert done.returncode == 0, done.stderr


def test_a_network_and_its_capture(tmp_path: Path) -> None:
    try:
        library()
    except SlirpMissingError as error:
        pytest.skip(str(error))
    path = tmp_path / "net.pcapng"
    arguments = linux("ip addr show eth0; cat /sys/class/net/eth0/address")
    arguments[-1] += " polyvisor.net=wait"
    done = run(*arguments, "--net", "user,forward=tcp:0:80,restricted,mac=52:54:00:aa:bb:cc", "--capture", str(path))
    assert done.returncode == 0, done.stderr
    assert b"10.0.2.15" in done.stdout and b"52:54:00:aa:bb:cc" in done.stdout
    data = path.read_bytes()
    assert data[:4] == b"\x0a\x0d\x0d\x0a" and b"eth0" in data and data.count(bytes.fromhex("525400aabbcc")) > 2


def test_reboot_starts_again_unless_told_otherwise() -> None:
    done = run(*linux("reboot -f; sleep 60"), "--no-reboot")
    assert done.returncode == 0, done.stderr


class Terminal:
    """A run on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polyvisor", "run", *arguments], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )
        self.seen = b""

    def expect(self, text: bytes, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen[-2000:]!r}"
            readable, _, _ = select.select([self.master], [], [], left)
            if readable:
                self.seen += os.read(self.master, 65536)
        self.seen = self.seen.split(text, 1)[1]

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def close(self) -> int:
        try:
            status = self.process.wait(30)
            # What lflag says now is what the user's shell would find.
            assert termios.tcgetattr(self.slave)[:4] == self.before[:4], "the terminal was not restored"
            return status
        finally:
            self.process.kill()
            os.close(self.master)
            os.close(self.slave)


def test_a_terminal_has_a_shell_with_job_control() -> None:
    terminal = Terminal(*linux())
    terminal.expect(b"powers the machine off")
    terminal.type(b"sleep 100\r")
    time.sleep(1)
    terminal.type(b"\x03")  # Ctrl-C is the guest's
    terminal.type(b"echo status $?\r")
    terminal.expect(b"status 130")
    terminal.type(b"\x01c")
    terminal.expect(b"(polyvisor) ")
    terminal.type(b"info\n")
    terminal.expect(b"hart 0: started")
    terminal.type(b"cont\n")
    terminal.type(b"exit 5\r")
    assert terminal.close() == 5


def test_the_escape_cuts_the_power_and_restores_the_terminal() -> None:
    terminal = Terminal(*linux())
    terminal.expect(b"powers the machine off")
    terminal.type(b"\x01x")
    assert terminal.close() == 0


def test_a_signal_restores_the_terminal() -> None:
    terminal = Terminal(*linux())
    terminal.expect(b"powers the machine off")
    terminal.process.terminate()
    assert terminal.close() == 143


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nosuch"], "there is no image or file 'nosuch'"),
        (["./nosuch.elf"], "there is no such file"),
        (["--kernel", "/nonexistent/vmlinuz"], "there is no such file"),
        (["--kernel", "/"], "is a directory"),
        ([], "say what to run"),
        (["--kernel", "{empty}"], "the kernel file is empty"),
        (["--kernel", "{text}"], "not a kernel"),
        (["--kernel", "{x86}"], "is for x86"),
        (["--kernel", "{arm64}"], "64-bit Arm"),
        (["{x86elf}"], "not RISC-V"),
        (["--kernel", "{truncated}"], "truncated"),
        (["--kernel", "{linux}", "--memory", "20M"], "too small"),
        (["--kernel", "{linux}", "--memory", "lots"], "512M or 2G"),
        (["--kernel", "{linux}", "--memory", "1M"], "at least"),
        (["--kernel", "{linux}", "--tier", "warp"], "interpreter, reference"),
        (["--kernel", "{linux}", "--initrd", "/nonexistent"], "there is no such file"),
        (["--kernel", "{linux}", "--disk", "/nonexistent/disk"], "/nonexistent/disk"),
        (["--kernel", "{linux}", "--share", "/nonexistent"], "/nonexistent: cannot share the directory: No such file"),
        (["--kernel", "{linux}", "--share", ".:a tag"], "tag 'a tag': give up to 64"),
        (["--kernel", "{linux}", "--share", ".:a tag,via=virtiofs"], "tag 'a tag': give up to 36"),
        (["--kernel", "{linux}", "--share", "/nonexistent,via=virtiofs"], "'/nonexistent' is not a directory"),
        (["--kernel", "{linux}", "--share", ".:/" + "x" * 60, "--append", "y" * 1000], "do not fit"),
        (["{x86elf}", "--share", ".:/src"], "goes with an image"),
        (["--kernel", "{linux}", "--stats-json", "/nonexistent/x"], "--stats-json '/nonexistent/x': No such file"),
        (["--kernel", "{linux}", "--net", "tap"], "none, user, passt"),
        (["--kernel", "{linux}", "--net", "user,speed=9"], "'user' has no option 'speed=9'"),
        (["--kernel", "{linux}", "--net", "user,forward=80"], "forward=tcp:8080:80"),
        (["--kernel", "{linux}", "--net", "user,forward=tcp:70000:80"], "host port 70000"),
        (["--kernel", "{linux}", "--net", "user,mac=1:2:3"], "six bytes"),
        (["--kernel", "{linux}", "--capture", "x"], "goes with a network"),
        (["--kernel", "{linux}", "--net", "user", "--capture", "/nonexistent/x"], "No such file"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    def make(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    files = {
        "empty": make("empty", b""),
        "text": make("text", b"hello world\n" * 100),
        "x86": make("x86", bytes(0x202) + b"HdrS" + bytes(1000)),
        "arm64": make("arm64", bytes(0x38) + b"ARMd" + bytes(1000)),
        "x86elf": sys.executable,
    }
    if any("{linux}" in a or "{truncated}" in a for a in arguments):
        files["linux"] = str(guest_image().kernel)
        files["truncated"] = make("truncated", guest_image().kernel.read_bytes()[: 1 << 20])
    done = run(*(a.format(**files) for a in arguments), timeout=60)
    assert done.returncode == 2
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("polyvisor: ")
    assert says in lines[0]


def test_an_unknown_option_is_refused() -> None:
    done = run("--frobnicate")
    assert done.returncode == 2
    assert b"--frobnicate" in done.stderr
