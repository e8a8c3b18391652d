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
            todo = units.handlers([index])[1]
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
        return re.sub(rf"\bh{index}\b", "h", units.handlers([index])[0])

    for index, twin in shared:
        assert units.twin(twin) == twin
        assert text(index) == text(twin)


def test_handlers_are_compiled_together_but_not_many_or_large_ones():
    units = Units(rv64)
    own = sorted({units.twin(i) for i in range(len(rv64.instructions) + 1)})
    groups = {tuple(units.group(index)) for index in own}
    assert sorted(index for group in groups for index in group) == own
    assert max(map(len, groups)) == 8
    assert len(groups) < len(own) / 3
    alone = next(n for n, i in enumerate(rv64.instructions, 1) if i.name == "fmadd.d")
    assert units.group(alone) == [alone], "its helpers take longer than many handlers"
    assert len({units.unit_name(group[0]) for group in groups}) == len(groups)
    text, _ = units.handlers(units.group(1))
    assert all(f'@"h{index}"' in text for index in units.group(1))
