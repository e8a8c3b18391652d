"""polyvisor.devices.lines."""

from polyvisor.devices.lines import NullLine, OrLine


class Probe:
    def __init__(self):
        self.changes = []

    def set(self, level):
        self.changes.append(level)


def test_or_line_is_asserted_while_any_input_is():
    probe = Probe()
    gate = OrLine(probe)
    a, b = gate.input(), gate.input()
    a.set(True)
    b.set(True)
    a.set(False)
    assert probe.changes == [True]
    assert gate.state.levels == [0, 1]
    b.set(False)
    b.set(False)
    assert probe.changes == [True, False]


def test_null_line_takes_anything():
    NullLine().set(True)
