"""Entering and leaving traps: what is saved where, delegation, xRET, trap values."""

import itertools
from collections.abc import Iterator

import pytest

from support.privileged import BASE, CODE, DATA, ECALL, HANDLER, SIZE, SUPERVISOR_HANDLER, TIERS, Machine, machine

SIE, MIE, SPIE, MPIE, SPP, MPRV, TW, TSR = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 8, 1 << 17, 1 << 21, 1 << 22
NOWHERE = 0x4000_0000


@pytest.fixture(params=TIERS, scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from machine(request.param)


@pytest.fixture
def hart(shared: Machine) -> Machine:
    shared.reset()
    return shared


# name: (program, cause, trap value; a string is a symbol of the program). The instruction at 1: traps.
TRAPS: dict[str, tuple[str, int, int | str]] = {
    "illegal": ("1: .word 0xffffffff", 2, 0xFFFFFFFF),
    "illegal zero": ("1: .half 0, 0", 2, 0),
    "illegal compressed": ("nop; 1: .half 0x8002, 0", 2, 0x8002),
    "illegal word of 0x57": ("1: .word 0x00000057", 2, 0x57),
    "no such register": ("1: csrr a0, 0x5c0", 2, 0x5C002573),
    "ebreak": ("1: ebreak", 3, "here"),
    "c.ebreak": ("1: .half 0x9002", 3, "here"),
    "misaligned lr": (f"li a1, {DATA + 2}; 1: lr.w a0, (a1)", 4, DATA + 2),
    "misaligned lr.d": (f"li a1, {DATA + 4}; 1: lr.d a0, (a1)", 4, DATA + 4),
    "misaligned amo": (f"li a1, {DATA + 1}; 1: amoadd.w a0, a0, (a1)", 6, DATA + 1),
    "misaligned sc": (f"li a1, {DATA + 4}; 1: sc.d a0, a0, (a1)", 6, DATA + 4),
    "load access": (f"li a1, {NOWHERE}; 1: lw a0, 4(a1)", 5, NOWHERE + 4),
    "load beyond memory": (f"li a1, {BASE + SIZE}; 1: lb a0, (a1)", 5, BASE + SIZE),
    "load at 2**56": (f"li a1, {1 << 56}; 1: lb a0, (a1)", 5, 1 << 56),
    "load at -1": ("li a1, -1; 1: lb a0, (a1)", 5, 2**64 - 1),
    "store access": (f"li a1, {NOWHERE}; 1: sd a0, -8(a1)", 7, NOWHERE - 8),
    "amo access": (f"li a1, {NOWHERE}; 1: amoadd.d a0, a0, (a1)", 7, NOWHERE),
    "lr access": (f"li a1, {NOWHERE}; 1: lr.d a0, (a1)", 5, NOWHERE),
}


def check_entry(hart: Machine, name: str, privilege: int, delegated: bool, status: int) -> None:
    text, cause, value = TRAPS[name]
    state = hart.state
    symbols = hart.load(f"{text}\nhere = 1b")
    here = symbols["here"]
    state.mstatus = status
    state.medeleg = 1 << cause if delegated else 0xB3FF & ~(1 << cause)
    outcome = hart.go(CODE, privilege)
    in_supervisor = delegated and privilege != 3
    assert outcome.mode == (1 if in_supervisor else 3)
    assert outcome.cause == cause
    assert outcome.value == (here if value == "here" else value)
    assert outcome.pc == here
    after = int(state.mstatus)
    if in_supervisor:
        # Then the ebreak of the handler, in supervisor mode, to machine mode
        after = after & ~(3 << 11 | MPIE | MIE) | status & (3 << 11 | MPIE | MIE)
        expected = status & ~(SIE | SPIE | SPP) | (SPIE if status & SIE else 0) | (SPP if privilege else 0)
    else:
        expected = status & ~(MIE | MPIE | 3 << 11) | (MPIE if status & MIE else 0) | privilege << 11
    assert after == expected
    assert state.privilege == 3


@pytest.mark.parametrize("name", TRAPS)
def test_trap_entry(hart: Machine, name: str) -> None:
    for privilege, delegated in itertools.product((0, 1, 3), (False, True)):
        cause = TRAPS[name][1]
        if delegated and cause == 3 and privilege != 3:
            continue  # the handler's own ebreak would go to itself
        check_entry(hart, name, privilege, delegated, 0)


@pytest.mark.parametrize("status", [0, SIE, MIE, SIE | MIE, SPIE | MPIE, 0x7E61AA & ~MPRV & ~(3 << 11), 3 << 11 | SPP])
def test_status_at_entry(hart: Machine, status: int) -> None:
    for privilege, delegated in itertools.product((0, 1, 3), (False, True)):
        check_entry(hart, "illegal", privilege, delegated, status)


def test_ecall(hart: Machine) -> None:
    for privilege, cause in ECALL.items():
        outcome = hart.run("1: ecall\nhere = 1b", privilege)
        assert (outcome.mode, outcome.cause, outcome.value, outcome.pc) == (3, cause, 0, CODE)
    hart.state.medeleg = 1 << 8 | 1 << 9
    for privilege, mode in ((0, 1), (1, 1), (3, 3)):
        outcome = hart.run("ecall", privilege)
        assert (outcome.mode, outcome.cause, outcome.value, outcome.pc) == (mode, ECALL[privilege], 0, CODE)


def test_ebreak_delegated(hart: Machine) -> None:
    """The supervisor's handler is a different one, as its usual one breaks too."""
    hart.load("ecall", DATA)
    hart.state.stvec = DATA
    hart.state.medeleg = 1 << 3
    hart.run("nop; ebreak", 0)
    assert (hart.state.scause, hart.state.stval, hart.state.sepc) == (3, CODE + 4, CODE + 4)
    assert (hart.state.mcause, hart.state.mepc) == (9, DATA)


@pytest.mark.parametrize("privilege", [0, 1])
def test_fetch_faults(hart: Machine, privilege: int) -> None:
    for target in (NOWHERE, BASE + SIZE, 1 << 56, 2**64 - 2):
        hart.state.x[11] = target
        outcome = hart.run("jr a1", privilege)
        assert (outcome.cause, outcome.value, outcome.pc) == (1, target, target)
    # Half an instruction in memory: the value is the address of the other half
    last = BASE + SIZE - 2
    hart.memory.write(last, b"\x13\x05")
    hart.state.x[11] = last
    outcome = hart.run("jr a1", privilege)
    assert (outcome.cause, outcome.value, outcome.pc) == (1, last + 2, last)


def test_exceptions_ignore_vectored_mode(hart: Machine) -> None:
    hart.state.mtvec = HANDLER | 1
    assert hart.run("ecall", 0).cause == 8
    hart.state.stvec = SUPERVISOR_HANDLER | 1
    hart.state.medeleg = 1 << 8
    assert hart.run("ecall", 0).mode == 1


def test_traps_change_no_other_registers(hart: Machine) -> None:
    state = hart.state
    names = ("sepc", "scause", "stval", "sscratch", "stvec", "mscratch", "medeleg", "mideleg", "mie", "satp", "mtvec")
    for name in ("sepc", "scause", "stval"):
        setattr(state, name, 0x1234)
    before = {n: int(getattr(state, n)) for n in names}
    hart.run(".word 0", 1)
    assert {n: int(getattr(state, n)) for n in names} == before
    state.medeleg = 4
    state.mepc, state.mcause, state.mtval = 0x44, 0x55, 0x66
    state.stvec = CODE + 16
    # The supervisor's handler reads nothing of machine mode: look before its own trap to there.
    hart.load(".word 0; .balign 16; j .")
    state.pc, state.privilege = CODE, 1
    hart.cpu.flush()
    hart.cpu.step()
    assert (state.mepc, state.mcause, state.mtval) == (0x44, 0x55, 0x66)
    assert (state.pc, state.sepc, state.scause) == (CODE + 16, CODE, 2)


# Returning


@pytest.mark.parametrize("mpp", [0, 1, 3])
@pytest.mark.parametrize("mpie", [0, 1])
@pytest.mark.parametrize("mprv", [0, 1])
def test_mret(hart: Machine, mpp: int, mpie: int, mprv: int) -> None:
    state = hart.state
    status = mpp << 11 | mpie * MPIE | mprv * MPRV | MIE * (1 - mpie) | SPP | SIE
    state.mstatus, state.mepc = status, DATA
    hart.load("mret")
    state.pc, state.privilege = CODE, 3
    hart.cpu.flush()
    hart.cpu.step()
    assert (state.pc, state.privilege) == (DATA, mpp)
    expected = status & ~(MIE | 3 << 11) | MPIE | mpie * MIE
    assert state.mstatus == (expected if mpp == 3 else expected & ~MPRV)


@pytest.mark.parametrize("spp", [0, 1])
@pytest.mark.parametrize("spie", [0, 1])
@pytest.mark.parametrize("privilege", [1, 3])
def test_sret(hart: Machine, spp: int, spie: int, privilege: int) -> None:
    state = hart.state
    status = spp * SPP | spie * SPIE | MPRV * (privilege == 3) | SIE * (1 - spie) | MIE | 3 << 11
    state.mstatus, state.sepc = status, DATA
    hart.load("sret")
    state.pc, state.privilege = CODE, privilege
    hart.cpu.flush()
    hart.cpu.step()
    assert (state.pc, state.privilege) == (DATA, spp)
    assert state.mstatus == status & ~(SIE | SPP | MPRV) | SPIE | spie * SIE


@pytest.mark.parametrize("instruction", ["mret", "sret", "wfi", "sfence.vma"])
@pytest.mark.parametrize("status", [0, TSR, TW])
def test_who_may(hart: Machine, instruction: str, status: int) -> None:
    allowed = {
        "mret": {3}, "sret": {3} if status == TSR else {1, 3}, "wfi": {3} if status == TW else {1, 3},
        "sfence.vma": {1, 3},
    }[instruction]  # fmt: skip
    for privilege in (0, 1, 3):
        state = hart.state
        state.mstatus, state.mepc, state.sepc = status | 3 << 11, DATA, DATA
        hart.load(instruction)
        state.pc, state.privilege, state.mcause = CODE, privilege, 0
        hart.cpu.flush()
        found = hart.cpu.step()
        if privilege in allowed:
            assert state.pc == (DATA if instruction.endswith("ret") else CODE + 4)
            assert found.kind == ("leave" if instruction == "wfi" else "step")
        else:
            assert (state.pc, state.mcause, state.mepc) == (HANDLER, 2, CODE)
            assert state.mtval == int.from_bytes(hart.memory.read(CODE, 4), "little")


def test_a_trap_ends_a_reservation(hart: Machine) -> None:
    hart.load("csrr t0, mepc; addi t0, t0, 4; csrw mepc, t0; mret", DATA + 64)
    hart.run(f"""
        csrr s0, mtvec
        li t0, {DATA + 64}; csrw mtvec, t0
        li a1, {DATA}
        lr.d a0, (a1); sc.d a2, a0, (a1)
        lr.d a0, (a1); .word 0x00100073; sc.d a3, a0, (a1)
        csrw mtvec, s0
        ecall
    """)
    assert (hart.x("a2"), hart.x("a3")) == (0, 1)


def test_the_stack_of_two_levels(hart: Machine) -> None:
    """User to supervisor by delegation, to machine, and back down by mret and sret."""
    state = hart.state
    hart.load("""
        # machine: count in s1, return behind the ecall
        addi s1, s1, 1
        csrr t0, mepc; addi t0, t0, 4; csrw mepc, t0
        mret
    """, DATA)
    hart.load("""
        addi s2, s2, 1
        csrr s3, sstatus
        ecall
        csrr s4, sstatus
        csrr t0, sepc; addi t0, t0, 4; csrw sepc, t0
        sret
    """, DATA + 0x100)
    state.mtvec, state.stvec = DATA, DATA + 0x100
    state.medeleg = 1 << 8
    state.mstatus = SIE
    hart.load("ecall; ecall; ecall; j .")
    state.pc, state.privilege = CODE, 0
    hart.cpu.flush()
    for _ in range(3 * 13 + 20):
        hart.cpu.step()
    assert (hart.x("s1"), hart.x("s2")) == (3, 3)
    assert hart.x("s3") & (SPP | SIE | SPIE) == SPIE
    assert hart.x("s4") == hart.x("s3")
    assert (state.privilege, state.pc) == (0, CODE + 12)
    assert state.mstatus & (SIE | SPIE) == SIE | SPIE


def test_ecall_to_the_platform(hart: Machine) -> None:
    state = hart.state
    state.sbi = 1
    hart.load("ecall; ecall")
    state.pc, state.privilege = CODE, 1
    hart.cpu.flush()
    found = hart.cpu.run(100)
    assert (found.kind, found.reason, state.pc) == ("leave", "sbi", CODE + 4)
    assert hart.run("ecall", 0).cause == 8
