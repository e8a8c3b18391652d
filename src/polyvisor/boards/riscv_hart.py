"""A RISC-V hart on a board: what interrupt controllers, timers and the SBI ask of it."""

from __future__ import annotations

from collections.abc import Callable

from polyvisor.engine.executor import Executor
from polyvisor.engine.hart import Hart
from polyvisor.isa.riscv.pmp import open_pmp
from polyvisor.isa.riscv.state import PMP_ENTRIES

from .sbi import HartStatus

# mstatus.FS, bits 14:13: initial, so that a kernel may use floating point at once.
_FS_INITIAL = 1 << 13
# menvcfg: STCE lets supervisor mode program its timer, ADUE lets the hardware update A and D bits.
_STCE, _ADUE = 1 << 63, 1 << 61
# Everything but calls from supervisor and machine mode; and the supervisor's three interrupts.
_DELEGATED_EXCEPTIONS = 0xFFFF & ~(1 << 9 | 1 << 11)
_DELEGATED_INTERRUPTS = 1 << 1 | 1 << 5 | 1 << 9


class RiscvHart(Hart):
    """A hart with the states of the SBI's hart state management (SBI 2.0, chapter 9)."""

    def __init__(
        self, cpu: Executor, number: int, frequency: int, failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__(cpu, number, frequency, failed)
        self.state.mhartid = number

    # Where it starts

    def reset_machine_mode(self, pc: int, a1: int = 0, a2: int = 0) -> None:
        """Ready to run firmware or a bare program at ``pc`` in machine mode."""
        self.cpu.reset()
        self.state.mhartid = self.hart_id
        self.state.pc = pc
        self.state.x[10], self.state.x[11], self.state.x[12] = self.hart_id, a1, a2

    def reset_supervisor_mode(self, pc: int, a1: int) -> None:
        """Ready to run a kernel at ``pc`` in supervisor mode, as firmware that serves the SBI leaves it."""
        self.cpu.reset()
        state = self.state
        state.mhartid = self.hart_id
        state.privilege = 1
        state.sbi = 1
        state.medeleg = _DELEGATED_EXCEPTIONS
        state.mideleg = _DELEGATED_INTERRUPTS
        state.mcounteren = 0xFFFF_FFFF
        state.menvcfg = _STCE | _ADUE
        state.stimecmp = 2**64 - 1
        state.mstatus = int(state.mstatus) | _FS_INITIAL
        open_pmp(state)
        state.pc = pc
        state.x[10], state.x[11] = self.hart_id, a1

    def check_state(self) -> None:
        """After registers were set from outside. Raises ValueError for what no program could have made of them."""
        state = self.state
        previous = int(state.mstatus) >> 11 & 3
        if int(state.privilege) not in (0, 1, 3) or previous == 2 or int(state.pmp_used) > PMP_ENTRIES:
            raise ValueError(f"registers of hart {self.hart_id} have values that they cannot have")
        if int(state.mhartid) != self.hart_id:
            raise ValueError(f"hart {self.hart_id} has the state of another")

    # For the SBI

    @property
    def status(self) -> HartStatus:
        """Its state, as hart state management tells it."""
        return "started" if self.started else "stopped"

    def start(self, pc: int, opaque: int) -> None:
        """Start a stopped hart in supervisor mode at physical address ``pc``."""
        self.reset_supervisor_mode(pc, opaque)
        self.begin()

    def stop_self(self) -> None:
        """Stop; called in the hart's own thread."""
        self.started = False

    def suspend(self) -> None:
        """Wait for an interrupt, keeping all state."""
        self.wait()

    def set_timer(self, ticks: int) -> None:
        """Raise the supervisor's timer interrupt when the time counter reaches ``ticks``."""
        self.state.stimecmp = ticks
        self.kick()

    def raise_ssip(self) -> None:
        """Raise the supervisor's software interrupt; software clears it."""
        self.state.raise_ssip = 1
        self.kick()

    def clear_ssip(self) -> bool:
        """Take the supervisor's software interrupt back; gives whether it was raised. In the hart's own thread."""
        raised = bool(self.state.raise_ssip) or bool(int(self.state.mip) & 2)
        self.state.raise_ssip = 0
        self.state.mip = int(self.state.mip) & ~2
        return raised

    def flush_remote(self) -> None:
        """Forget cached translations (and see new code) before executing anything more."""
        self.cpu.flush()

    # For the ACLINT

    @property
    def mtimecmp(self) -> int:
        """When machine mode's timer interrupt is due, in ticks."""
        return int(self.state.mtimecmp)

    @mtimecmp.setter
    def mtimecmp(self, ticks: int) -> None:
        self.state.mtimecmp = ticks
        self.kick()
