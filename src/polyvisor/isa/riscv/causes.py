"""Exception causes (Privileged Architecture, table of mcause values) and the traps all parts raise."""

from polyvisor.adl import Trap, function

MISALIGNED_FETCH = 0
FETCH_ACCESS = 1
ILLEGAL_INSTRUCTION = 2
BREAKPOINT = 3
MISALIGNED_LOAD = 4
LOAD_ACCESS = 5
MISALIGNED_STORE = 6
STORE_ACCESS = 7
ECALL_USER = 8
ECALL_SUPERVISOR = 9
ECALL_MACHINE = 11
FETCH_PAGE = 12
LOAD_PAGE = 13
STORE_PAGE = 15


@function
def illegal(cpu):
    """Raise an illegal-instruction exception; the trap value is the instruction."""
    raise Trap(ILLEGAL_INSTRUCTION, cpu.encoding())
