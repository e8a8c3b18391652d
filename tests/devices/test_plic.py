"""polyvisor.devices.plic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyvisor.devices.plic import CLAIM, CONTEXT_STRIDE, ENABLE, ENABLE_STRIDE, PENDING, PRIORITY, THRESHOLD, Plic
from polyvisor.engine.memory import BusError


class Probe:
    def __init__(self):
        self.level = False

    def set(self, level):
        assert level != self.level, "only changes are told"
        self.level = level


class Board:
    def __init__(self, sources=40, contexts=2):
        self.eip = [Probe() for _ in range(contexts)]
        self.plic = Plic(sources, self.eip)
        self.wires = [None, *(self.plic.line(n) for n in range(1, sources + 1))]

    def enable(self, context, *sources):
        for word in range(2):
            bits = sum(1 << n % 32 for n in sources if n // 32 == word)
            self.plic.write(ENABLE + ENABLE_STRIDE * context + 4 * word, 4, bits)

    def priority(self, source, value):
        self.plic.write(PRIORITY + 4 * source, 4, value)

    def threshold(self, context, value):
        self.plic.write(THRESHOLD + CONTEXT_STRIDE * context, 4, value)

    def claim(self, context):
        return self.plic.read(CLAIM + CONTEXT_STRIDE * context, 4)

    def complete(self, context, source):
        self.plic.write(CLAIM + CONTEXT_STRIDE * context, 4, source)

    def pending(self, source):
        return self.plic.read(PENDING + 4 * (source // 32), 4) >> source % 32 & 1


def test_claim_and_complete():
    board = Board()
    board.enable(1, 10)
    board.priority(10, 1)
    board.wires[10].set(True)
    assert (board.eip[0].level, board.eip[1].level) == (False, True)
    assert board.pending(10) == 1
    assert board.claim(0) == 0
    assert board.claim(1) == 10
    assert not board.eip[1].level and not board.pending(10)
    assert board.claim(1) == 0
    board.wires[10].set(False)
    board.complete(1, 10)
    assert not board.eip[1].level and not board.pending(10)


def test_level_still_asserted_at_completion_interrupts_again():
    board = Board()
    board.enable(0, 3)
    board.priority(3, 1)
    board.wires[3].set(True)
    assert board.claim(0) == 3
    board.wires[3].set(False)
    board.wires[3].set(True)
    assert not board.eip[0].level, "the gateway waits for the completion"
    board.complete(0, 3)
    assert board.eip[0].level
    assert board.claim(0) == 3


def test_request_is_not_taken_back():
    board = Board()
    board.enable(0, 3)
    board.priority(3, 1)
    board.wires[3].set(True)
    board.wires[3].set(False)
    assert board.eip[0].level
    assert board.claim(0) == 3
    board.complete(0, 3)
    assert board.claim(0) == 0


def test_completion_of_a_source_not_enabled_is_ignored():
    board = Board()
    board.enable(0, 3)
    board.priority(3, 1)
    board.wires[3].set(True)
    assert board.claim(0) == 3
    board.complete(1, 3)
    board.enable(0)
    board.complete(0, 3)
    board.enable(0, 3)
    assert not board.eip[0].level
    for other in (0, 4, 41, 0xFFFFFFFF):
        board.complete(0, other)
    assert not board.eip[0].level
    board.complete(0, 3)
    assert board.eip[0].level


def test_priorities_and_ties():
    board = Board()
    board.enable(0, 2, 5, 33, 40)
    for source, priority in ((2, 1), (5, 3), (33, 3), (40, 7)):
        board.priority(source, priority)
        board.wires[source].set(True)
    assert [board.claim(0) for _ in range(5)] == [40, 5, 33, 2, 0]


def test_threshold_masks_the_line_but_not_claims():
    board = Board()
    board.enable(0, 4)
    board.priority(4, 2)
    board.threshold(0, 2)
    board.wires[4].set(True)
    assert not board.eip[0].level
    board.threshold(0, 1)
    assert board.eip[0].level
    board.threshold(0, 7)
    assert not board.eip[0].level
    assert board.claim(0) == 4


def test_priority_zero_never_interrupts():
    board = Board()
    board.enable(0, 4)
    board.wires[4].set(True)
    assert board.pending(4) and not board.eip[0].level and board.claim(0) == 0
    board.priority(4, 1)
    assert board.eip[0].level
    board.enable(0)
    assert not board.eip[0].level


def test_registers():
    board = Board()
    plic = board.plic
    plic.write(ENABLE, 4, 0xFFFFFFFF)
    plic.write(ENABLE + 4, 4, 0xFFFFFFFF)
    assert plic.read(ENABLE, 4) == 0xFFFFFFFE
    assert plic.read(ENABLE + 4, 4) == 0x1FF, "sources 32 to 40"
    assert plic.read(ENABLE + ENABLE_STRIDE, 4) == 0
    board.priority(40, 0xFFFFFFFF)
    assert plic.read(PRIORITY + 160, 4) == 7
    board.threshold(1, 0xFFFFFFFF)
    assert plic.read(THRESHOLD + CONTEXT_STRIDE, 4) == 7
    plic.write(PENDING, 4, 0xFFFFFFFF)
    assert plic.read(PENDING, 4) == 0


@pytest.mark.parametrize(
    "offset", [0, 41 * 4, PENDING + 0x7C, 0x1FFC, ENABLE + 2 * ENABLE_STRIDE, 0x1FFFFC, 0x200008, 0x202000, 0x5FFFFC]
)
def test_reserved_reads_as_zero(offset):
    plic = Board().plic
    plic.write(offset, 4, 0xFFFFFFFF)
    assert plic.read(offset, 4) == 0


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (4, 8), (2, 4), (0x600000, 4)])
def test_bad_accesses(offset, size):
    with pytest.raises(BusError):
        Board().plic.read(offset, size)
    with pytest.raises(BusError):
        Board().plic.write(offset, size, 0)


def test_bad_sizes():
    for sources in (0, 1024):
        with pytest.raises(ValueError, match="interrupt sources"):
            Plic(sources, [])
    with pytest.raises(ValueError, match="contexts"):
        Plic(1, [Probe()] * 1025)
    for source in (0, 41):
        with pytest.raises(ValueError, match="no interrupt source"):
            Board().plic.line(source)


class Model:
    """Section "Interrupt Flow", one source at a time, with nothing shared with the device."""

    def __init__(self, sources, contexts):
        self.level, self.ip, self.busy, self.prio = ({n: 0 for n in range(1, sources + 1)} for _ in range(4))
        self.ie = {(c, n): 0 for c in range(contexts) for n in range(1, sources + 1)}
        self.limit = dict.fromkeys(range(contexts), 0)

    def settle(self):
        for n, level in self.level.items():
            if level and not self.ip[n] and not self.busy[n]:
                self.ip[n] = 1

    def candidates(self, c):
        return sorted((-self.prio[n], n) for n in self.ip if self.ip[n] and self.prio[n] and self.ie[c, n])

    def claim(self, c):
        if not (found := self.candidates(c)):
            return 0
        n = found[0][1]
        self.ip[n], self.busy[n] = 0, 1
        return n

    def eip(self, c):
        return any(-negative > self.limit[c] for negative, _ in self.candidates(c))


sources, contexts, priorities = st.integers(1, 4), st.integers(0, 1), st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("wire"), sources, st.booleans()),
    st.tuples(st.just("priority"), sources, priorities),
    st.tuples(st.just("enable"), contexts, st.sets(sources)),
    st.tuples(st.just("threshold"), contexts, priorities),
    st.tuples(st.just("claim"), contexts),
    st.tuples(st.just("complete"), contexts, sources),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_against_the_model(steps):
    board, model = Board(4, 2), Model(4, 2)
    for step, *args in steps:
        if step == "wire":
            board.wires[args[0]].set(args[1])
            model.level[args[0]] = args[1]
        elif step == "priority":
            board.priority(*args)
            model.prio[args[0]] = args[1]
        elif step == "enable":
            board.enable(args[0], *args[1])
            model.ie.update({(args[0], n): n in args[1] for n in range(1, 5)})
        elif step == "threshold":
            board.threshold(*args)
            model.limit[args[0]] = args[1]
        elif step == "claim":
            assert board.claim(*args) == model.claim(*args)
        else:
            board.complete(*args)
            if model.ie[tuple(args)]:
                model.busy[args[1]] = 0
        model.settle()
        assert [board.pending(n) for n in range(1, 5)] == list(model.ip.values())
        assert [probe.level for probe in board.eip] == [model.eip(c) for c in range(2)]
