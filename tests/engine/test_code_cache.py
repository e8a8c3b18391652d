"""Compiled code on disk: whatever happens to the files, what is read is whole or is not used."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys

import pytest

from polyvisor.engine.codecache import CodeCache
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import NativeCode
from polyvisor.isa.riscv import rv64


def damage_truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_empty(data: bytes) -> bytes:
    return b""


def damage_header(data: bytes) -> bytes:
    return b"x" + data[1:]


def damage_bit(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def damage_append(data: bytes) -> bytes:
    return data + b"\0"


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_empty, damage_header, damage_bit, damage_append], ids=lambda d: d.__name__[7:]
)
def test_a_damaged_unit_is_not_used(tmp_path, damage):
    cache = CodeCache("key", tmp_path)
    cache.put("unit", bytes(range(256)) * 8)
    (file,) = cache.directory.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("unit") is None
    cache.put("unit", b"anew")
    assert cache.get("unit") == b"anew"


def test_a_unit_under_anothers_name_is_not_used(tmp_path):
    cache = CodeCache("key", tmp_path)
    cache.put("one", b"1")
    (file,) = cache.directory.iterdir()
    cache.put("two", b"2")
    (other,) = set(cache.directory.iterdir()) - {file}
    other.replace(file)
    assert cache.get("one") is None


def test_damaged_code_is_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path))
    monkeypatch.setenv("POLYVISOR_WORKERS", "0")
    first = NativeCode(rv64)
    first.handler(1)
    assert first.compiled == 2
    for file in first.cache.directory.iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    second = NativeCode(rv64)
    assert second.warm() == 0
    second.handler(1)
    assert second.compiled == 2
    third = NativeCode(rv64)
    assert third.warm() == len(third.units.group(1))
    assert third.compiled == 0


def test_a_disk_that_cannot_be_used(tmp_path):
    (tmp_path / "handlers").write_text("in the way")
    cache = CodeCache("key", tmp_path)
    cache.put("unit", b"content")
    assert cache.get("unit") is None


def _work(root: str, seed: int, failures: multiprocessing.Queue) -> None:
    os.environ["POLYVISOR_CACHE"] = root
    cache = CodeCache("key")
    for n in range(300):
        name = f"unit {n % 5}"
        found = cache.get(name)
        if found is not None and (len(found) != 50_000 or len(set(found)) != 1):
            failures.put(f"process {seed}: half a unit")
        cache.put(name, bytes([seed]) * 50_000)


def test_many_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    workers = [context.Process(target=_work, args=(str(tmp_path), n, failures)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert failures.empty()
    assert len(list((tmp_path / "handlers" / "key").iterdir())) == 5


LOOSE = '''
from polyvisor.adl import *
from {constants} import NUMBER

toy = Architecture("loose", unit=4, max_length=4)

@toy.state
class Cpu(State):
    pc = Field(u64)
    r = Registers(u64, 2)

@toy.hook("on_trap")
def on_trap(cpu, cause: u64):
    cpu.next_pc = u64(0)

@toy.hook("on_illegal")
def on_illegal(cpu, word: u64):
    raise Trap(1)

@toy.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32):
    raise Trap(2)

@function
def helper(cpu) -> u64:
    return u64({own} + NUMBER)

@toy.instruction("00000001 xxxxxxxx xxxxxxxx xxxxxxxx", "one")
def one(cpu):
    cpu.r[1] = helper(cpu)
'''


def test_a_changed_helper_of_a_script_is_compiled_anew(tmp_path, monkeypatch):
    """All of the module counts, and what it imports from beside it, not only the instructions' own lines."""
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path / "cache"))
    found = []
    for own, number in ((5, 0), (6, 0), (6, 1), (5, 0)):
        directory = tmp_path / f"{own}{number}{len(found)}"
        directory.mkdir()
        (directory / "loose_constants.py").write_text(f"NUMBER = {number}\n")
        (directory / "loose_description.py").write_text(LOOSE.format(own=own, constants="loose_constants"))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(directory))
            for name in ("loose_constants", "loose_description"):
                sys.modules.pop(name, None)
            toy = importlib.import_module("loose_description").toy
            memory = Memory()
            memory.add_ram(0, 4096)
            memory.write(0, b"\0\0\0\1")
            code = NativeCode(toy)
            cpu = Cpu(code, memory, CodePages(code, memory))
            cpu.step()
            found.append((int(cpu.state.r[1]), code.compiled))
            memory.close()
    assert found == [(5, 2), (6, 2), (7, 2), (5, 0)]
