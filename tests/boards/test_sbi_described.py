"""The calls of the SBI that the description serves: timer, interrupts between harts, remote fences; in both tiers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polyvisor.boards.memory_map import DRAM_BASE as BASE
from polyvisor.boards.virt import TIERS, Virt, VirtConfig

ALL = 2**64 - 1
TIME, IPI, RFENCE = 0x54494D45, 0x735049, 0x52464E43
INVALID_PARAM, INVALID_ADDRESS = -3, -5
ECALL = bytes.fromhex("73000000")
HARTS = 4


class Board:
    """Harts in supervisor mode, each about to make a call."""

    def __init__(self, tier: str) -> None:
        def ignore(*_: object) -> None:
            raise AssertionError

        config = VirtConfig(memory=4 << 20, cpus=HARTS, tier=tier)
        self.board = Virt(config, output=ignore, power=ignore, failed=ignore)
        self.harts = self.board.harts
        self.board.memory.write(BASE, ECALL)
        for hart in self.harts:
            hart.reset_supervisor_mode(BASE, 0)

    def call(self, eid: int, fid: int, *arguments: int, hart: int = 0) -> tuple[int, int] | str:
        """(error, value), both signed; or what the hart left for."""
        caller = self.harts[hart]
        state = caller.state
        for n in range(1, 32):
            state.x[n] = 0xDEAD0000 + n
        for n, value in enumerate(arguments):
            state.x[10 + n] = value
        state.x[16], state.x[17], state.pc = fid, eid, BASE
        before = [int(x) for x in state.x]
        found = caller.cpu.step()
        after = [int(x) for x in state.x]
        assert after[:10] == before[:10] and after[12:] == before[12:]
        assert int(state.pc) == BASE + 4
        if found.kind != "step":
            assert after == before
            return found.reason
        error, value = (v - 2**64 if v >> 63 else v for v in after[10:12])
        return error, value

    def interrupted(self) -> list[int]:
        """The harts that were, since this was last asked."""
        found = [h.hart_id for h in self.harts if int(h.state.raise_ssip)]
        for hart in self.harts:
            hart.clear_ssip()
        return found

    def asked_to_flush(self) -> list[int]:
        """Likewise, of other harts than the caller."""
        found = [h.hart_id for h in self.harts if int(h.cpu.engine.flush_all)]
        for hart in self.harts:
            hart.cpu.engine.flush_all = 0
        return found


@pytest.fixture(params=TIERS)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(request.param)
    yield made
    made.board.close()


@pytest.fixture
def native() -> Iterator[Board]:
    made = Board("interpreter")
    yield made
    made.board.close()


def test_timer(board: Board) -> None:
    assert board.call(TIME, 0, 12345, hart=2) == (0, 0)
    assert [int(h.state.stimecmp) for h in board.harts] == [ALL, ALL, 12345, ALL]


def test_ipi(board: Board) -> None:
    assert board.call(IPI, 0, 0b1010, 0) == (0, 0)
    assert board.interrupted() == [1, 3]
    assert board.call(IPI, 0, 0b11, 2, hart=1) == (0, 0)
    assert board.interrupted() == [2, 3]
    assert board.call(IPI, 0, 0xF0F0, ALL, hart=3) == (0, 0)
    assert board.interrupted() == [0, 1, 2, 3]
    assert board.call(IPI, 0, 0, 0) == (0, 0)
    assert board.interrupted() == []


@pytest.mark.parametrize(
    ("mask", "base"), [(0b10000, 0), (1, 4), (0b11, 3), (0, 4), (1, ALL - 1), (ALL, 0), (2, 1 << 63), (1 << 63, 1)]
)
@pytest.mark.parametrize(("eid", "fid"), [(IPI, 0), (RFENCE, 0), (RFENCE, 1), (RFENCE, 2)])
def test_wrong_harts(board: Board, eid: int, fid: int, mask: int, base: int) -> None:
    assert board.call(eid, fid, mask, base, 0, 0, 0) == (INVALID_PARAM, 0)
    assert board.interrupted() == []


@pytest.mark.parametrize("fid", [0, 1, 2])
def test_fences(native: Board, fid: int) -> None:
    """Harts that do not run flush before they execute anything; nobody waits for them."""
    assert native.call(RFENCE, fid, 0b110, 0, 0x1000, 0x2000, 1) == (0, 0)
    assert native.asked_to_flush() == [1, 2]
    assert native.call(RFENCE, fid, 0b11, 2, 0, ALL, 1, hart=2) == (0, 0)
    assert native.asked_to_flush() == [3]
    assert native.call(RFENCE, fid, 0, ALL, 0x1000, ALL, 1, hart=1) == (0, 0)
    assert native.asked_to_flush() == [0, 2, 3]


def test_fence_range(board: Board) -> None:
    assert board.call(RFENCE, 1, 1, 0, ALL, 2) == (INVALID_ADDRESS, 0)
    assert board.call(RFENCE, 2, 1, 0, 4096, ALL - 1, 0) == (INVALID_ADDRESS, 0)
    assert board.call(RFENCE, 1, 16, 0, ALL, 2) == (INVALID_PARAM, 0)
    assert board.call(RFENCE, 1, 1, 0, ALL - 4095, 4096) == (0, 0)
    assert board.call(RFENCE, 1, 1, 0, 4096, ALL) == (0, 0)
    assert board.call(RFENCE, 0, 1, 0, ALL, 2) == (0, 0)


@pytest.mark.parametrize(
    ("eid", "fid"),
    [(TIME, 1), (TIME, 1 << 32), (TIME | 1 << 32, 0), (IPI, 1), (IPI, ALL), (RFENCE, 3), (RFENCE, 1 << 32), (0x10, 0),
     (0, 0), (4, 0), (0x48534D, 0), (ALL, 0)],
)  # fmt: skip
def test_the_platform_is_asked_for_all_else(board: Board, eid: int, fid: int) -> None:
    assert board.call(eid, fid, 0, 0) == "sbi"
    assert board.interrupted() == []
