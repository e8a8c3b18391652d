"""The 16550A serial port.

National Semiconductor PC16550D data sheet, section "Registers" and its table
"Interrupt Control Functions".
Device tree ``ns16550a`` with ``reg-shift`` 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from polyvisor.dataclass import dataclass, field
from polyvisor.devices.lines import Line
from polyvisor.engine.memory import BusError

if TYPE_CHECKING:
    from polyvisor.engine.outside import Outside, Plain, Source

WINDOW_SIZE = 0x100

# Offsets; DLL and DLM replace RBR/THR and IER while LCR.DLAB is set.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_ERBFI = 0x01  # received data available
IER_ETBEI = 0x02  # transmitter holding register empty
IER_ELSI = 0x04  # receiver line status
IER_EDSSI = 0x08  # modem status

IIR_MODEM_STATUS = 0x00
IIR_NONE = 0x01
IIR_THRE = 0x02
IIR_RECEIVED = 0x04
IIR_LINE_STATUS = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFOS = 0xC0

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_CLEAR_TX = 0x04

LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10

LSR_DR = 0x01
LSR_OE = 0x02
LSR_THRE = 0x20
LSR_TEMT = 0x40

MSR_TERI = 0x04
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80

FIFO_SIZE = 16
BACKLOG_SIZE = 64 * 1024
_TRIGGER = (1, 4, 8, 14)


@dataclass
class Uart16550State:
    """Registers as the guest sees them, and what the ports hold."""

    rx: list[int] = field(default_factory=list)
    """Received bytes in the FIFO (one at most while the FIFOs are off), oldest first."""
    backlog: bytes = b""
    """Bytes on their way to the receiver, oldest first."""
    rbr: int = 0
    """The byte read last: what an empty receiver shows."""
    ier: int = 0
    fcr: int = 0
    """FIFO enable (bit 0) and trigger level (bits 7:6)."""
    lcr: int = 0
    mcr: int = 0
    msr: int = MSR_CTS | MSR_DSR | MSR_DCD
    scr: int = 0
    dll: int = 0
    dlm: int = 0
    overrun: int = 0
    """LSR.OE."""
    thre_interrupt: int = 0
    """1 from when the holding register became empty until IIR told so."""
    asserted: int = 0
    """1 while the interrupt line is asserted."""


class Uart16550:
    """A 16550A whose far end is ready at all times (CTS, DSR and DCD are asserted) and infinitely fast.

    ``output(data)`` gets each byte as it is transmitted, on the thread of the hart that wrote it and without a lock
    held. So the transmitter is always empty; the divisor, word length, parity and break settings are kept but change
    nothing, and no parity, framing or break errors occur. The character timeout passes at once: bytes fewer than
    the FIFO's trigger level interrupt as a timeout. The line is not gated by OUT2.

    Registers are bytes at offsets 0 to 7 and answer accesses of 1 byte, and of 4 bytes as if of 1; others
    raise BusError.
    """

    def __init__(self, line: Line, output: Callable[[bytes], None]) -> None:
        self.state = Uart16550State()
        self._line = line
        self._output = output
        self.lock = threading.Lock()
        """Held while registers and state change."""
        self._source: Source | None = None
        self._posted = 0  # bytes that were taken and wait for the end of a turn

    def connect(self, outside: Outside) -> None:
        """The machine is in virtual time: received bytes come in by ``outside``."""
        self._source = outside.source("uart", self._enter)

    def receive(self, data: bytes) -> int:
        """Bytes from the far end, from any thread. Returns how many of the first are taken.

        What the FIFO has no room for waits, up to 64 KiB; none of it is lost.
        """
        with self.lock:
            room = BACKLOG_SIZE - len(self.state.backlog) - self._posted
            taken = bytes(data[: max(room, 0)])
            if taken and self._source is not None:
                self._posted += len(taken)
                self._source.post("receive", taken)
            elif taken:
                self.state.backlog += taken
                self._update()
            return len(taken)

    def _enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        data = arguments[0]
        assert isinstance(data, bytes)
        with self.lock:
            self._posted = max(0, self._posted - len(data))
            self.state.backlog += data
            self._update()

    def take(self, count: int) -> bytes:
        """Up to ``count`` received bytes, taken past the guest's registers (for firmware that serves a console)."""
        with self.lock:
            state = self.state
            data = (bytes(state.rx) + state.backlog)[:count]
            kept = (bytes(state.rx) + state.backlog)[count:]
            state.rx, state.backlog = [], kept
            self._update()
            return data

    @property
    def listening(self) -> bool:
        """Whether the guest has asked for interrupts on received bytes: its driver reads the port."""
        return bool(self.state.ier & 1)

    def read(self, offset: int, size: int) -> int:
        """Raises BusError as the class says."""
        self._check(offset, size)
        with self.lock:
            state = self.state
            if offset == RBR:
                if state.lcr & LCR_DLAB:
                    return state.dll
                if state.rx:
                    state.rbr = state.rx.pop(0)
                    self._update()
                return state.rbr
            if offset == IER:
                return state.dlm if state.lcr & LCR_DLAB else state.ier
            if offset == IIR:
                source = self._interrupt()
                if source == IIR_THRE:
                    state.thre_interrupt = 0
                    self._update()
                return source | (IIR_FIFOS if state.fcr & FCR_ENABLE else 0)
            if offset == LCR:
                return state.lcr
            if offset == MCR:
                return state.mcr
            if offset == LSR:
                value = LSR_THRE | LSR_TEMT | (LSR_DR if state.rx else 0) | (LSR_OE if state.overrun else 0)
                if state.overrun:
                    state.overrun = 0
                    self._update()
                return value
            if offset == MSR:
                value = state.msr
                if value & 0x0F:
                    state.msr &= 0xF0
                    self._update()
                return value
            return state.scr

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError as the class says."""
        self._check(offset, size)
        value &= 0xFF
        sent = False
        with self.lock:
            state = self.state
            if offset == THR:
                if state.lcr & LCR_DLAB:
                    state.dll = value
                    return
                if state.mcr & MCR_LOOP:
                    self._loop_back(value)
                else:
                    sent = True
                state.thre_interrupt = 1
            elif offset == IER:
                if state.lcr & LCR_DLAB:
                    state.dlm = value
                    return
                if value & ~state.ier & IER_ETBEI:
                    state.thre_interrupt = 1  # enabled while empty
                state.ier = value & 0x0F
            elif offset == FCR:
                self._set_fcr(value)
            elif offset == LCR:
                state.lcr = value
            elif offset == MCR:
                state.mcr = value & 0x1F
                self._set_modem_inputs()
            elif offset == SCR:
                state.scr = value
            # LSR and MSR are for reading only.
            self._update()
        if sent:
            self._output(bytes((value,)))

    def _check(self, offset: int, size: int) -> None:
        if size not in (1, 4) or not 0 <= offset <= SCR:
            raise BusError(offset, size)

    def _capacity(self) -> int:
        return FIFO_SIZE if self.state.fcr & FCR_ENABLE else 1

    def _loop_back(self, value: int) -> None:
        state = self.state
        if len(state.rx) < self._capacity():
            state.rx.append(value)
            return
        state.overrun = 1
        if not state.fcr & FCR_ENABLE:
            state.rx[0] = value  # a full FIFO keeps its bytes, the single register does not

    def _set_fcr(self, value: int) -> None:
        state = self.state
        if (value ^ state.fcr) & FCR_ENABLE:
            state.rx.clear()
        if not value & FCR_ENABLE:
            state.fcr = 0  # the other bits count only together with the enable bit
            return
        if value & FCR_CLEAR_RX:
            state.rx.clear()
        state.fcr = value & (FCR_ENABLE | 0xC0)

    def _set_modem_inputs(self) -> None:
        state = self.state
        if state.mcr & MCR_LOOP:
            wires = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
            inputs = sum(status for control, status in wires if state.mcr & control)
        else:
            inputs = MSR_CTS | MSR_DSR | MSR_DCD
        changed = (inputs ^ state.msr) & 0xF0
        deltas = changed >> 4 & ~MSR_TERI
        if changed & MSR_RI and not inputs & MSR_RI:
            deltas |= MSR_TERI  # the ring indicator counts only when it ends
        state.msr = inputs | state.msr & 0x0F | deltas

    def _interrupt(self) -> int:
        """The identification of the pending interrupt of highest priority, IIR bits 3:0."""
        state = self.state
        if state.ier & IER_ELSI and state.overrun:
            return IIR_LINE_STATUS
        if state.ier & IER_ERBFI and state.rx:
            enough = not state.fcr & FCR_ENABLE or len(state.rx) >= _TRIGGER[state.fcr >> 6]
            return IIR_RECEIVED if enough else IIR_TIMEOUT
        if state.ier & IER_ETBEI and state.thre_interrupt:
            return IIR_THRE
        if state.ier & IER_EDSSI and state.msr & 0x0F:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update(self) -> None:
        """Move waiting bytes into the receiver, then drive the line. With the lock held."""
        state = self.state
        if state.backlog and not state.rx and not state.mcr & MCR_LOOP:
            count = self._capacity()
            state.rx.extend(state.backlog[:count])
            state.backlog = state.backlog[count:]
        asserted = int(self._interrupt() != IIR_NONE)
        if asserted != state.asserted:
            state.asserted = asserted
            self._line.set(bool(asserted))
