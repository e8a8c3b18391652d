"""Tools made of hooks: coverage, profiles, system call traces, heat maps, a simulated cache."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from polyvisor.vm.analysis.cache import CacheSimulation
from polyvisor.vm.analysis.coverage import Coverage
from polyvisor.vm.analysis.heatmap import Heatmap
from polyvisor.vm.analysis.profile import Profile, functions_of
from polyvisor.vm.analysis.syscalls import NAMES, SyscallTrace
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image
from support.programs import POWER_OFF, elf

PROGRAM = """
static int fib(int n) {
    if (n < 2)
        return n;
    return fib(n - 1) + fib(n - 2);
}

int unused(int n) {
    return n * 2;
}

void start(void) {
    int total = 0;
    for (int i = 0; i < 10; i++)
        total += fib(12);
    *(volatile unsigned *)0x100000 = (unsigned)(total == 1440 ? 3 : 4) << 16 | 0x3333;
    for (;;)
        ;
}

__attribute__((naked, section(".text.first"))) void _start(void) {
    __asm__("li sp, 0x80100000\\n j start");
}
"""
LINK = "ENTRY(_start) SECTIONS { . = 0x80000000; .text : { *(.text.first) *(.text*) } .data : { *(.data*) } }"
# What gcov says of it, line by line, but for the code after the end of the machine.
LINES = {2: 4650, 3: 4650, 4: 2330, 5: 2320, 6: 4650, 8: 0, 9: 0, 12: 1, 13: 1, 14: 11, 15: 10, 16: 1, 22: 1}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    place = tmp_path_factory.mktemp("program")
    (place / "program.c").write_text(PROGRAM)
    (place / "link.ld").write_text(LINK)
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-freestanding-none", "-mcmodel=medany", "-nostdlib",
         "-static", "-g", "-O0", "-fno-sanitize=undefined", "-T", "link.ld", "program.c", "-o", "program.elf"],
        check=True, cwd=place, timeout=120,
    )  # fmt: skip
    return place / "program.elf"


def ran(program: Path, tier: str = "jit") -> VM:
    return VM(program=program, memory="16M", tier=tier)


def small(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.elf"
    path.write_bytes(elf(text + "    li a0, 3\n" + POWER_OFF))
    return path


# Coverage


@pytest.mark.parametrize("tier", ["jit", "interpreter"])
def test_lines_and_functions(compiled: Path, tier: str) -> None:
    vm = ran(compiled, tier)
    coverage = Coverage(vm, compiled)
    vm.start().wait(60)
    assert vm.exit_code == 3
    files = coverage.files()
    assert [Path(name).name for name in files] == ["program.c"]
    (file,) = files.values()
    assert {line: count for line, count in file.lines.items() if line not in (17, 18)} == LINES
    assert file.functions == {"fib": (2, 4650), "unused": (8, 0), "start": (12, 1), "_start": (22, 1)}
    report = coverage.lcov().splitlines()
    assert report[1].startswith("SF:/") and report[1].endswith("/program.c")
    assert {"FNDA:4650,fib", "FNDA:0,unused", "FNF:4", "FNH:3", "DA:8,0", "DA:14,11", "end_of_record"} <= set(report)
    root = ElementTree.fromstring(coverage.cobertura().partition("\n")[2])
    hits = {int(line.get("number", "")): int(line.get("hits", "")) for line in root.iter("line")}
    assert hits == file.lines
    assert root.get("lines-covered") == str(file.covered)
    assert functions_of(compiled)["start"] in coverage.addresses()


def test_the_example_writes_reports(compiled: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "hook_coverage.py"
    done = subprocess.run(
        [sys.executable, str(example), str(compiled)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[1:] == ["never called: unused", "exit code 3"]
    assert compiled.with_suffix(".info").read_text().endswith("end_of_record\n")
    assert ElementTree.parse(compiled.with_suffix(".xml")).getroot().tag == "coverage"


def test_files_that_are_no_programs_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    good = small(tmp_path, "    nop\n")
    vm = ran(good)
    with pytest.raises(ValueError, match="text: not an ELF file"):
        Coverage(vm, text)
    with pytest.raises(FileNotFoundError):
        Coverage(vm, tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"small.elf has no code"):
        Coverage(vm, good)
    assert len(vm.hooks) == 0


# Memory


def test_a_heat_map(tmp_path: Path) -> None:
    vm = ran(small(tmp_path, """
    li s2, 0x80010000
    li s3, 100
again:
    sd s3, 0(s2)
    ld t0, 70(s2)
    ld t0, 124(s2)
    addi s3, s3, -1
    bnez s3, again
    sb s3, 255(s2)
    sb s3, 256(s2)
    sd s3, -4(s2)
"""))  # fmt: skip
    heat = Heatmap(vm, range(0x8001_0000, 0x8001_0100))
    vm.start().wait(60)
    assert heat.writes == [100, 0, 0, 1]
    assert heat.reads == [0, 200, 0, 0]
    image = heat.png(columns=2, pixels=2)
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", image[16:24]) == (4, 4)
    at = image.index(b"IDAT") + 4
    rows = zlib.decompress(image[at : at + struct.unpack(">I", image[at - 8 : at - 4])[0]])
    assert rows[1:13] == bytes((255, 0, 0)) * 2 + bytes((0, 255, 0)) * 2  # written, then read
    with pytest.raises(ValueError, match="a power of two of bytes, not 48"):
        Heatmap(vm, range(64), 48)
    with pytest.raises(ValueError, match="make them larger"):
        Heatmap(vm, range(1 << 40))


class _Lru:
    """A cache that forgets what was used longest ago, written plainly."""

    def __init__(self, sets: int, ways: int, line: int) -> None:
        self.sets: list[list[int]] = [[] for _ in range(sets)]
        self.ways, self.line = ways, line
        self.misses = 0

    def access(self, address: int) -> None:
        line = address // self.line
        lines = self.sets[line % len(self.sets)]
        if line in lines:
            lines.remove(line)
        else:
            self.misses += 1
        lines.insert(0, line)
        del lines[self.ways :]


@pytest.mark.parametrize(("size", "ways", "line"), [(1024, 2, 64), (4096, 4, 32), (512, 1, 64)])
def test_a_simulated_cache(tmp_path: Path, size: int, ways: int, line: int) -> None:
    """Addresses from a linear congruential generator, in and out of three kilobytes."""
    vm = ran(small(tmp_path, """
    li s2, 0x80010000
    li s3, 3000
    li s4, 1
    li s5, 1103515245
again:
    mul s4, s4, s5
    addi s4, s4, 1234
    srli t0, s4, 13
    andi t0, t0, 0x7f8
    add t0, t0, s2
    ld t1, 0(t0)
    srli t2, s4, 20
    andi t2, t2, 0x3f8
    add t2, t2, s2
    sd t1, 1024(t2)
    addi s3, s3, -1
    bnez s3, again
"""))  # fmt: skip
    told: list[int] = []
    cache = CacheSimulation(vm, size, ways, line)
    data = range(0x8001_0000, 0x8002_0000)
    for kind in ("read", "write"):
        vm.hooks.add(lambda event: told.append(event.address), on=kind, at=data)
    vm.start().wait(60)
    expected = _Lru(size // line // ways, ways, line)
    for address in told:
        expected.access(address)
    expected.access(0x100000)  # the end of the machine
    assert cache.accesses == len(told) + 1 == 6001
    assert cache.misses == expected.misses > 20
    assert cache.miss_rate == cache.misses / cache.accesses
    for wrong in ({"size": 1000}, {"ways": 3}, {"size": 64, "ways": 2}):
        with pytest.raises(ValueError, match=r"power of two|no cache"):
            CacheSimulation(vm, **wrong)


# With Linux


def test_system_calls_and_a_profile_of_linux() -> None:
    with VM(guest_image(), cpus=2, timeout=60) as vm:
        out = io.StringIO()
        with SyscallTrace(vm, out) as trace:
            size = len(vm.run(["cat", "/etc/passwd"], check=True).stdout)
            vm.run("cat /nope; (sleep 0.2; exit 3) & wait; true", check=True)
        text = out.getvalue()
        lines = text.splitlines()
        assert re.search(r"] execve\('.*/cat', 0x\w+, 0x\w+\) = 0\n", text)
        assert re.search(r"] openat\(-100, '/etc/passwd', 0, 0\) = 3\n", text)
        assert f"sendfile(1, 3, 0, 0x1000000) = {size}\n" in text
        assert "openat(-100, '/nope', 0, 0) = -1 ENOENT\n" in text and "exit_group(3) = ?\n" in text
        # What the agent waits for is under way; all else has a result.
        under_way = [line for line in lines if not re.search(r"\) = (\?|-?\d+|0x[0-9a-f]+|-1 E\w+)$", line)]
        assert all(line.endswith(") <unfinished ...>") for line in under_way) and 1 <= len(under_way) < 8
        assert not vm.hooks
        assert trace.counts["openat"] >= 1 and sum(trace.counts.values()) == len(lines)
        with Profile(vm, interval=0.001) as profile:
            for _ in range(20):
                vm.run("ls -lR /sys/class > /dev/null; ls -lR /bin > /dev/null", check=True)
                if profile.samples.total() > 50:
                    break
        stacks = profile.samples
        assert {stack[0] for stack in stacks} <= {"user", "kernel"}
        assert any("handle_exception" in stack for stack in stacks)
        assert max(map(len, stacks)) > 6
        collapsed = profile.collapsed().splitlines()
        assert sum(int(line.rpartition(" ")[2]) for line in collapsed) == stacks.total()
        root = ElementTree.fromstring(profile.svg("a <title>"))
        titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
        assert any(title.startswith("kernel: ") for title in titles)
        assert sum(count for _, count in profile.top(10_000)) == stacks.total()


def test_numbers_of_system_calls() -> None:
    assert [NAMES[n] for n in (0, 56, 63, 64, 93, 172, 221, 222, 258, 281, 450)] == [
        "io_setup", "openat", "read", "write", "exit", "getpid", "execve", "mmap", "riscv_hwprobe", "execveat",
        "set_mempolicy_home_node",
    ]  # fmt: skip
