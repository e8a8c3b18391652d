"""virtio-fs without Linux: how virtiofsd is found and started, what is said when it is gone, and its real answers."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path

import pytest
from vhost_back_end import Make, answers, eventually
from virtio_driver import DATA, Driver, every_wiring

from polyvisor.devices.virtio import fs
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.fs import ShareError, VirtioFsDevice, command_line, find_virtiofsd
from polyvisor.devices.virtio.vhost_backend import BackEndProcess
from polyvisor.devices.virtio.vhost_messages import VhostUserError

ROOM = DATA + 0x1000
INIT, LOOKUP, FORGET, STATFS = 26, 1, 2, 17

# What the two programs say of themselves, as far as it matters.
RUST = 'echo "    --shared-dir <DIR>  --socket-path <PATH>  --fd <FD>  --sandbox <SANDBOX>"'
OLD = 'echo "    --socket-path=PATH  --fd=FDNUM  -o source=PATH"'


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def real_virtiofsd() -> str:
    try:
        program = find_virtiofsd()
    except ShareError as error:
        pytest.skip(str(error))
    if os.geteuid() and "/qemu/" in program:
        pytest.skip("this virtiofsd needs root")
    return program


class Guest(Driver):
    """Sends FUSE requests over queue 1."""

    def send(self, opcode: int, body: bytes = b"", node: int = 1, room: int = 4096) -> None:
        message = struct.pack("<IIQQIIII", 40 + len(body), opcode, 77, node, 0, 0, 1, 0) + body
        self.memory.write(DATA, message)
        parts = [(DATA, 40, False), *([(DATA + 40, len(body), False)] if body else [])]
        parts += [(ROOM, 16, True), (ROOM + 16, room - 16, True)] if room else []
        self.offer(self.chain(parts))
        self.kick()

    def ask(self, opcode: int, body: bytes = b"", node: int = 1) -> tuple[int, bytes]:
        """The error, and what the answer has."""
        self.send(opcode, body, node)
        [(_, length)] = answers(self)
        size, error, unique = struct.unpack("<IiQ", self.memory.read(ROOM, 16))
        assert size == length and unique == 77
        return error, self.memory.read(ROOM + 16, size - 16)

    def begin(self) -> None:
        error, answer = self.ask(INIT, struct.pack("<IIIII11I", 7, 31, 65536, 0, 0, *[0] * 11))
        assert not error and struct.unpack_from("<I", answer)[0] == 7


def test_configuration(back_end: Make) -> None:
    device = VirtioFsDevice(back_end().path, "work")
    driver = Driver(device, queue=1)
    assert driver.reg(t.DEVICE_ID) == 26 and device.queue_sizes == (128, 1024) and device.features == 0
    config = bytes(driver.mmio.read(t.CONFIG + i, 1) for i in range(44))
    assert config == b"work".ljust(36, b"\0") + struct.pack("<I", 1) + bytes(4)
    device.close()
    with pytest.raises(ShareError, match=r"tag 'a/b'"):
        VirtioFsDevice(back_end().path, "a/b")
    with pytest.raises(ShareError, match="up to 36"):
        VirtioFsDevice(back_end().path, "x" * 37)
    with pytest.raises(ValueError, match="0 request queues"):
        VirtioFsDevice(back_end().path, request_queues=0)
    with pytest.raises(VhostUserError, match="has 2 queues; 3 are needed"):
        VirtioFsDevice(back_end().path, request_queues=2)
    device = VirtioFsDevice(back_end(queues=4).path, request_queues=3)
    assert len(device.queue_sizes) == 4 and device.config()[36] == 3
    device.close()


@every_wiring
def test_requests_fail_when_virtiofsd_is_gone(back_end: Make) -> None:
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    device = VirtioFsDevice(server.path)
    driver = Guest(device, queue=1)
    driver.send(STATFS)
    eventually(lambda: kept)
    server.die()
    assert answers(driver) == [(0, 16)]
    assert struct.unpack("<IiQ", driver.memory.read(ROOM, 16)) == (16, -errno.ENOTCONN, 77)
    assert driver.ask(LOOKUP, b"x\0") == (-errno.ENOTCONN, b"")
    driver.send(FORGET, bytes(8), room=0)
    assert answers(driver) == [(0, 0)]
    driver.offer(driver.chain([(DATA, 8, False), (ROOM, 64, True)]))  # no whole header
    driver.kick()
    assert answers(driver) == [(0, 0)] and not driver.needs_reset
    # The next one is found after a reset.
    driver.start(driver.features)
    driver.send(STATFS)
    eventually(lambda: len(kept) == 2)
    assert device.failure is None
    device.close()


def test_both_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    rust, old = script(tmp_path / "rust", RUST), script(tmp_path / "old", OLD)
    newest = script(tmp_path / "newest", RUST + "; echo --readonly")
    assert command_line(rust, "/a,b", False) == [rust, "--shared-dir=/a,b", "--log-level=error"]
    assert command_line(newest, "/a", True) == [newest, "--shared-dir=/a", "--log-level=error", "--readonly"]
    assert command_line(old, "/a,b\\c", False, ["-o", "x"]) == [
        *(old, "-o", "source=/a\\,b\\\\c", "-o", "log_level=err", "-o", "x")
    ]
    for program in (rust, old):
        command = command_line(program, "/a", True)
        assert command[:2] == ["unshare", "--mount"] and command[-len(command_line(program, "/a", False)) - 1] == "/a"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command_line(rust, "/a", False)[0] == rust
    with pytest.raises(ShareError, match="needs root; that of the package virtiofsd"):
        command_line(old, "/a", False)
    with pytest.raises(ShareError, match="cannot share read-only, except for root"):
        command_line(rust, "/a", True)
    with pytest.raises(ShareError, match="cannot be started"):
        command_line(str(tmp_path / "none"), "/a", False)


def test_finding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "_PLACES", (str(tmp_path / "none"), str(tmp_path / "there")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ShareError, match="install the package virtiofsd"):
        find_virtiofsd()
    with pytest.raises(ShareError, match="install the package virtiofsd"):
        VirtioFsDevice.spawn(tmp_path)
    there = script(tmp_path / "there", RUST)
    assert find_virtiofsd() == there
    in_path = script(tmp_path / "virtiofsd", RUST)
    assert find_virtiofsd() == in_path


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("echo first >&2; echo 'no such luck' >&2; exit 3", "virtiofsd ended with status 3: no such luck"),
        ("exit 0", "virtiofsd ended with status 0"),
        ("kill -SEGV $$", "virtiofsd was ended by SIGSEGV"),
        ("printf '\\033[31mred\\007\\n' >&2; exit 1", r"virtiofsd ended with status 1: \[31mred"),
        ("exec sleep 1000", "virtiofsd does not answer"),
    ],
)
def test_programs_that_do_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, says: str) -> None:
    monkeypatch.setattr("polyvisor.devices.virtio.vhost_session.PATIENCE", 1.0)
    first = f'[ "$1" = --help ] && {{ {RUST}; exit; }}\necho $$ > {tmp_path}/pid'
    program = script(tmp_path / "program", f"{first}\n{does}")
    with pytest.raises(VhostUserError, match=f"^{says}$"):
        VirtioFsDevice.spawn(tmp_path, program=program)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VhostUserError, match="thing cannot be started: No such file or directory"):
        VirtioFsDevice(BackEndProcess("thing", [str(tmp_path / "none")]))
    with pytest.raises(ShareError, match="is not a directory"):
        VirtioFsDevice.spawn(tmp_path / "none")


def test_one_that_stays_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyvisor.devices.virtio.vhost_backend._STOP_SECONDS", 0.2)
    text = f"trap '' TERM HUP INT; echo up > {tmp_path}/up; while :; do echo x >&2; done"
    process = BackEndProcess("thing", [script(tmp_path / "program", text)])
    with process.connect():
        eventually((tmp_path / "up").exists)
        pid = process.pid
    process.close()
    process.close()
    assert not Path(f"/proc/{pid}").exists() and process.pid is None


@every_wiring
def test_the_real_one_answers(tmp_path: Path) -> None:
    program = real_virtiofsd()
    shared = tmp_path / "odd, name"
    shared.mkdir()
    (shared / "file").write_bytes(b"x" * 1234)
    device = VirtioFsDevice.spawn(shared, program=program)
    driver = Guest(device, queue=1)
    driver.begin()
    error, entry = driver.ask(LOOKUP, b"file\0")
    assert not error and struct.unpack_from("<Q", entry, 40 + 8)[0] == 1234
    assert driver.ask(LOOKUP, b"none\0")[0] == -errno.ENOENT
    # Another boot of the same machine.
    driver.start(driver.features)
    driver.begin()
    assert not driver.ask(LOOKUP, b"file\0")[0]
    process = device._back_end
    assert isinstance(process, BackEndProcess)
    pid = process.pid
    device.close()
    assert device.failure is None and pid and not Path(f"/proc/{pid}").exists()


def test_the_real_one_can_be_killed_and_comes_again(tmp_path: Path) -> None:
    program = real_virtiofsd()
    device = VirtioFsDevice.spawn(tmp_path, program=program)
    driver = Guest(device, queue=1)
    driver.begin()
    process = device._back_end
    assert isinstance(process, BackEndProcess) and process.pid
    os.kill(process.pid, 9)
    eventually(lambda: device.failure)
    assert str(device.failure) == "virtiofsd was ended by SIGKILL"
    assert driver.ask(STATFS) == (-errno.ENOTCONN, b"")
    driver.start(driver.features)
    driver.begin()
    assert not driver.ask(STATFS)[0] and device.failure is None
    device.close()


def test_nonsense_that_the_guest_sends_is_between_it_and_virtiofsd(tmp_path: Path) -> None:
    """Whatever the real one makes of it, the machine goes on."""
    program = real_virtiofsd()
    device = VirtioFsDevice.spawn(tmp_path, program=program)
    driver = Guest(device, queue=1)
    for length in (1, 15, 40, 100):
        driver.start(driver.features)
        driver.begin()
        driver.memory.write(DATA, b"\xff" * 200)
        driver.offer(driver.chain([(DATA, length, False), (ROOM, 8, True)]))
        driver.kick()
        driver.offer(driver.chain([(ROOM, 64, True)], 4))
        driver.kick()
        driver.offer(driver.chain([(DATA, 100, False)], 8))
        driver.kick()
        driver.send(STATFS, room=4096)
        eventually(driver.used)
    driver.start(driver.features)
    driver.begin()
    assert not driver.needs_reset
    device.close()


def test_a_running_one_is_used(tmp_path: Path) -> None:
    program = real_virtiofsd()
    path = tmp_path / "socket"
    command = command_line(program, str(tmp_path), False)
    with subprocess.Popen([*command, f"--socket-path={path}"], stderr=subprocess.DEVNULL) as running:
        eventually(path.is_socket)
        device = VirtioFsDevice(path, "mine")
        driver = Guest(device, queue=1)
        driver.begin()
        assert not driver.ask(STATFS)[0]
        device.close()
        running.wait(20)
