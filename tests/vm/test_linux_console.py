"""Linux's own drivers of the console and the balloon."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.balloon import BalloonDevice
from polyvisor.devices.virtio.console import ConsoleDevice, Port
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.vm.machine import Machine
from support.guests import guest_image

WAIT = 90
MEBI = 1 << 20
"""Bytes."""


@contextmanager
def linux(
    command: str, *devices: VirtioDevice, memory: int = 256 * MEBI, append: str = ""
) -> Iterator[tuple[Machine, bytearray]]:
    """A machine that runs ``command``, started, and what its serial console prints."""
    image = guest_image()
    output = bytearray()
    makers: list[Callable[[], VirtioDevice]] = [lambda device=device: device for device in devices]  # type: ignore[misc]
    with Machine(VirtConfig(memory=memory, devices=makers), output.extend) as machine:
        kernel, initrd = image.kernel.read_bytes(), image.initrd.read_bytes()
        machine.board.load_linux(kernel, initrd, f"{image.command_line(run=command)} {append}")
        machine.start()
        yield machine, output


def finish(machine: Machine, output: bytearray) -> str:
    assert machine.wait(WAIT), output.decode(errors="replace")[-2000:]
    assert machine.exit_code == 0, output.decode(errors="replace")[-2000:]
    return output.decode(errors="replace")


def read_until(port: Port, text: bytes) -> bytes:
    got = b""
    while text not in got:
        got += port.read(WAIT)
    return got


def test_memory_that_its_own_reservations_would_fill() -> None:
    with linux("grep Cma /proc/meminfo", memory=192 * MEBI) as (machine, output):
        assert re.search(r"CmaTotal: +0 kB", finish(machine, output))


def test_a_kernel_that_dies_early_says_why() -> None:
    with linux("true", memory=192 * MEBI, append="cma=128M") as (machine, output):
        end = time.monotonic() + WAIT
        while b"end Kernel panic" not in output and time.monotonic() < end:
            assert not machine.wait(0.1)
    assert b"Failed to allocate" in output


def test_a_console_has_output_input_and_a_size() -> None:
    device = ConsoleDevice(columns=91, rows=37)
    command = (
        "exec </dev/hvc0 >/dev/hvc0 2>&1; stty -echo; stty size; read line; echo got $line; read line; stty size;"
        " cat /sys/class/tty/hvc0/dev"
    )
    with linux(command, device) as (machine, output):
        assert b"37 91\r\n" in read_until(device.console, b"91\r\n")
        device.console.write(b"a line\n")
        read_until(device.console, b"got a line\r\n")
        device.resize(100, 50)
        device.console.write(b"\n")
        assert read_until(device.console, b"229:0").split() == [b"50", b"100", b"229:0"]
        finish(machine, output)


def test_ports_have_names_and_are_opened_and_closed() -> None:
    told: list[bool] = []
    log = bytearray()
    ports = [Port("org.example.log", on_data=log.extend, on_open=told.append), Port("org.example.question")]
    device = ConsoleDevice(ports)
    command = (
        "cat /sys/class/virtio-ports/vport*p[12]/name; echo one line >/dev/vport1p1; echo another >/dev/vport1p1;"
        " cat /dev/vport1p2"
    )
    with linux(command, device) as (machine, output):
        assert ports[1].write(b"The answer is 42\n") == 17  # before the guest has booted
        assert ports[1].wait_open(WAIT)
        ports[1].close()
        text = finish(machine, output)
    assert text.split()[:2] == ["org.example.log", "org.example.question"]
    assert "The answer is 42" in text and log == b"one line\nanother\n"
    assert told == [True, False, True, False]


def test_ten_megabytes_there_and_back() -> None:
    """A slow reader makes all wait, and no byte is lost."""
    port = Port("echo")
    size = 10 * MEBI
    with linux(f"exec 3<>/dev/vport1p1; head -c {size} <&3 >&3", ConsoleDevice([port])) as (machine, output):
        data = os.urandom(MEBI) * (size // MEBI)
        writer = threading.Thread(target=port.write, args=(data,))
        writer.start()
        assert port.wait_open(WAIT)
        got = bytearray()
        pauses = 0
        while piece := port.read(WAIT, size=500_000):
            got += piece
            if len(got) // MEBI > pauses:
                pauses += 1
                time.sleep(0.05)
        writer.join(WAIT)
        assert bytes(got) == data and port.waiting == 0
        finish(machine, output)


def resident(machine: Machine) -> int:
    """Bytes of the host's memory that the guest's RAM takes."""
    return sum(os.fstat(ram.fd).st_blocks * 512 for ram in machine.board.memory.ram)


def meminfo(port: Port) -> dict[str, int]:
    """/proc/meminfo of the guest, in bytes."""
    port.write(b"cat /proc/meminfo; echo done\n")
    lines = read_until(port, b"done").decode().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest}


# Takes memory, and frees it.
FILL = b"dd if=/dev/zero of=/tmp/x bs=1M count=100; echo done\n"
FREE = b"rm /tmp/x; echo done\n"


def shell() -> tuple[Port, str]:
    """A port to type at a shell by. (A port can be opened only once at a time.)"""
    return Port("shell"), "exec sh 0<>/dev/vport1p1 1>&0"


def test_the_balloon_takes_memory_from_the_guest_and_gives_it_back() -> None:
    port, command = shell()
    balloon = BalloonDevice(deflate_on_oom=False)
    with linux(command, ConsoleDevice([port]), balloon) as (machine, output):
        for line in (FILL, FREE):
            port.write(line)
            read_until(port, b"done")
        before, took = meminfo(port), resident(machine)
        statistics = balloon.statistics(WAIT)
        assert statistics["total_memory"] == before["MemTotal"]
        assert abs(statistics["free_memory"] - before["MemFree"]) < 16 * MEBI
        balloon.target = 100 * MEBI
        assert balloon.wait(WAIT) and balloon.actual == 100 * MEBI
        inflated = meminfo(port)
        assert before["MemTotal"] - inflated["MemTotal"] == 100 * MEBI
        assert before["MemFree"] - inflated["MemFree"] > 80 * MEBI
        # What the guest had dirtied and freed has left the host, unless free page reporting had been faster.
        assert resident(machine) < 256 * MEBI - 100 * MEBI and resident(machine) < took
        balloon.target = 0
        assert balloon.wait(WAIT)
        assert meminfo(port)["MemTotal"] == before["MemTotal"]
        port.write(FILL)  # the pages can be used again
        read_until(port, b"done")
        port.write(b"exit\n")
        finish(machine, output)


def test_free_pages_are_reported() -> None:
    port, command = shell()
    with linux(command, ConsoleDevice([port]), BalloonDevice()) as (machine, output):
        port.write(FILL)
        read_until(port, b"done")
        full = resident(machine)
        assert full > 100 * MEBI
        port.write(FREE)
        read_until(port, b"done")
        # The guest reports after some seconds; nothing else makes the number smaller.
        deadline = time.monotonic() + WAIT
        while resident(machine) > full - 50 * MEBI:
            assert time.monotonic() < deadline, f"{full} bytes at first, {resident(machine)} now"
            time.sleep(0.1)
        port.write(b"exit\n")
        finish(machine, output)


def test_a_guest_that_cannot_spare_more_keeps_running() -> None:
    port, command = shell()
    balloon = BalloonDevice()
    with linux(command, ConsoleDevice([port]), balloon, memory=128 * MEBI) as (machine, output):
        assert port.wait_open(WAIT)
        balloon.target = 4096 * MEBI
        while balloon.actual < 16 * MEBI:
            assert not machine.wait(0.05)
        balloon.target = 0
        assert balloon.wait(WAIT)
        port.write(b"exit\n")
        finish(machine, output)
