"""The interpreter as one image in the code cache: used when it is there and whole, and made anew when it is not."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.engine.arena import CodeArena
from polyvisor.engine.codecache import CodeCache
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.handlers import CORE, QUICK_CORE
from polyvisor.engine.hostcpu import host_cpu
from polyvisor.engine.image import load_image, renew_image
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import NativeCode, native_code
from polyvisor.engine.objectcode import cache_key, optimise
from polyvisor.engine.objectfile import unit_from_object
from polyvisor.engine.objects import UnlinkableError, join
from polyvisor.engine.units import Units
from polyvisor.engine.workers import Workers
from polyvisor.isa.riscv import rv64
from support.programs import DRAM, POWER_OFF

NUMBERS = {i.name: n for n, i in enumerate(rv64.instructions, 1)}
# The handlers in the caches of these tests, and others that are in their units. Those of control registers share
# helpers, with tables of addresses.
KNOWN = ("addi", "add", "lui", "csrrw", "csrrs")
UNITS = Units(rv64)
COUNT = len({index for name in KNOWN for index in UNITS.group(NUMBERS[name])})


@pytest.fixture(scope="module")
def units_one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the cache with the core and some handlers, and no image."""
    usual = native_code(rv64)
    handlers = {usual.cache._path(UNITS.unit_name(NUMBERS[name])).name for name in KNOWN}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVISOR_WORKERS", "0")
        patch.setenv("POLYVISOR_CACHE", str(tmp_path_factory.mktemp("units")))
        found = CodeCache(cache_key(rv64))
        found.directory.mkdir(parents=True)
        for file in usual.cache.directory.iterdir():
            if file.name.startswith(("core", "helper")) or file.name in handlers:
                shutil.copy(file, found.directory)
        code = NativeCode(rv64)
        for name in KNOWN:
            code.handler(NUMBERS[name])  # what the usual cache has not got is compiled
    return found.directory


@pytest.fixture(autouse=True)
def cache(units_one_by_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CodeCache:
    """A cache of the test's own, with those units."""
    monkeypatch.setenv("POLYVISOR_WORKERS", "0")
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path))
    found = CodeCache(cache_key(rv64))
    shutil.copytree(units_one_by_one, found.directory)
    return found


def images(cache: CodeCache) -> list[Path]:
    return list(cache.directory.glob("image-*"))


def forget_units(cache: CodeCache) -> None:
    """Leave nothing but the image."""
    for file in cache.directory.iterdir():
        if not file.name.startswith("image-"):
            file.unlink()


def run(code: NativeCode, text: str, steps: int) -> list[int]:
    """Registers after some instructions."""
    memory = Memory()
    memory.add_ram(0, 1 << 16)
    memory.write(0, bytes(assemble(rv64, text)))
    cpu = Cpu(code, memory, CodePages(code, memory))
    for _ in range(steps):
        cpu.step()
    found = [int(x) for x in cpu.state.x]
    memory.close()
    return found


PROGRAM = """
    addi t0, zero, 5
    add t1, t0, t0
    csrrw zero, mscratch, t1
    csrrs t2, mscratch, zero
    csrrs t3, marchid, zero
"""


def test_what_was_linked_one_by_one_is_one_image_for_the_next_process(cache):
    first = NativeCode(rv64)
    assert first.warm() == COUNT
    (image,) = images(cache)
    forget_units(cache)
    second = NativeCode(rv64)
    assert second.warm() == COUNT
    assert [bool(x) for x in second.table] == [bool(x) for x in first.table]
    for code in (first, second):
        assert run(code, PROGRAM, 5)[5:8] == [5, 10, 10]
        assert code.compiled == 0
    assert images(cache) == [image]


def test_handlers_that_are_not_in_the_image_are_added(cache):
    NativeCode(rv64).warm()
    second = NativeCode(rv64)
    second.warm()
    # Compiled in this process; csrrci calls helpers that are in the image.
    assert run(second, "    addi t0, zero, 6\n    csrrw zero, mscratch, t0\n    csrrci t1, mscratch, 1\n", 3)[6] == 6
    assert second.compiled == 1
    third = NativeCode(rv64)
    assert not third.table[NUMBERS["csrrci"]], "the image has what it was made of"
    assert third.warm() == COUNT + len(UNITS.group(NUMBERS["csrrci"]))
    forget_units(cache)
    fourth = NativeCode(rv64)
    assert fourth.warm() == COUNT + len(UNITS.group(NUMBERS["csrrci"]))
    assert run(fourth, "    addi t0, zero, 6\n    csrrw zero, mscratch, t0\n    csrrci t1, mscratch, 1\n", 3)[6] == 6
    assert fourth.compiled == 0


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_image_is_made_anew(cache, damage):
    NativeCode(rv64).warm()
    (image,) = images(cache)
    whole = image.read_bytes()
    middle = len(whole) // 2
    other = cache._path("core")  # whole, but it is something else
    image.write_bytes(
        {"cut": whole[:middle], "bit": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
         "empty": b"", "other": other.read_bytes()}[damage]
    )  # fmt: skip
    second = NativeCode(rv64)
    assert not any(second.table)
    assert second.warm() == COUNT
    assert run(second, PROGRAM, 5)[5:8] == [5, 10, 10]
    assert second.compiled == 0
    assert image.read_bytes() == whole


def test_an_image_is_renewed_when_there_is_more(cache):
    units = Units(rv64)
    renew_image(units, cache)
    (image,) = images(cache)
    inode = image.stat().st_ino
    found = load_image(cache)
    assert found is not None
    assert len(found.missing()) == len(set(found.numbers.twins)) - COUNT
    renew_image(units, cache)
    assert image.stat().st_ino == inode, "it was written again for nothing"
    NativeCode(rv64).handler(NUMBERS["xor"])
    renew_image(units, cache)
    more = load_image(cache)
    assert more is not None
    assert len(more.missing()) == len(found.missing()) - len(UNITS.group(NUMBERS["xor"]))


def test_a_worker_makes_the_image(cache, monkeypatch):
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    done: list[object] = []
    workers = Workers(rv64)
    workers.submit("image", None, done.append)
    while not done:
        assert workers.deaths == 0
        os.sched_yield()
    found = load_image(cache)
    assert found is not None
    assert len(found.missing()) == len(set(found.numbers.twins)) - COUNT


def test_a_first_start_has_a_core_that_was_compiled_quickly_and_later_ones_the_good_one(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    monkeypatch.setattr(Workers, "submit", lambda *given, **options: None)  # they never get to it
    first = NativeCode(rv64)
    assert run(first, PROGRAM, 5)[5:8] == [5, 10, 10]
    assert first.cache.get(QUICK_CORE) is not None
    second = NativeCode(rv64)
    second.warm()
    assert run(second, PROGRAM, 5)[5:8] == [5, 10, 10]
    assert second.compiled == 0
    assert CORE not in load_image(second.cache).parts
    renew_image(UNITS, second.cache)  # what workers do when there is nothing else
    image = load_image(second.cache)
    assert CORE in image.parts
    assert image.missing() == load_image(second.cache).missing() == second._image.missing()
    third = NativeCode(rv64)
    third.warm()
    assert third._image.unit.code != second._image.unit.code
    assert run(third, PROGRAM, 5)[5:8] == [5, 10, 10]
    assert third.compiled == 0


def test_without_workers_the_core_is_compiled_well_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    monkeypatch.setattr(Workers, "submit", lambda *given, **options: None)
    quick = NativeCode(rv64).cache
    assert quick.get(CORE) is None
    monkeypatch.setenv("POLYVISOR_WORKERS", "0")
    assert NativeCode(rv64)._image.parts == {CORE}
    assert quick.get(CORE) is not None


def test_workers_of_other_sources_compile_nothing(cache, monkeypatch):
    """Their units would not fit this process."""
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    done: list[object] = []
    workers = Workers(rv64, "rv64-of-other-sources")
    workers.submit("handler", NUMBERS["addi"], done.append)
    while not done:
        os.sched_yield()
    assert done == [None]
    assert workers.deaths == 1


# A process that finds everything

START = """
import json, sys
from polyvisor.boards.virt import VirtConfig
from polyvisor.vm.machine import Machine
code = bytes.fromhex(sys.argv[1])
with Machine(VirtConfig(memory=16 << 20), lambda data: None) as machine:
    board = machine.board
    board.memory.write({dram:#x}, code)
    board.harts[0].reset_machine_mode({dram:#x}, 0)
    board.boot_harts = board.harts
    machine.start()
    assert machine.wait(60)
    print(json.dumps([machine.exit_code, board.code.compiled, sorted(sys.modules)]))
"""


def start(code: bytes) -> tuple[int, int, set[str]]:
    """Exit code of a program in a process of its own, units that were compiled, modules that were imported."""
    done = subprocess.run(
        [sys.executable, "-c", START.format(dram=DRAM), code.hex()], capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, timeout=120,
    )  # fmt: skip
    status, compiled, modules = json.loads(done.stdout)
    return status, compiled, set(modules)


def test_a_warm_start_imports_no_compiler(cache):
    code = bytes(assemble(rv64, "    addi a0, zero, 7\n" + POWER_OFF, base=DRAM))
    first = start(code)
    assert first[0] == 7
    assert first[1] > 0, "these tests' caches do not have all handlers"
    assert "llvmlite" in first[2]
    assert start(code)[:2] == (7, 0)  # makes the image
    forget_units(cache)
    status, compiled, modules = start(code)
    assert (status, compiled) == (7, 0)
    assert not {m for m in modules if m.partition(".")[0] in ("llvmlite", "elftools")}
    assert not modules & {
        "polyvisor.adl.frontend", "polyvisor.adl.ssa", "polyvisor.adl.encoding", "polyvisor.adl.assembly",
        "polyvisor.engine.units", "polyvisor.engine.reference", "polyvisor.engine.regions.compile",
    }


def test_every_core_of_the_host_is_the_same_to_the_cache():
    """What CPUID says of one core alone must not be in the key."""
    text = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\n"
    text += "from polyvisor.engine.hostcpu import host_cpu; print(host_cpu())"
    for core in sorted(os.sched_getaffinity(0))[:4]:
        done = subprocess.run([sys.executable, "-c", text, str(core)], capture_output=True, check=True, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})  # fmt: skip
        assert done.stdout.strip() == host_cpu()


# Linking

CALLS = """
declare i64 @twice(i64)
define i64 @call(i64 %x) {
  %y = call i64 @twice(i64 %x)
  %z = add i64 %y, 1
  ret i64 %z
}
"""
TABLE = """
@values = private constant [3 x ptr] [ptr @one, ptr @two, ptr @one]
define i64 @one(i64 %x) noinline { ret i64 %x }
define i64 @two(i64 %x) noinline {
  %y = mul i64 %x, 2
  ret i64 %y
}
define i64 @twice(i64 %x) {
  %n = and i64 %x, 1
  %p = getelementptr [3 x ptr], ptr @values, i64 0, i64 %n
  %f = load ptr, ptr %p
  %r = tail call i64 %f(i64 %x)
  ret i64 %r
}
"""


@pytest.mark.parametrize("joined", ["apart", "once", "twice"])
def test_units_find_each_other(joined):
    calls, table = unit_from_object(optimise(CALLS)), unit_from_object(optimise(TABLE))
    arena = CodeArena(1 << 20)
    arena.add_code(b"\x90" * 100)
    if joined == "apart":
        address = arena.add(table, {})
        found = arena.add(calls, {"twice": address + table.symbols["twice"]}) + calls.symbols["call"]
    else:
        unit = join([calls, table])
        if joined == "twice":
            unit = join([unit_from_object(optimise("define i64 @other() {\n ret i64 1\n}")), unit])
        assert not unit.relocations
        found = arena.add(unit, {}) + unit.symbols["call"]
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(found)
    assert [call(x) for x in (4, 5)] == [5, 11]
    arena.close()


def test_what_is_no_object_file_is_refused():
    good = optimise(CALLS)
    for bad in (b"", b"\x7fELF\x01" + good[5:], b"\x7fELF\x02\x02" + good[6:]):
        with pytest.raises(UnlinkableError, match="no ELF file"):
            unit_from_object(bad)


def test_functions_of_the_host_are_found_and_others_are_named():
    code = NativeCode(rv64)
    code.link({"a": unit_from_object(optimise("declare i64 @labs(i64)\ndefine i64 @asks(i64 %x) {\n"
                                              "  %y = call i64 @labs(i64 %x)\n  ret i64 %y\n}"))})  # fmt: skip
    assert ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_int64)(code.address("asks"))(-9) == 9
    unit = unit_from_object(optimise("declare i64 @nowhere(i64)\ndefine i64 @b(i64 %x) {\n"
                                     "  %y = call i64 @nowhere(i64 %x)\n  ret i64 %y\n}"))  # fmt: skip
    with pytest.raises(UnlinkableError, match="nowhere"):
        code.link({"b": unit})
