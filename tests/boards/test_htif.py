"""The host-target interface with programs played by the test."""

import errno

import pytest

from polyvisor.boards.htif import Htif
from polyvisor.engine.memory import Memory

BASE = 0x8000_0000
TOHOST = BASE + 0x1000
FROMHOST = BASE + 0x1040
BLOCK = BASE + 0x2000


class Program:
    def __init__(self, fromhost=FROMHOST):
        self.memory = Memory()
        self.memory.add_ram(BASE, 0x10000)
        self.printed = b""
        self.htif = Htif(self.memory, TOHOST, fromhost, self._output)

    def _output(self, data):
        self.printed += data

    def put(self, address, *values):
        for index, value in enumerate(values):
            self.memory.write(address + 8 * index, (value % 2**64).to_bytes(8, "little"))

    def get(self, address):
        return int.from_bytes(self.memory.read(address, 8), "little", signed=True)

    def send(self, value):
        self.put(TOHOST, value)
        return self.htif.poll()

    def call(self, *words):
        self.put(BLOCK, *words)
        return self.send(BLOCK)


@pytest.fixture
def program():
    return Program()


def test_idle(program):
    assert program.htif.poll() is None


@pytest.mark.parametrize(("value", "code"), [(1, 0), (3, 1), (0x53B, 0x29D)])
def test_exit(program, value, code):
    assert program.send(value) == code
    assert program.htif.poll() == code


def test_putchar(program):
    for char in b"ab":
        assert program.send(0x0101 << 48 | char) is None
        assert program.get(TOHOST) == 0 and program.get(FROMHOST) == 0x0101 << 48
    assert program.printed == b"ab"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_write(program, descriptor):
    program.memory.write(BASE, b"hello")
    assert program.call(64, descriptor, BASE, 5) is None
    assert program.printed == b"hello"
    assert (program.get(BLOCK), program.get(FROMHOST), program.get(TOHOST)) == (5, 1, 0)


def test_exit_call(program):
    assert program.call(93, 7) == 7


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((64, 3, BASE, 5), errno.EBADF),
        ((64, 1, 0, 5), errno.EFAULT),
        ((64, 1, BASE, 2**64 - 1), errno.EFAULT),
        ((64, 1, 2**64 - 1, 16), errno.EFAULT),
        ((63, 0, BASE, 5), errno.ENOSYS),
        ((2**64 - 1, 0, 0, 0), errno.ENOSYS),
    ],
)
def test_refused_calls(program, words, error):
    assert program.call(*words) is None
    assert (program.get(BLOCK), program.get(FROMHOST), program.get(TOHOST)) == (-error, 1, 0)
    assert program.printed == b""


@pytest.mark.parametrize("value", [2, BASE + 0xFFF8, 0x0201 << 48 | 1, 0x0100 << 48, 0xFFFF << 48, 2**64 - 1, 5 << 48])
def test_unknown_is_dropped(program, value):
    assert program.send(value) is None
    assert program.get(TOHOST) == 0 and program.get(FROMHOST) == 0 and program.printed == b""


def test_addresses_outside_ram():
    program = Program(fromhost=8)
    assert program.send(0x0101 << 48 | 65) is None and program.printed == b"A"
    assert Htif(program.memory, 0, None, program._output).poll() is None
    silent = Program(fromhost=None)
    assert silent.send(0x0101 << 48 | 65) is None and silent.printed == b"A"
