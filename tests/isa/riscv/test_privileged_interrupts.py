"""Interrupts: who takes which when, priority, vectors, wfi, timers."""

import itertools
from collections.abc import Iterator

import pytest

from support.privileged import CODE, HANDLER, INTERRUPT, SUPERVISOR_HANDLER, TIERS, Machine, machine

SIE, MIE = 1 << 1, 1 << 3
SSIP, MSIP, STIP, MTIP, SEIP, MEIP = 1, 3, 5, 7, 9, 11
PRIORITY = (MEIP, MSIP, MTIP, SEIP, SSIP, STIP)
STCE = 1 << 63
NEVER = 2**64 - 1


@pytest.fixture(params=TIERS, scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from machine(request.param)


@pytest.fixture
def hart(shared: Machine) -> Machine:
    shared.reset()
    shared.load("nop; nop; nop; nop; ecall")
    return shared


def raise_lines(hart: Machine, numbers: set[int]) -> None:
    """Make exactly these pending."""
    state = hart.state
    state.line_msip, state.line_mtip = int(MSIP in numbers), int(MTIP in numbers)
    state.line_meip, state.line_seip = int(MEIP in numbers), int(SEIP in numbers)
    state.mip = sum(1 << n for n in numbers if n in (SSIP, STIP))


def step(hart: Machine, privilege: int) -> int | None:
    """One step at CODE in that mode; the number of the interrupt that was taken, if one was."""
    state = hart.state
    state.pc, state.privilege, state.mcause, state.scause = CODE, privilege, 0, 0
    hart.cpu.flush()
    hart.cpu.step()
    if state.pc == CODE + 4:
        assert state.privilege == privilege
        return None
    cause, epc = (state.mcause, state.mepc) if state.pc == HANDLER else (state.scause, state.sepc)
    assert state.pc == (HANDLER if state.privilege == 3 else SUPERVISOR_HANDLER)
    assert state.privilege == (3 if state.mcause else 1)
    assert epc == CODE
    assert cause & INTERRUPT
    return int(cause) & 63


@pytest.mark.parametrize("number", PRIORITY)
def test_when_an_interrupt_is_taken(hart: Machine, number: int) -> None:
    raise_lines(hart, {number})
    delegable = number in (SSIP, STIP, SEIP)
    for privilege, enabled, mie, sie, delegated in itertools.product((0, 1, 3), (0, 1), (0, 1), (0, 1), (0, 1)):
        if delegated and not delegable:
            continue
        state = hart.state
        state.mie = enabled << number
        state.mideleg = delegated << number
        state.mstatus = mie * MIE | sie * SIE
        if delegated:
            taken = enabled and (privilege == 0 or (privilege == 1 and sie))
        else:
            taken = enabled and (privilege < 3 or mie)
        case = f"in {privilege}, enabled {enabled}, MIE {mie}, SIE {sie}, delegated {delegated}"
        assert step(hart, privilege) == (number if taken else None), case
        if taken:
            assert state.privilege == (1 if delegated else 3)
            assert (state.stval if delegated else state.mtval) == 0


def test_priority(hart: Machine) -> None:
    """Every pair; then all of them, with and without delegation."""
    state = hart.state
    for a, b in itertools.combinations(PRIORITY, 2):
        raise_lines(hart, {a, b})
        state.mie, state.mstatus = 1 << a | 1 << b, MIE
        assert step(hart, 3) == a
    raise_lines(hart, set(PRIORITY))
    for n in range(len(PRIORITY)):
        state.mie, state.mstatus = sum(1 << p for p in PRIORITY[n:]), 0
        assert step(hart, 1) == PRIORITY[n]
    state.mie = sum(1 << p for p in PRIORITY)
    state.mideleg = 0x222
    for waiting, privilege, expected in [
        ({SEIP, SSIP, STIP}, 0, SEIP), ({SSIP, STIP}, 0, SSIP), ({STIP}, 0, STIP),
        ({SEIP, MTIP}, 0, MTIP), ({SEIP, SSIP, MEIP, MSIP}, 0, MEIP),
    ]:  # fmt: skip
        raise_lines(hart, waiting)
        assert step(hart, privilege) == expected
    # One for machine mode comes first, though another is of higher priority.
    state.mideleg = 0x200
    raise_lines(hart, {SEIP, SSIP, STIP})
    state.mstatus = 0
    assert step(hart, 0) == SSIP
    state.mstatus = SIE
    assert step(hart, 1) == SSIP


@pytest.mark.parametrize("number", PRIORITY)
def test_vectors(hart: Machine, number: int) -> None:
    state = hart.state
    raise_lines(hart, {number})
    state.mie, state.mstatus = 0xAAA, MIE
    state.mtvec = HANDLER + 0x200 | 1
    state.pc = CODE
    hart.cpu.flush()
    hart.cpu.step()
    assert state.pc == HANDLER + 0x200 + 4 * number
    if number in (SSIP, STIP, SEIP):
        state.mideleg, state.stvec, state.privilege, state.pc = 0x222, HANDLER + 0x300 | 1, 0, CODE
        hart.cpu.flush()
        hart.cpu.step()
        assert state.pc == HANDLER + 0x300 + 4 * number


@pytest.mark.parametrize("enable", [
    "csrs mstatus, s1", "csrs sstatus, s1", "csrw mie, s2", "csrw sie, s2", "csrw mip, s2", "csrs sip, s2",
    "mret", "sret", "csrw mideleg, s3", "csrs menvcfg, s4", "csrw stimecmp, zero", "csrw mideleg, zero",
])  # fmt: skip
def test_what_enables_takes_effect_before_the_next_instruction(hart: Machine, enable: str) -> None:
    """In the midst of straight code, not just at the next jump."""
    state = hart.state
    state.x[9], state.x[18], state.x[19], state.x[20] = SIE | MIE, 0x222, 0x222, STCE
    state.mie = state.mideleg = 0x222
    state.mcounteren = 2
    state.mepc = state.sepc = CODE + 8
    privilege = 1
    ready = {"mip": 0x2, "mstatus": SIE}
    match enable:
        case "csrs mstatus, s1":
            privilege, ready = 3, {"mip": 2, "mideleg": 0}
        case "csrs sstatus, s1":
            ready = {"mip": 2, "mstatus": 0}
        case "csrw mie, s2":
            privilege, ready = 3, {"mip": 2, "mideleg": 0, "mie": 0, "mstatus": MIE}
        case "csrw sie, s2":
            ready = {"mip": 2, "mie": 0, "mstatus": SIE}
        case "csrw mip, s2":
            privilege, ready = 3, {"mideleg": 0, "mstatus": MIE}
        case "csrs sip, s2":
            ready = {"mstatus": SIE}
        case "mret":
            privilege, ready = 3, {"mip": 2, "mstatus": 1 << 11 | SIE}
        case "sret":
            ready = {"mip": 2, "mstatus": 1 << 5 | 1 << 8}
        case "csrw mideleg, s3":
            # From machine mode, where it is masked, to none; so nothing is taken yet.
            privilege, ready = 3, {"mip": 2, "mideleg": 0, "mstatus": 0}
        case "csrs menvcfg, s4":
            privilege, ready = 3, {"stimecmp": 0, "mideleg": 0, "mstatus": MIE}
        case "csrw stimecmp, zero":
            ready = {"menvcfg": STCE, "mstatus": SIE, "stimecmp": NEVER}
        case "csrw mideleg, zero":
            privilege, ready = 3, {"mip": 2, "mstatus": MIE}
    state.mip = 0
    for name, value in ready.items():
        setattr(state, name, value)
    hart.load(f"nop; {enable}; nop; nop; nop; ecall")
    outcome = hart.go(CODE, privilege)
    if enable == "csrw mideleg, s3":
        assert outcome.cause == 11
        return
    assert outcome.cause & INTERRUPT
    number = SEIP if "mip" in enable else STIP if "menvcfg" in enable or "stimecmp" in enable else SSIP
    assert outcome.cause & 63 == number
    assert outcome.pc == CODE + 8
    assert outcome.mode == (1 if state.mideleg else 3)


def test_an_interrupt_from_another_hart_becomes_ssip(hart: Machine) -> None:
    state = hart.state
    state.mie, state.mideleg, state.mstatus = 0x222, 0x222, SIE
    state.raise_ssip = 1
    assert step(hart, 1) == SSIP
    assert state.raise_ssip == 0
    assert state.mip == 2, "it stays until software clears it"


def test_interrupts_come_in_a_loop(hart: Machine) -> None:
    """The timer ends an endless loop."""
    state = hart.state
    state.mie, state.mstatus = 1 << MTIP, MIE
    state.mtimecmp = hart.cpu.clock + 2_000_000  # 200 ms, so that the loop has begun on a busy host
    hart.load("1: addi a0, a0, 1; j 1b")
    outcome = hart.go(CODE, 3, steps=2_000_000_000 if hart.tier == "native" else 100_000)
    assert outcome.cause == INTERRUPT | MTIP
    assert hart.x("a0") > 0
    assert hart.cpu.clock >= state.mtimecmp


# Timers, wfi


def test_machine_timer(hart: Machine) -> None:
    state = hart.state
    now = hart.cpu.clock
    hart.run("csrr a0, mip; ecall")
    assert hart.x("a0") == 0
    state.mtimecmp = now
    hart.run("csrr a0, mip; ecall")
    assert hart.x("a0") == 1 << MTIP
    state.mtimecmp = now + 10**10
    hart.run("csrr a0, mip; ecall")
    assert hart.x("a0") == 0


def test_supervisor_timer(hart: Machine) -> None:
    state = hart.state
    for compare, stce, expected in ((0, 0, 0), (0, STCE, 1 << STIP), (NEVER, STCE, 0), (10**18, STCE, 0)):
        state.stimecmp, state.menvcfg = compare, stce
        hart.run("csrr a0, mip; ecall")
        assert hart.x("a0") == expected
    state.stimecmp, state.menvcfg = 0, STCE
    state.mie, state.mideleg, state.mstatus = 0x222, 0x222, SIE
    assert step(hart, 1) == STIP
    # Writing stimecmp is how it is acknowledged.
    state.mstatus = 0
    state.mcounteren = 2
    hart.run("csrr a0, sip; li t0, -1; csrw stimecmp, t0; csrr a1, sip; ecall", 1)
    assert (hart.x("a0"), hart.x("a1")) == (1 << STIP, 0)


def test_wake(hart: Machine) -> None:
    """wfi ends for what mie enables, whatever mstatus and mideleg say."""
    wake = hart.cpu.architecture.hooks["wake"]
    state = hart.state
    for status, delegated, privilege in itertools.product((0, SIE | MIE), (0, 0x222), (1, 3)):
        state.mstatus, state.mideleg, state.privilege = status, delegated, privilege
        for number in PRIORITY:
            raise_lines(hart, {number})
            state.mie = 0
            assert not wake(hart.cpu.view)
            state.mie = 0xAAA & ~(1 << number)
            assert not wake(hart.cpu.view)
            state.mie = 1 << number
            assert wake(hart.cpu.view)
    raise_lines(hart, set())
    state.mie = 0xAAA
    assert not wake(hart.cpu.view)
    state.raise_ssip = 1
    assert wake(hart.cpu.view)


def test_deadline(hart: Machine) -> None:
    deadline = hart.cpu.architecture.hooks["deadline"]
    state = hart.state
    state.mtimecmp, state.stimecmp = 1000, 900
    for mie, stce, expected in (
        (0, STCE, NEVER), (1 << MTIP, STCE, 1000), (1 << STIP, STCE, 900), (1 << STIP, 0, NEVER),
        (1 << STIP | 1 << MTIP, STCE, 900), (1 << STIP | 1 << MTIP, 0, 1000), (1 << SEIP | 1 << SSIP, STCE, NEVER),
    ):  # fmt: skip
        state.mie, state.menvcfg = mie, stce
        assert deadline(hart.cpu.view) == expected
    state.mie, state.stimecmp = 0xAAA, 2000
    state.menvcfg = STCE
    assert deadline(hart.cpu.view) == 1000


def test_wfi_leaves_and_goes_on_behind(hart: Machine) -> None:
    state = hart.state
    for privilege in (1, 3):
        hart.load("nop; wfi; li a0, 7; ecall")
        state.pc, state.privilege = CODE, privilege
        hart.cpu.flush()
        found = hart.cpu.run(100)
        assert (found.kind, found.reason, state.pc) == ("leave", "wfi", CODE + 8)
        outcome = hart.go(CODE + 8)
        assert (outcome.cause, hart.x("a0")) == (9 if privilege == 1 else 11, 7)
    # The interrupt that ends it is taken behind it.
    state.pc, state.privilege = CODE, 3
    hart.cpu.flush()
    hart.cpu.run(100)
    state.mie, state.line_meip, state.mstatus = 1 << MEIP, 1, MIE
    outcome = hart.go(CODE + 8)
    assert (outcome.cause, outcome.pc) == (INTERRUPT | MEIP, CODE + 8)
