"""polyvisor.devices.uart."""

import threading

import pytest

from polyvisor.devices import uart
from polyvisor.devices.uart import DLL, DLM, FCR, IER, IIR, LCR, LSR, MCR, MSR, RBR, SCR, THR, Uart16550
from polyvisor.engine.memory import BusError


class Port:
    def __init__(self):
        self.level = False
        self.sent = b""
        self.uart = Uart16550(self, self.output)

    def set(self, level):
        assert level != self.level, "only changes are told"
        self.level = level

    def output(self, data):
        self.sent += data

    def get(self, offset):
        return self.uart.read(offset, 1)

    def put(self, offset, value):
        self.uart.write(offset, 1, value)


@pytest.fixture
def port():
    return Port()


def test_after_reset(port):
    assert [port.get(n) for n in range(8)] == [0, 0, 1, 0, 0, 0x60, 0xB0, 0]
    assert not port.level


def test_transmit(port):
    for byte in b"Hello":
        port.put(THR, byte)
        assert port.get(LSR) & 0x60 == 0x60
    port.uart.write(THR, 4, 0x12345621)
    assert port.sent == b"Hello!"


def test_divisor_latch(port):
    port.put(IER, 0x05)
    port.put(LCR, 0x83)
    port.put(DLL, 0x12)
    port.put(DLM, 0x34)
    assert (port.get(DLL), port.get(DLM)) == (0x12, 0x34)
    port.put(LCR, 0x03)
    assert (port.get(IER), port.get(LCR)) == (0x05, 0x03)
    assert port.sent == b""


def test_bits_that_do_not_exist(port):
    for register, mask in ((IER, 0x0F), (MCR, 0x1F), (SCR, 0xFF), (LCR, 0xFF)):
        port.put(LCR, 0)
        port.put(register, 0xFF)
        assert port.get(register) == mask


def test_receive_without_fifo(port):
    port.put(IER, uart.IER_ERBFI)
    assert port.uart.receive(b"ab") == 2
    assert port.level and port.get(IIR) == 0x04
    assert port.get(LSR) == 0x61
    assert (port.get(RBR), port.get(RBR)) == (0x61, 0x62)
    assert not port.level and port.get(LSR) == 0x60 and port.get(IIR) == 0x01
    assert port.get(RBR) == 0x62, "an empty receiver shows the last byte"


@pytest.mark.parametrize(("bits", "trigger"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_levels(port, bits, trigger):
    port.put(FCR, 0x01 | bits)
    port.put(IER, uart.IER_ERBFI)
    assert port.get(IIR) == 0xC1
    assert port.uart.receive(bytes(range(trigger))) == trigger
    assert port.get(IIR) == 0xC4
    assert port.get(RBR) == 0
    assert port.get(IIR) == (0xCC if trigger > 1 else 0xC1)
    assert [port.get(RBR) for _ in range(trigger - 1)] == list(range(1, trigger))
    assert not port.level


def test_long_input_arrives_in_order(port):
    port.put(FCR, 0x01)
    data = bytes(n * 7 & 0xFF for n in range(1000))
    assert port.uart.receive(data) == 1000
    assert len(port.uart.state.rx) == 16
    found = []
    while port.get(LSR) & 1:
        found.append(port.get(RBR))
    assert bytes(found) == data


def test_backpressure(port):
    assert port.uart.receive(bytes(100_000)) == 65536
    assert port.uart.receive(b"more") == 1, "one byte went on to the receiver"
    assert port.uart.receive(b"more") == 0
    assert port.uart.receive(b"") == 0


def test_thre_interrupt(port):
    port.put(IER, uart.IER_ETBEI)
    assert port.level, "enabling it while empty interrupts"
    assert port.get(IIR) == 0x02
    assert not port.level and port.get(IIR) == 0x01, "reading IIR clears it"
    port.put(IER, uart.IER_ETBEI)
    assert not port.level
    port.put(THR, 0x41)
    assert port.level and port.get(IIR) == 0x02
    port.put(THR, 0x41)
    port.put(IER, 0)
    assert not port.level
    port.put(IER, uart.IER_ETBEI)
    assert port.level


def test_probe_of_a_driver_for_a_lost_thre_interrupt(port):
    """A driver enables the interrupt twice and compares: the second time must interrupt like the first."""
    for _ in range(2):
        port.put(IER, 0)
        port.put(IER, uart.IER_ETBEI)
        assert port.get(LSR) & 0x40
        assert port.get(IIR) & 1 == 0
        port.put(IER, 0)


def test_reading_iir_for_another_source_keeps_thre(port):
    port.put(FCR, 0x01)
    port.put(IER, uart.IER_ETBEI | uart.IER_ERBFI)
    port.uart.receive(b"x")
    assert port.get(IIR) == 0xC4
    port.get(RBR)
    assert port.level
    assert port.get(IIR) == 0xC2
    assert not port.level


def test_fifo_reset(port):
    port.put(FCR, 0x01)
    port.uart.receive(b"abc")
    port.put(FCR, 0x03)
    assert port.get(LSR) & 1 == 0
    port.uart.receive(b"abc")
    port.put(FCR, 0x00)
    assert port.get(LSR) & 1 == 0 and port.get(IIR) == 0x01
    port.put(FCR, 0xC6)
    assert port.uart.state.fcr == 0, "without the enable bit the others do not count"


def test_loopback_data_and_overrun(port):
    port.put(FCR, 0x01)
    port.put(MCR, uart.MCR_LOOP)
    port.put(IER, uart.IER_ELSI | uart.IER_ERBFI)
    for byte in range(17):
        port.put(THR, byte)
    assert port.sent == b""
    assert port.get(IIR) == 0xC6
    assert port.get(LSR) == 0x63
    assert port.get(LSR) == 0x61, "reading LSR clears the overrun"
    assert port.get(IIR) == 0xC4
    assert [port.get(RBR) for _ in range(16)] == list(range(16))
    port.put(FCR, 0x00)
    port.put(THR, 1)
    port.put(THR, 2)
    assert port.get(LSR) & 2 and port.get(RBR) == 2, "without a FIFO the new byte replaces the old"


def test_input_waits_during_loopback(port):
    port.put(MCR, uart.MCR_LOOP)
    port.uart.receive(b"x")
    assert port.get(LSR) & 1 == 0
    port.put(MCR, 0)
    assert port.get(RBR) == ord("x")


def test_loopback_modem_lines(port):
    port.put(IER, uart.IER_EDSSI)
    port.put(MCR, 0x1A)
    assert port.level and port.get(IIR) == 0x00
    assert port.get(MSR) == 0x90 | 0x02, "DSR fell"
    assert not port.level and port.get(MSR) == 0x90
    port.put(MCR, 0x14)
    assert port.get(MSR) == 0x40 | 0x01 | 0x08, "the ring indicator's start does not count"
    port.put(MCR, 0x10)
    assert port.get(MSR) == 0x04
    port.put(MCR, 0x0B)
    assert port.get(MSR) == 0xBB


def test_interrupt_priorities(port):
    port.put(MCR, uart.MCR_LOOP)
    port.put(IER, 0x0F)
    port.put(THR, 1)
    port.put(THR, 2)
    assert port.get(IIR) == 0x06
    port.get(LSR)
    assert port.get(IIR) == 0x04
    port.get(RBR)
    assert port.get(IIR) == 0x02
    assert port.get(IIR) == 0x00
    port.get(MSR)
    assert port.get(IIR) == 0x01


def test_output_may_call_back():
    port = Port()
    port.uart = Uart16550(port, lambda data: port.uart.receive(data))
    port.put(THR, 0x55)
    assert port.get(RBR) == 0x55


def test_receive_while_the_guest_reads(port):
    port.put(FCR, 0x01)
    data = bytes(n & 0xFF for n in range(5000))

    def feed():
        for start in range(0, len(data), 7):
            port.uart.receive(data[start : start + 7])

    thread = threading.Thread(target=feed)
    thread.start()
    found = bytearray()
    while len(found) < len(data) and (thread.is_alive() or port.get(LSR) & 1):
        if port.get(LSR) & 1:
            found.append(port.get(RBR))
    thread.join()
    assert bytes(found) == data


@pytest.mark.parametrize(("offset", "size"), [(0, 2), (0, 8), (8, 1), (8, 4)])
def test_bad_accesses(port, offset, size):
    with pytest.raises(BusError):
        port.uart.read(offset, size)
    with pytest.raises(BusError):
        port.uart.write(offset, size, 0)
