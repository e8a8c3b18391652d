"""A CPU that runs natively: its block, and the loop around native code."""

from __future__ import annotations

import ctypes
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from . import layout as at
from .codepages import CodePages
from .hugepages import aligned_memory, use_small_pages
from .layout import EngineState, reason_number
from .memory import BusError, Memory
from .native import NativeCode
from .waiting import FUTEX

_READ = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)

# How long to wait, in seconds, before looking again whether another CPU has left native code.
_PAUSE = 0.0002


class Exit(NamedTuple):
    """Why a CPU returned.

    ``kind`` is ``stop`` (asked to), ``leave`` (``reason`` is what the description gave), ``limit`` (the number of
    instructions asked for was executed), ``step`` or ``breakpoint``.
    """

    kind: str
    reason: str = ""


class Cpu:
    """One CPU of a machine: its state lives in ``block``, and :meth:`run` executes.

    ``frequency`` is that of the time counter in Hz; ``virtual`` makes time follow executed instructions, one of
    which then takes a nanosecond (see :mod:`polyvisor.engine.clocks`). Where ``waits``, ``cpu.wait`` sleeps in native
    code; else :meth:`run` returns.
    """

    def __init__(
        self,
        code: NativeCode,
        memory: Memory,
        pages: CodePages,
        *,
        frequency: int = 1_000_000_000,
        virtual: bool = False,
        waits: bool = False,
    ) -> None:
        if not FUTEX:
            raise NotImplementedError(f"the number of the futex system call on {os.uname().machine} is not known")
        self.code = code
        self.memory = memory
        self.pages = pages
        layout = code.layout
        self.block, offset = aligned_memory(layout.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.block)) + offset
        view = memoryview(self.block)[offset : offset + layout.size]
        self.engine: Any = EngineState(view)
        assert code.architecture.state_type is not None
        self.state: Any = code.architecture.state_type(view[layout.state_offset :])
        self.architecture = code.architecture
        self.breakpoints: frozenset[int] = frozenset()
        self.exits: Counter[str] = Counter()  # returns from native code and calls of devices, by cause
        self.failure: BaseException | None = None
        self.reasons: dict[int, str] = {}
        self._stopped_behind = False  # since the last step began
        self._scratch = pages.private_slot(code.cross)
        self._step_slot = pages.private_slot(code.stopped)
        self._read = _READ(self._device_read)
        self._write = _WRITE(self._device_write)
        self._frequency, self._virtual, self._waits = frequency, virtual, waits
        self._peers = (ctypes.c_uint64 * 1)(self.address)
        self._hook_data: Sequence[int] = ()
        self.reset()
        pages.executors.append(self)
        if memory.on_write is None:
            memory.on_write = lambda address, length: pages.wrote(pages.executors, ((address, length),))
            memory.on_writes = lambda segments, pairs: pages.wrote(pages.executors, segments, pairs)

    def revive(self) -> None:
        """In a copy of the process (``os.fork``): take memory sparingly, as there may be many."""
        use_small_pages(self.block)

    def reset(self) -> None:
        """Reset values everywhere but in the time counter; translations are forgotten. Not while it runs."""
        engine, code = self.engine, self.code
        offset, scratch_record = self.clock_offset, int(engine.scratch_record)
        engine.reset()
        self.clock_offset = offset
        self.state.reset()
        descriptors = self.pages.descriptors
        engine.ram_table = ctypes.addressof(descriptors)
        engine.ram_end = ctypes.addressof(descriptors) + ctypes.sizeof(descriptors)
        engine.decode_handler = code.decode
        engine.cross_handler = code.cross
        engine.stopped_handler = code.stopped
        engine.breakpoint_handler = code.breakpoint
        self._store_breakpoints()
        self._store_hooks()
        engine.scratch = self._scratch[1]
        engine.scratch_record = scratch_record or self._scratch[1]
        engine.step_slot = self._step_slot[1]
        engine.device_read = ctypes.cast(self._read, ctypes.c_void_p).value
        engine.device_write = ctypes.cast(self._write, ctypes.c_void_p).value
        engine.clock_gettime = ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value
        library = ctypes.CDLL(None)
        engine.syscall = ctypes.cast(library.syscall, ctypes.c_void_p).value
        engine.sched_yield = ctypes.cast(library.sched_yield, ctypes.c_void_p).value
        engine.waits_inside = int(self._waits)
        engine.peers, engine.cpu_count = ctypes.addressof(self._peers), len(self._peers)
        engine.clock_period = (1_000_000_000 << 32) // self._frequency
        engine.clock_scale = (self._frequency << 32) // 1_000_000_000
        engine.clock_virtual = int(self._virtual)
        engine.clock_frequency = self._frequency
        code.flush_tlb(self.address)

    def connect(self, executors: Sequence[Any]) -> None:
        self._peers = (ctypes.c_uint64 * len(executors))(*(executor.address for executor in executors))
        self.engine.peers, self.engine.cpu_count = ctypes.addressof(self._peers), len(self._peers)

    @cached_property
    def view(self) -> Any:
        """The same block as described functions see it under CPython, for hooks that only look at the state."""
        from .reference import reference_cpu

        return reference_cpu(self.architecture, self.memory, self.state.block, lambda: self.clock)

    # Time

    @property
    def clock(self) -> int:
        """The time counter, in ticks."""
        return int(self.code.read_clock(self.address))

    @clock.setter
    def clock(self, ticks: int) -> None:
        self.clock_offset = (self.clock_offset + ticks - self.clock) & (2**64 - 1)

    @property
    def clock_offset(self) -> int:
        """Ticks the counter is ahead of the host's clock; CPUs of one machine have the same."""
        return int(self.engine.clock_offset)

    @clock_offset.setter
    def clock_offset(self, ticks: int) -> None:
        self.engine.clock_offset = ticks

    @property
    def retired(self) -> int:
        """Instructions executed; exact while it stands still. May be set then."""
        return int(self.engine.retired)

    @retired.setter
    def retired(self, count: int) -> None:
        self.engine.retired = count
        self.engine.sample_at = count

    # Breakpoints

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Make :meth:`run` return before instructions at these virtual addresses. While all CPUs stand still.

        Raises ValueError for more than the engine holds.
        """
        wanted = frozenset(addresses)
        if len(wanted) > at.MAX_BREAKPOINTS:
            raise ValueError(f"{len(wanted)} breakpoints; there can be {at.MAX_BREAKPOINTS}")
        self.breakpoints = wanted
        self._store_breakpoints()
        self.pages.decode_again(self)

    def _store_breakpoints(self) -> None:
        self.engine.breakpoint_count = len(self.breakpoints)
        for i, address in enumerate(self.breakpoints):
            self.engine.breakpoint_addresses[i] = address

    # Hooks

    def hook(self, code: NativeCode, data: Sequence[int]) -> None:
        """Run other native code, with hooks, for which ``data`` goes into the block. While all CPUs stand still.

        What was decoded before must be decoded again (:meth:`CodePages.decode_again`).
        """
        self.code = code
        self._hook_data = data
        self._store_hooks()

    def _store_hooks(self) -> None:
        engine, code = self.engine, self.code
        engine.decode_table = ctypes.addressof(code.table)
        for name in ("trap_hook", "entry_hook", "hook_start", "hook_table"):
            setattr(engine, name, code.hook_places.get(name, 0))
        for number, word in enumerate(self._hook_data):
            engine.hook_data[number] = word

    # Running

    def run(self, instructions: int | None = None) -> Exit:
        """Execute until something asks for the platform, or for that many instructions (at the next jump).

        An exception raised by a device is raised here.
        """
        engine = self.engine
        engine.stop_at = at.NO_TAG if instructions is None else int(engine.retired) + instructions
        # Where it stopped last: this instruction is run now.
        return self._go_on(bool(self.breakpoints) and int(self.state.pc) in self.breakpoints)

    def begin_turn(self, stop_at: int, base: int) -> None:
        """Prepare :meth:`run_turn`: virtual time is ``base`` + `retired`; the turn is over when that is ``stop_at``."""
        self.engine.virtual_base = base & at.NO_TAG
        self.engine.stop_at = stop_at

    def run_turn(self, passing: bool = False) -> Exit:
        """Execute until the turn is over (`limit`), at the first jump, trap or page's end after its last instruction.

        That is the same place in all native tiers. It is sooner if the CPU's timer is due, or :meth:`end_turn_soon`
        was called. After another exit, or :meth:`step`, the turn goes on as if it had never been left. ``passing``:
        a breakpoint here has been seen.
        """
        return self._go_on(passing and int(self.state.pc) in self.breakpoints)

    def break_at(self, retired: int | None) -> None:
        """Let :meth:`run_turn` return (`stop`) some hundred instructions after so many at the latest."""
        self.engine.break_at = at.NO_TAG if retired is None else retired

    def end_turn_soon(self) -> None:
        """Called by a device while this CPU accesses it: the turn is over at the next jump."""
        self.engine.stop_at = min(int(self.engine.stop_at), int(self.engine.retired))
        self.engine.limit = self.engine.region_limit = 0

    @property
    def turn_state(self) -> tuple[int, bool]:
        """What there is of a turn beside the time: when it ends, and whether it goes on between two instructions."""
        return int(self.engine.stop_at), bool(self.engine.resuming)

    @turn_state.setter
    def turn_state(self, state: tuple[int, bool]) -> None:
        self.engine.stop_at, self.engine.resuming = state[0], int(state[1])

    @property
    def turn_is_over(self) -> bool:
        """Whether :meth:`run_turn` would return at once."""
        return int(self.engine.retired) >= int(self.engine.stop_at) and not self.engine.resuming

    def wakes_at(self, base: int) -> int:
        """When a CPU that waits goes on, in nanoseconds of virtual time: 0 for now, 2**64 - 1 if not by time."""
        self.engine.virtual_base = base & at.NO_TAG
        return int(self.code.wakes_at(self.address))

    def _go_on(self, over: bool) -> Exit:
        """Run; ``over``: the breakpoint at pc is passed."""
        engine = self.engine
        if over:
            found_exit = self._step_over()
            if found_exit is not None:
                return found_exit
        engine.limit = 0
        while True:
            self._enter(self.code.enter)
            found_exit = self._exit()
            if found_exit is not None:
                return found_exit

    def step(self) -> Exit:
        """Execute one instruction, or take a trap or interrupt that is due."""
        engine = self.engine
        self._stopped_behind = False
        stop_at, page = int(engine.stop_at), int(self.state.pc) >> self.architecture.page_bits
        engine.stop_at = at.NO_TAG
        while True:
            engine.stepping = 1
            engine.limit = engine.exit_argument = 0
            self._enter(self.code.enter_step)
            engine.stepping = 0
            found = self._exit()
            if found is not None:
                break
        if self._virtual:
            # Where it goes on in the midst of a turn, it must not look around: it would not have done so here.
            engine.stop_at = stop_at = min(stop_at, int(engine.stop_at))
            if found.kind == "step" and not engine.exit_argument:
                engine.resuming = int(int(self.state.pc) >> self.architecture.page_bits == page)
        return found

    def _step_over(self) -> Exit | None:
        """Execute the instruction under a breakpoint; None to go on."""
        stop_at = self.engine.stop_at
        found = self.step()
        if not self._virtual:
            self.engine.stop_at = stop_at
        self.engine.limit = 0
        if found.kind == "step":
            return Exit("stop") if self._stopped_behind else None
        return found

    def _enter(self, entry: Any) -> None:
        entry(self.address)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def _exit(self) -> Exit | None:
        engine = self.engine
        match int(engine.exit_reason):
            case at.EXIT_COMPILE:
                self.exits["compile"] += 1
                self.code.handler(int(engine.exit_argument))
                engine.resuming = 1
            case at.EXIT_ACTIVATE:
                self.exits["new code page"] += 1
                self.pages.activate(int(engine.exit_argument))
                engine.resuming = 1
            case at.EXIT_LEAVE:
                left = int(engine.left)
                engine.left = engine.waits = 0
                if engine.hook_stops:  # it has stopped where it was to
                    engine.hook_stops = engine.stop = 0
                self.exits[self._reason(left)] += 1
                return Exit("leave", self._reason(left))
            case at.EXIT_STOP:
                engine.hook_stops = 0
                return Exit("stop")
            case at.EXIT_LIMIT:
                return Exit("limit")
            case at.EXIT_STEP:
                return Exit("step")
            case at.EXIT_BREAKPOINT:
                if int(self.state.pc) in self.breakpoints:
                    return Exit("breakpoint")
                # One at the same place in another page.
                return self._step_over()
        return None

    def _reason(self, number: int) -> str:
        if number not in self.reasons:
            self.reasons = {reason_number(r): r for r in ("wfi", "sbi", *self.code.architecture.reasons)}
        return self.reasons.get(number, str(number))

    def stop(self) -> None:
        """Ask it to return from :meth:`run` soon; from any thread."""
        self.engine.stop = 1
        self.poke()

    def stop_behind(self) -> None:
        """Called by a hook's callback for an access: :meth:`run` returns (`stop`) behind the instruction that made it.

        A single step ends there anyway.
        """
        self._stopped_behind = True
        if not self.engine.stepping:
            self.engine.hook_stops = 1
            self.stop()

    def poke(self) -> None:
        """Ask it to look at its interrupts soon; from any thread."""
        self.code.rouse(self.address)

    def wait(self) -> None:
        """Sleep as `cpu.wait` does; returns early where :meth:`stop` is called."""
        self.engine.stop_at = at.NO_TAG
        self._enter(self.code.enter_wait)

    # What the decoded pages ask of it

    def _await_effect(self, request: str) -> None:
        """Wait until native code has served a request byte, or does not execute, and so will serve it first."""
        engine = self.engine
        self.poke()  # which fences, so that what is read below is newer than the request
        while getattr(engine, request) and engine.inside and not engine.asleep:
            time.sleep(_PAUSE)
            self.poke()

    def drop_writes(self) -> None:
        """Forget permissions to write; see :class:`~polyvisor.engine.codepages.Executor`."""
        self.engine.flush_writes = 1
        self._await_effect("flush_writes")

    def drop_code(self) -> None:
        """Forget all translations, likewise."""
        self.engine.flush_all = 1
        self._await_effect("flush_all")

    def flush(self) -> None:
        """Forget translations before anything else is executed; from any thread, returns when that is certain."""
        self.drop_code()

    # Devices

    def _device_read(self, block: int, address: int, size: int) -> int:
        self.exits["device read"] += 1
        try:
            device, offset = self.memory.device_at(address, size)
            return device.read(offset, size)
        except BusError:
            self.engine.device_fault = 1
        except BaseException as error:
            self.fail(error)
        return 0

    def _device_write(self, block: int, address: int, size: int, value: int) -> int:
        self.exits["device write"] += 1
        try:
            device, offset = self.memory.device_at(address, size)
            device.write(offset, size, value & ((1 << 8 * size) - 1))
        except BusError:
            self.engine.device_fault = 1
        except BaseException as error:
            self.fail(error)
        return 0

    def fail(self, error: BaseException) -> None:
        """End :meth:`run`, which raises the error; from what native code calls."""
        self.failure = error
        self.stop()
