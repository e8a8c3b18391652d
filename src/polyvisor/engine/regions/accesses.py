"""Loads, stores and atomic operations in a region: the TLB's check, and what makes it rarer.

Most accesses find their page by the TLB; in loops the page that a register pointed into last is remembered; and those
of a window (see :mod:`.windows`) share one look.  Where the TLB misses, it is filled by a function that keeps all
registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polyvisor.adl import ssa
from polyvisor.adl.llvm import llvm_type

from ..layout import Layout
from ..lowering import HelperEmitter
from .known import Known
from .plan import Key
from .windows import Window


class AccessEmitter(HelperEmitter):
    """Writes accesses to the guest's memory into a region's function."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(_NOTHING, layout, _no_runtime)
        self.chunks: list[list[str]] = []
        # Registers for which the page that was accessed last by way of them is remembered: pays in loops, where they
        # do not jump about.
        self.steady: Callable[[Key], bool] = lambda key: False
        self.accesses: list[tuple[Key, int, int, int] | None] = []  # as in :class:`.plan.Step`; None: another one
        # Where this instruction's access is found, if a window was opened for it: the access it is for (a register and
        # the distance from it), the host's address of the value that the window is relative to (0: not there), and the
        # access's distance from that.
        self.window: tuple[tuple[Key, int], str, int] | None = None
        # Leave the region where the TLB misses, rather than have it filled: that makes less code.
        self.leaves_at_misses = False
        self._bases: dict[str, tuple[Key, int]] = {}
        self._open: dict[str, list[str]] = {}
        # Variables for what is remembered: what the second one of each is called, and what stands for nothing.
        self._remembered: dict[str, tuple[str, int]] = {}

    def leave_before(self) -> str:
        """A label that leaves the region before this instruction."""
        raise NotImplementedError

    def note_change(self) -> None:
        """Memory was changed."""
        raise NotImplementedError

    def note_store(self, pointer: str, kind: str, size: int) -> None:
        """Memory at a pointer is about to be changed."""

    # Text

    def begin(self, label: str) -> None:
        """Start an LLVM block."""
        self.lines = self._open[label] = [f"{label}:"]
        self.chunks.append(self.lines)
        self.label = label

    def resume(self, label: str) -> None:
        """Go on writing in an LLVM block that was left open."""
        self.lines = self._open[label]
        self.label = label

    # Where values come from

    def base_of(self, value: Known | None) -> tuple[Key, int] | None:
        """The register and the constant of which a value is the sum, if that is known."""
        return self._bases.get(value) if isinstance(value, str) else None

    # Windows

    def open_window(self, window: Window, value: str) -> str:
        """The host's address of the value that a window is relative to; 0 if it cannot be used there."""
        base = self.assign(f"sub i64 {value}, {window.shift}")
        if self.leaves_at_misses:
            host, fine = self._look_up_window(window, base)
            there = self.new_label("there")
            self.branch(fine, there, self.leave_before(), True)
            self.begin(there)
            return host
        if window.memo is None:
            return self._look_up_window(window, base)[0]
        name = f"%window.{window.memo}"
        self._remembered[name] = "host", 0
        look, ready = self.new_label("look"), self.new_label("ready")
        last = self.assign(f"load i64, ptr {name}")
        self.branch(self.assign(f"icmp eq i64 {last}, {base}"), ready, look, True)
        self.begin(look)
        host, fine = self._look_up_window(window, base)
        # Where it did not succeed, it is tried again.
        other = self.assign(f"xor i64 {base}, -1")
        self.line(f"store i64 {self.assign(f'select i1 {fine}, i64 {base}, i64 {other}')}, ptr {name}")
        self.line(f"store i64 {host}, ptr {name}.host")
        self.line(f"br label %{ready}")
        self.begin(ready)
        return self.assign(f"load i64, ptr {name}.host")

    def _look_up_window(self, window: Window, base: str) -> tuple[str, str]:
        """The host's address of the value that a window is relative to, or 0, and whether it can be used (i1)."""
        first = self.assign(f"add i64 {base}, {window.first}")
        entry = self._entry_of(first)
        last = self.assign(f"add i64 {base}, {window.end - 1}")
        between = self.assign(f"xor i64 {first}, {last}")
        fine = self.assign(f"icmp ult i64 {between}, {self.layout.page_size}")
        for column in sorted(window.columns):
            fine = self.assign(f"and i1 {fine}, {self._matches(entry, first, window.align, column)}")
        host = self.assign(f"add i64 {self._addend(entry)}, {base}")
        return self.assign(f"select i1 {fine}, i64 {host}, i64 0"), fine

    # Accesses

    def tlb(self) -> str:
        """The address of the current data TLB: it does not change in a region."""
        return "%tlb"

    def _access(self, vaddr: str, size: int, column: int, miss: str) -> list[tuple[str, str]]:
        """Find the host's memory for an access; gives the open blocks that have a pointer to it, and the pointers."""
        known = self._bases.get(vaddr)
        self.accesses.append((*known, size, column) if known is not None else None)
        if self.window is not None and self.window[0] == known:
            return self._by_window(vaddr, size, column, miss, *self.window[1:])
        hit = self.new_label("hit")
        if self.leaves_at_misses or known is None or not self.steady(known[0]):
            test, entry = self._lookup(vaddr, size, column)
            self.branch(test, hit, self.leave_before() if self.leaves_at_misses else miss, True)
            self.begin(hit)
            return [(hit, self._host(entry, vaddr))]
        # First the page that was accessed last by way of this register, then the TLB.
        name = f"%page.{known[0][0]}.{known[0][1]}.{column}"
        self._remembered[name] = "addend", -1
        masked = self.assign(f"and i64 {vaddr}, {self._page_mask(size)}")
        tag = self.assign(f"load i64, ptr {name}")
        near, far, found = self.new_label("near"), self.new_label("far"), self.new_label("found")
        self.branch(self.assign(f"icmp eq i64 {masked}, {tag}"), near, far, True)
        self.begin(far)
        test, entry = self._lookup(vaddr, size, column)
        self.branch(test, found, miss, True)
        self.begin(found)
        addend = self._addend(entry)
        self.line(f"store i64 {masked}, ptr {name}")
        self.line(f"store i64 {addend}, ptr {name}.addend")
        self.line(f"br label %{hit}")
        self.begin(near)
        last = self.assign(f"load i64, ptr {name}.addend")
        self.line(f"br label %{hit}")
        self.begin(hit)
        both = self.assign(f"phi i64 [ {addend}, %{found} ], [ {last}, %{near} ]")
        return [(hit, self.assign(f"inttoptr i64 {self.assign(f'add i64 {both}, {vaddr}')} to ptr"))]

    def _by_window(
        self, vaddr: str, size: int, column: int, miss: str, host: str, distance: int
    ) -> list[tuple[str, str]]:
        """As :meth:`_access`, where an open window says where the memory is."""
        if self.leaves_at_misses:
            return [(self.label, self.assign(f"inttoptr i64 {self.assign(f'add i64 {host}, {distance}')} to ptr"))]
        near, far, found = self.new_label("near"), self.new_label("far"), self.new_label("found")
        self.branch(self.assign(f"icmp ne i64 {host}, 0"), near, far, True)
        self.begin(far)
        test, entry = self._lookup(vaddr, size, column)
        self.branch(test, found, miss, True)
        self.begin(found)
        slow = self._host(entry, vaddr)
        self.begin(near)
        fast = self.assign(f"inttoptr i64 {self.assign(f'add i64 {host}, {distance}')} to ptr")
        return [(near, fast), (found, slow)]

    def op_load(self, op: ssa.Op) -> None:
        vaddr = self.wide(op.arguments[0])
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        miss, done = self.new_label("miss"), self.new_label("done")
        ways: list[tuple[str, str]] = []
        for label, pointer in self._access(vaddr, size, 0, miss):
            self.resume(label)
            ways.append((self.assign(f"load atomic {kind}, ptr {pointer} monotonic, align {size}"), label))
            if self.leaves_at_misses:
                self.alias(op.results[0], self._swap(ways[-1][0], kind))
                return
            self.line(f"br label %{done}")
        self.begin(miss)
        found = self._cold_call("region_load", op.detail, "{ i64, i1 }", [vaddr])
        slow = self.assign(f"extractvalue {{ i64, i1 }} {found}, 0")
        failed = self.assign(f"extractvalue {{ i64, i1 }} {found}, 1")
        if kind != "i64":
            slow = self.assign(f"trunc i64 {slow} to {kind}")
        self.branch(failed, self.leave_before(), done, False)
        self.begin(done)
        ways.append((slow, miss))
        value = self.assign(f"phi {kind} " + ", ".join(f"[ {v}, %{label} ]" for v, label in ways))
        self.alias(op.results[0], self._swap(value, kind))

    def op_store(self, op: ssa.Op) -> None:
        vaddr = self.wide(op.arguments[0])
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        value = self._swap(self.operand(op.arguments[1]), kind)
        miss, done = self.new_label("miss"), self.new_label("done")
        for label, pointer in self._access(vaddr, size, 8, miss):
            self.resume(label)
            if self.leaves_at_misses:
                self.note_store(pointer, kind, size)
            self.line(f"store atomic {kind} {value}, ptr {pointer} monotonic, align {size}")
            if self.leaves_at_misses:
                self.note_change()
                return
            self.line(f"br label %{done}")
        self.begin(miss)
        wide = value if kind == "i64" else self.assign(f"zext {kind} {value} to i64")
        failed = self._cold_call("region_store", op.detail, "i1", [vaddr, wide])
        self.branch(failed, self.leave_before(), done, False)
        self.begin(done)
        self.note_change()

    def _modify(self, op: ssa.Op, kind: str, size: int, change: Callable[[str], str]) -> None:
        vaddr = self.wide(op.arguments[0])
        self.accesses.append(None)
        hit = self.new_label("hit")
        test, entry = self._lookup(vaddr, size, 8)
        self.branch(test, hit, self.leave_before(), True)
        self.begin(hit)
        self.alias(op.results[0], change(self._host(entry, vaddr)))
        self.note_change()

    def _cold_call(self, name: str, kind: Any, result: str, arguments: Sequence[str]) -> str:
        """Call a helper that keeps all registers, so that a miss costs the way that hits nothing."""
        symbol = f"{name}.{kind.__name__}"
        parameters = ", ".join(["ptr", *("i64" for _ in arguments)])
        self.declare(symbol, f'declare preserve_allcc {result} @"{symbol}"({parameters}) cold nounwind')
        given = ", ".join(["ptr %cpu", *(f"i64 {a}" for a in arguments)])
        return self.assign(f'call preserve_allcc {result} @"{symbol}"({given})')

    def remember_nothing(self) -> None:
        """Write, at the region's entry, the variables for what is remembered of pages and windows."""
        for name, (second, nothing) in sorted(self._remembered.items()):
            self.line(f"{name} = alloca i64")
            self.line(f"{name}.{second} = alloca i64")
            self.line(f"store i64 {nothing}, ptr {name}")
            self.line(f"store i64 0, ptr {name}.{second}")


_NOTHING = ssa.Function("region", [], (), [])


class UnsupportedError(Exception):
    """The instruction cannot be part of a region."""


def _no_runtime(name: str, **constants: Any) -> ssa.Function:
    raise UnsupportedError(f"a call of {name}")
