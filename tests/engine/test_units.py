"""The units that native code is made of: their names mean the same in every process."""

import re

from polyvisor.engine.units import Units
from polyvisor.isa.riscv import rv64


def test_shared_helpers_are_the_same_in_whatever_order_they_are_made():
    forward, backward = Units(rv64), Units(rv64)
    names = {i.name: n + 1 for n, i in enumerate(rv64.instructions)}
    chosen = [names[n] for n in ("fadd.s", "fadd.d", "fcvt.s.d", "fcvt.w.d", "fcvt.w.s", "csrrw")]
    texts: list[dict[str, str]] = [{}, {}]
    for units, order, found in ((forward, chosen, texts[0]), (backward, chosen[::-1], texts[1])):
        for index in order:
            todo = units.handler(index)[1]
            while todo:
                function = todo.pop()
                if function.name not in found:
                    found[function.name], more = units.helper(function)
                    todo += more
    assert len(texts[0]) > 10
    assert texts[0] == texts[1]


def test_instructions_that_share_a_handler_have_the_same() -> None:
    units = Units(rv64)
    shared = [(i, units.twin(i)) for i in range(len(rv64.instructions) + 1) if units.twin(i) != i]
    assert len(shared) > 60

    def text(index: int) -> str:
        return re.sub(rf"\bh{index}\b", "h", units.handler(index)[0])

    for index, twin in shared:
        assert units.twin(twin) == twin
        assert text(index) == text(twin)
