"""A profile of what a guest does, by samples of its stacks: collapsed stacks, and flame graphs as SVG."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from polyvisor.adl import Trap
from polyvisor.engine.memory import BusError

from ..errors import StoppedError, VMError
from ..inspect import PAGE, Symbols, translate
from ..virtual_machine import VM

_DEEPEST = 64
# RISC-V ELF psABI, "Frame Pointer Convention": s0 is the frame's upper end; below it, the return address and the
# caller's s0.
_FRAME_POINTER, _SAVED = 8, 16
_MODES = {0: "user", 1: "kernel", 3: "machine"}
_ROW, _TEXT, _WIDTH = 17, 7, 1200


class Profile:
    """Samples every hart each ``interval`` seconds, from when it is made until :meth:`stop`, or the block's end.

    Stacks are found by frame pointers: kernels have them, programs need ``-fno-omit-frame-pointer``. Functions are
    named by the machine's symbols and those of ``programs``, ELF files at their own addresses; what has no name there
    is shown by its page. Harts that sleep are not counted. Raises OSError and ValueError for a program.
    """

    def __init__(self, vm: VM, interval: float = 0.005, programs: Sequence[str | Path] = ()) -> None:
        self.samples: Counter[tuple[str, ...]] = Counter()
        """How often each stack was seen: what called comes first."""
        self._vm = vm
        self._symbols = [functions_of(program) for program in programs]
        with contextlib.suppress(VMError):  # of a kernel without an agent they are not known
            self._symbols.append(vm.symbols)
        self._interval = interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._main, name="profile", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._end.set()
        self._thread.join()

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Sampling

    def _main(self) -> None:
        while not self._end.wait(self._interval):
            try:
                # To stand still, they are woken.
                awake = [hart for hart in self._vm.machine.board.harts if hart.started and not _sleeps(hart)]
                with self._vm.paused():
                    stacks = [_stack(hart) for hart in awake]
            except StoppedError:
                return
            if self._vm.has_ended():
                return
            for stack in stacks:
                self.samples[tuple(self._name(place) for place in stack)] += 1

    def _name(self, place: str | int) -> str:
        if isinstance(place, str):
            return place
        for symbols in self._symbols:
            found = symbols.find(place)
            # What is far behind the last symbol is something else.
            if found is not None and found[1] < 1 << 20:
                return found[0]
        return f"[{place & -PAGE:#x}]"

    # Results

    def collapsed(self) -> str:
        """Lines of ``caller;callee;... count``, as flamegraph.pl, speedscope and others read them."""
        return "".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(self.samples.items()))

    def top(self, most: int = 20) -> list[tuple[str, int]]:
        """The functions that were executing most often, and how often."""
        own: Counter[str] = Counter()
        for stack, count in self.samples.items():
            own[stack[-1]] += count
        return own.most_common(most)

    def svg(self, title: str = "Flame graph") -> str:
        """A flame graph: the wider, the more samples; what is above was called by what is below. Titles show counts."""
        total = self.samples.total()
        boxes: list[tuple[int, float, float, str, int]] = []
        _layout(sorted(self.samples.items()), 0, 0.0, boxes)
        rows = max((depth for depth, *_ in boxes), default=0) + 2
        height = rows * _ROW + 10
        scale = _WIDTH / total if total else 0.0
        text = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="monospace" '
            f'font-size="11">',
            f'<text x="4" y="12">{escape(title)}: {total} samples</text>',
        ]
        for depth, start, width, name, count in boxes:
            wide = width * scale
            if wide < 0.3:
                continue
            y = height - (depth + 1) * _ROW
            red, green = 205 + hash_of(name) % 50, 60 + hash_of(name[::-1]) % 150
            share = f"{100 * count / total:.1f} %"
            shown = name if len(name) * _TEXT < wide else name[: max(0, int(wide / _TEXT) - 2)] + ".."
            text.append(
                f'<g><title>{escape(name)}: {count} samples, {share}</title>'
                f'<rect x="{start * scale:.1f}" y="{y}" width="{wide:.1f}" height="{_ROW - 1}" '
                f'fill="rgb({red},{green},50)"/>'
                + (f'<text x="{start * scale + 3:.1f}" y="{y + 12}">{escape(shown)}</text>' if wide > 3 * _TEXT else "")
                + "</g>"
            )
        return "\n".join([*text, "</svg>"]) + "\n"


def hash_of(name: str) -> int:
    """A number that is the same for a name each time."""
    return sum((n + 1) * byte for n, byte in enumerate(name.encode()))


def _layout(
    stacks: Sequence[tuple[tuple[str, ...], int]], depth: int, start: float,
    boxes: list[tuple[int, float, float, str, int]],
) -> None:
    """Where each function of each caller is: its row, where it begins, and its width, in samples."""
    groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for stack, count in stacks:
        if len(stack) > depth:
            groups.setdefault(stack[depth], []).append((stack, count))
    for name, members in groups.items():
        count = sum(each for _, each in members)
        boxes.append((depth, start, float(count), name, count))
        _layout(members, depth + 1, start, boxes)
        start += count


def functions_of(program: str | Path) -> Symbols:
    """The functions of an ELF file. Raises OSError, and ValueError for a file that is none."""
    try:
        elf = ELFFile(io.BytesIO(Path(program).read_bytes()))
        table: Any = elf.get_section_by_name(".symtab")
        symbols = table.iter_symbols() if table is not None else ()
        return Symbols({s.name: int(s["st_value"]) for s in symbols if s["st_info"]["type"] == "STT_FUNC"})
    except ELFError as error:
        raise ValueError(f"{program}: not an ELF file: {error}") from error


def _sleeps(hart: Any) -> bool:
    """Whether a hart waits for an interrupt. Those of the reference tier do not tell."""
    return bool(int(getattr(getattr(hart.cpu, "engine", None), "asleep", 0)))


def _stack(hart: Any) -> list[str | int]:
    """The mode and the addresses of a hart's stack, the innermost last. It stands still."""
    cpu = hart.cpu
    state = cpu.state
    found: list[str | int] = [int(state.pc)]
    pages: dict[int, int] = {}

    def word_pair(address: int) -> tuple[int, int] | None:
        if address % 8 or address % PAGE > PAGE - _SAVED:
            return None
        page = address & -PAGE
        try:
            if page not in pages:
                pages[page] = translate(hart, page)
            data = cpu.memory.read(pages[page] + address - page, _SAVED)
        except (Trap, BusError):
            return None
        before, back = struct.unpack("<QQ", data)
        return before, back

    frame = int(state.x[_FRAME_POINTER])
    while len(found) < _DEEPEST:
        pair = word_pair((frame - _SAVED) % 2**64) if frame else None
        if pair is None or pair[1] < PAGE:
            break
        before, back = pair
        found.append(back - 1)  # in the call, not behind it
        if before <= frame:
            break
        frame = before
    found.append(_MODES.get(int(state.privilege), "unknown"))
    return found[::-1]
