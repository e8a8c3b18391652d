"""Finding out what a Commodore 64 does: watchpoints, breakpoints, and ways back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from test_c64 import prg

from polyvisor import C64, hooks
from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64.drive import IDENTITY, PRESENT
from polyvisor.boards.c64.machine import Access
from polyvisor.boards.c64.model import PAL
from polyvisor.devices.c64 import memory
from polyvisor.isa.mos6502 import mos6510
from polyvisor.storage.commodore.d64 import D64

# Several ways to write, and to read. Interrupts of the KERNAL go on meanwhile.
PROGRAM = """
start: lda $0401
 ldx #5
 sta $0400
 inx
 inc $0400
 nop
 jsr sub
 jmp start
sub: ldy #0
 lda ($fb),y
 pha
 pla
 sta ($fb),y
 rts
"""
STA, INC, JSR, LOAD, STA_Y = 0xC005, 0xC009, 0xC00D, 0xC015, 0xC019


@pytest.fixture(scope="module")
def begun() -> Iterator[C64]:
    with C64() as made:
        made.start(prg(PROGRAM))
        made.write(0xFB, b"\x20\x05")
        made.run(frames=3)
        yield made


@pytest.fixture
def c64(begun: C64) -> Iterator[C64]:
    with begun.copy() as made:
        yield made


def state(c64: C64) -> tuple[int, int, bytes, int, int]:
    """What two moments differ in."""
    cpu = c64.cpu
    ram = c64.machine.memory.read(memory.RAM, 0x10000)
    return c64.elapsed, int(cpu.pc), ram, int(cpu.a) << 24 | int(cpu.x) << 16 | int(cpu.s) << 8 | cpu.p, int(cpu.i)


def test_a_write_stops_behind_its_instruction(c64: C64) -> None:
    with c64.watch(0x0400):
        found = []
        for _ in range(6):
            stop = c64.run_to_stop(1)
            assert stop.reason == "watchpoint" and stop.access is not None
            found.append((stop.access.pc, stop.access.value, int(c64.cpu.pc)))
            assert c64.read(0x0400)[0] == stop.access.value == stop.value
    first = found.index((STA, 32, STA + 3))
    assert found[first : first + 2] == [(STA, 32, STA + 3), (INC, 33, INC + 3)]
    assert len(set(found)) == 2
    assert c64.run_to_stop(0.1).reason == "limit" and len(c64.hooks) == 0


def test_reads_pushes_and_indirect_accesses_are_seen(c64: C64) -> None:
    with c64.watch(0x0520, "access") as watch, c64.watch(range(0x0100, 0x0200), "write"):
        c64.break_at(JSR)
        c64.run_to_stop(1)
        c64.break_at()
        found = [c64.run_to_stop(1).access for _ in range(4)]
        assert [(each.kind, each.pc) for each in found if each is not None] == [
            ("write", JSR), ("read", LOAD), ("write", LOAD + 2), ("write", STA_Y)
        ]
        assert found[3] == Access("write", 0x0520, 32, STA_Y)
        watch.remove()
        assert c64.run_to_stop(1).access == Access("write", 0x100 + int(c64.cpu.s) + 1, (JSR + 2) & 0xFF, JSR)


def test_chips_are_watched_too(c64: C64) -> None:
    """The KERNAL's interrupt acknowledges its timer by reading $DC0D, from ROM."""
    with c64.watch(0xDC0D, "read"):
        stop = c64.run_to_stop(1)
        assert stop.access is not None and stop.access.pc >= 0xE000 and stop.access.value & 0x81 == 0x81


@pytest.mark.parametrize("tier", ["jit", "reference"])
def test_all_tiers_stop_at_the_same_places(c64: C64, tier: str) -> None:
    found: list[list[object]] = []
    for each in (c64.machine.tier, tier):
        c64.machine.tier = each
        with c64.copy() as made, made.watch(0x0400), made.watch(0x0401, "read"):
            assert made.machine.tier == each
            made.break_at(STA_Y)
            found.append([(made.run_to_stop(1), made.elapsed) for _ in range(8)])
    assert found[0] == found[1] and len({stop.reason for stop, _ in found[0]}) == 2  # type: ignore[misc]


def test_a_copy_made_where_an_interrupt_is_due_enters_it(c64: C64) -> None:
    while c64.cpu.vectored != c64.machine.cycles:
        before = c64.machine.save()
        c64.step()
    entered = state(c64)
    c64.machine.restore(before)
    for go in (lambda made: made.step(), lambda made: made.machine.run_to(entered[0])):
        with c64.copy() as made:
            go(made)
            assert state(made) == entered


@pytest.mark.parametrize("tier", ["jit", "reference"])
def test_the_entry_of_an_interrupt_is_no_access(c64: C64, tier: str) -> None:
    while c64.cpu.vectored != c64.machine.cycles:
        c64.step()
    stack = int(c64.cpu.s)
    c64.reverse_step()
    c64.machine.tier = tier
    with c64.copy() as other, other.watch(range(0x0100, 0x0200), "access"):
        assert other.step().reason == "step"
        assert other.cpu.vectored == other.machine.cycles and int(other.cpu.s) == stack
        assert other.run_to_stop(0.01).access == Access("write", 0x100 + stack, int(other.cpu.a), int(other.cpu.pc) - 1)


def test_what_a_breakpoint_is_passed_with_is_watched_too(c64: C64) -> None:
    with c64.watch(0x0400):
        c64.break_at(STA)
        for _ in range(2):
            assert [c64.run_to_stop(1).access for _ in range(3)] == [
                None, Access("write", 0x0400, 32, STA), Access("write", 0x0400, 33, INC)
            ]


def test_what_is_compiled_stops_at_the_same_places() -> None:
    """A loop that is hot, and now and then writes to what is watched."""
    program = "start: ldx #0\n ldy #0\n1: inc $0500,x\n inx\n bne 1b\n iny\n bne 1b\n sty $0400\n inc $0401\n jmp 1b"
    found: list[list[int]] = []
    for tier in ("jit", "interpreter"):
        with C64(prg(program), halted=True, tier=tier) as c64:
            c64.run_to_stop(2)
            found.append([])
            with c64.watch(0x0400):
                for _ in range(3):
                    stop = c64.run_to_stop(10)
                    assert (stop.access, int(c64.cpu.pc)) == (Access("write", 0x0400, 0, 0xC00D), 0xC010)
                    found[-1].append(c64.elapsed)
                assert c64.reverse_continue() == stop and 4 <= found[-1][-1] - c64.elapsed <= 60
                assert c64.reverse_continue() == stop and 4 <= found[-1][-2] - c64.elapsed <= 60
    assert found[0] == found[1]


def test_steps_end_at_watchpoints_too(c64: C64) -> None:
    c64.break_at(STA)
    c64.run_to_stop(1)
    with c64.watch(0x0400):
        stop = c64.step(10)
        assert stop.reason == "watchpoint" and int(c64.cpu.pc) == STA + 3
        assert c64.step().reason == "step" and c64.run_to_stop(1).access == Access("write", 0x0400, 33, INC)


def test_one_step_back_is_what_was_before_the_last_one(c64: C64) -> None:
    moments: list[tuple[int, int, bytes, int, int]] = []
    c64.run(frames=60)
    entered = False
    while not entered:
        moments.append(state(c64))
        c64.step()
        entered = int(c64.cpu.pc) >= 0xE000 and moments[-1][1] < 0xE000
        assert len(moments) < 30_000
    for number in range(1, 12):
        if number % 5 == 2:
            c64.hold("a")  # what came later is forgotten, but not what is known of then
        assert c64.reverse_step().reason == "step"
        assert state(c64) == moments[-number], number
    assert c64.reverse_step(500).reason == "step" and state(c64) == moments[-511]
    c64.step(500)
    assert state(c64)[:2] == moments[-11][:2]


# Sprites take cycles from whatever is executed then; indexed reads cross pages.
STALLED = """
 lda #$ff
 sta $d015
1: inc $0400,x
 lda $0410,x
 sta $0420
 jsr 2f
 inx
 jmp 1b
2: pha
 pla
 rts
"""


def test_a_state_that_is_put_back_after_steps_goes_on_the_same_way() -> None:
    with C64(prg(STALLED), halted=True) as c64:
        machine = c64.machine
        for _ in range(12):
            c64.run(cycles=7013)
            saved = machine.save()
            traces = []
            for _ in range(2):
                machine.restore(saved)
                traces.append([])
                while machine.elapsed < saved.elapsed + 400:
                    machine.step()
                    traces[-1].append((machine.elapsed, int(machine.state.pc)))
            assert traces[0] == traces[1]


@pytest.mark.parametrize("seed", [2, 10, 21])
def test_every_stop_on_the_way_back_is_one_of_the_way_there(seed: int) -> None:
    """Random breakpoints, watchpoints and hands; what is expected is noted step by step."""
    random = Random(seed)
    with C64(prg(STALLED), halted=True, tier=random.choice(["jit", "interpreter"])) as begun:
        begun.run(frames=random.randrange(30))
        with begun.copy() as c64:
            breakpoints = random.sample([0xC005, 0xC00B, 0xC011, 0xC012, 0xC016, 0xFF48], random.randrange(3))
            watched = random.choice([range(0x420, 0x421), range(0x400, 0x410), range(0x1F0, 0x200), range(0xA0, 0xA3)])
            c64.watch(watched, random.choice(["write", "read", "access"]))
            start, expected = c64.elapsed, set()
            while c64.elapsed < start + 4000:
                if int(c64.cpu.pc) in breakpoints:
                    expected.add(c64.elapsed)
                before = c64.elapsed
                if c64.step().reason == "watchpoint":
                    expected.add(before)
                chance = random.random()
                if chance < 0.003:
                    c64.write(0x0700, random.randrange(256))
                elif chance < 0.005:
                    c64.poke(0xD015, random.randrange(256))
                elif chance < 0.007:
                    c64.hold("a")
            c64.break_at(*breakpoints)
            assert len(expected) > 10
            for moment in sorted(expected, reverse=True)[:12]:
                assert c64.reverse_continue().reason in ("breakpoint", "watchpoint")
                assert c64.elapsed == moment


def test_back_to_the_last_write_and_to_the_one_before(c64: C64) -> None:
    c64.run(seconds=1.2)
    c64.write(0x0521, 7)  # by nobody's instruction
    c64.run(cycles=200)
    with c64.watch(0x0400):
        stops = [(c64.run_to_stop(1), c64.elapsed) for _ in range(4)]
        for stop, after in reversed(stops):
            assert c64.reverse_continue() == stop
            assert stop.access is not None and int(c64.cpu.pc) == stop.access.pc and 3 < after - c64.elapsed < 60
    assert c64.read(0x0521)[0] == 7


def test_back_to_a_breakpoint_over_seconds_and_to_the_beginning() -> None:
    with C64(prg("lda #1\n sta $0400\n1: jmp 1b"), autostart=False) as c64:
        c64.run(seconds=1)
        c64.start(prg("lda #1\n sta $0400\n1: jmp 1b"))
        c64.run(seconds=4)
        c64.break_at(0xC002)
        end = c64.elapsed
        assert c64.reverse_continue().reason == "breakpoint" and int(c64.cpu.pc) == 0xC002
        assert c64.elapsed < end - 3.9 * PAL.clock and c64.read(0x0400)[0] != 1
        assert c64.breakpoints == [0xC002]
        c64.step()
        assert c64.read(0x0400)[0] == 1
        assert c64.reverse_continue().reason == "breakpoint"
        assert c64.reverse_continue().reason == "begin" and c64.elapsed == 0
        assert c64.reverse_step().reason == "begin"


def test_a_disks_file_goes_back_with_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.d64"
    D64.formatted(b"WORK", b"A1").save(path)
    with C64(path, autostart=False) as c64:
        c64.run(seconds=1.5)
        c64.type("10 print 1\n")
        c64.type('save"a",8\n')
        c64.run(seconds=1)
        assert len(D64.open(path).entries()) == 1
        assert c64.reverse_continue().reason == "begin"
    assert D64.open(path).entries() == []


def test_memory_is_read_as_by_the_cpu_and_without_effects(c64: C64) -> None:
    with c64.copy() as other:
        seen = c64.read(0, 0x10000)
        assert seen[0] == 0x2F and seen[1] == 0x37 and seen[0x0400:0x0800] == c64.read(0x0400, 0x400, ram=True)
        assert seen[0xD020] == 0xFE and seen[0xDE00 + IDENTITY] == PRESENT
        assert state(c64) == state(other)
        c64.run(frames=2.3)
        other.run(frames=2.3)
        assert state(c64) == state(other)
    # As a program reads it: the beam, a timer that counts down (in the fourth cycle from now), the port.
    for register, later in ((0xD012, 0), (0xDC04, 4), (0x0001, 0)):
        with c64.copy() as third:
            value = third.read(register)[0]
            third.write(0xC100, b"\xad" + register.to_bytes(2, "little"))
            third.set(pc=0xC100)
            third.step()
            assert int(third.cpu.a) == (value - later) & 0xFF, hex(register)


def test_what_is_poked_reaches_chips_and_banks_and_is_done_again_on_the_way_back(c64: C64) -> None:
    c64.run(frames=1)
    c64.poke(0xD020, 7)
    assert c64.read(0xD020)[0] == 0xF7 and c64.read(0xD020, ram=True)[0] == 0
    c64.poke(0xD800, b"\x15\x16")
    assert c64.read(0xD800, 2)[0] & 0xF == 5
    c64.poke(0xE000, 1)
    assert c64.read(0xE000) == c64.machine.roms.kernal[:1] and c64.read(0xE000, ram=True) == b"\x01"
    c64.set(i=1)
    c64.poke(0x0001, 0x34)
    assert c64.read(0xE000) == b"\x01" and c64.read(0xD020) == b"\x00"
    c64.poke(0x0000, b"\x2f\x37")
    after = state(c64)
    c64.run(frames=3)
    assert set(c64.picture().pixels[:384]) == {7}
    end = state(c64)
    c64.machine.run_to(end[0] + 5000)
    c64.rewind((c64.elapsed - after[0]) / PAL.clock)
    assert state(c64) == after and c64.read(0xD020)[0] == 0xF7
    c64.machine.run_to(end[0])
    assert state(c64) == end
    for wrong in (lambda: c64.poke(0xFFFF, b"12"), lambda: c64.read(0x10000), lambda: c64.read(-1)):
        with pytest.raises(ValueError, match=r"to \$ffff"):
            wrong()


def test_programs_stand_before_their_first_instruction(tmp_path: Path) -> None:
    body = bytes.fromhex("0b08 0a00 9e 2028 32303634 29 00 0000".replace(" ", "")).ljust(2064 - 2049, b"\0")
    stub = b"\x01\x08" + body + assemble(mos6510, "lda #1\n sta $0400\n1: jmp 1b", 2064).bytes
    disk = D64.formatted(b"WORK", b"A1")
    disk.write(b"TEST", stub)
    disk.save(tmp_path / "a.d64")
    for software in (stub, tmp_path / "a.d64"):
        with C64(software, halted=True) as c64:
            assert int(c64.cpu.pc) == 2064 and c64.breakpoints == [] and c64.run(cycles=100).reason == "limit"
            assert c64.read(0x0400) == b"\x01"
    with C64(halted=True) as c64:
        assert c64.elapsed == 0
    with C64(b"\x01\x08\x00\x00\x00", halted=True) as c64:  # no SYS
        assert c64.elapsed > 0 and c64.run(cycles=1000).reason == "limit"


def test_mistakes_are_told(c64: C64) -> None:
    for wrong in (lambda: c64.watch(0x10000), lambda: c64.watch(range(5, 5)), lambda: c64.watch(range(9, 20, 2)),
                  lambda: c64.watch(1), lambda: c64.watch(9, "change"), lambda: c64.break_at(-1),
                  lambda: c64.set(q=1), lambda: c64.set(a=256), lambda: c64.set(pc=0x10000),
                  lambda: c64.set(vic_registers=1)):  # fmt: skip
        with pytest.raises(ValueError) as error:
            wrong()
        assert "\n" not in str(error.value)
    watches = []
    with pytest.raises(ValueError, match="there can be 16"):
        for _ in range(17):
            watches.append(c64.watch(0x0400))
    for watch in watches:
        watch.remove()
        watch.remove()
    assert len(c64.hooks) == 0 and "removed" in repr(watches[0])
    with C64(history=0) as other, pytest.raises(ValueError, match="no history"):
        other.reverse_step()


def test_all_flags_are_a_register(c64: C64) -> None:
    c64.set(p=0xC3)
    assert (c64.cpu.p, int(c64.cpu.c), int(c64.cpu.v)) == (0xF3, 1, 1)
    c64.step()
    c64.reverse_step()
    assert c64.cpu.p == 0xF3


def test_other_hooks_stay(c64: C64) -> None:
    class Count(hooks.State):
        total = hooks.Field(hooks.u64)

    @hooks.on_write
    def count(hook):
        hook.total += 1

    with c64.hooks.add(count, Count, at=0x0400) as counted, c64.watch(0x0400):
        for _ in range(4):
            c64.run_to_stop(1)
        assert counted.total == 6  # INC writes twice
