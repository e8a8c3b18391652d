"""``polyvisor.C64``: a Commodore 64 that is booted, typed at, looked into, kept, copied and taken back in time.

>>> import polyvisor
>>> with polyvisor.C64() as c64:
...     c64.type("PRINT 2+3\\n")
...     c64.wait_for("5")
...     c64.picture().save("screen.png")              # doctest: +SKIP
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from polyvisor.boards.c64 import software as hands
from polyvisor.boards.c64.machine import SAMPLE_RATE, Commodore64, Stop
from polyvisor.boards.c64.rom_files import user_roms
from polyvisor.boards.c64.roms import Roms
from polyvisor.boards.c64.software import NotReadyError
from polyvisor.devices.c64 import memory
from polyvisor.devices.c64.picture import Picture
from polyvisor.devices.c64.samples import Samples
from polyvisor.devices.c64.wav import WavFile
from polyvisor.storage.commodore.cartridge import Cartridge
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.open import open_medium
from polyvisor.storage.commodore.tape import Tape, check_program
from polyvisor.vm.errors import StoppedError, VMError, VMTimeoutError

from . import snapshot
from .history import History
from .hooks import C64Hooks
from .watch import Watchpoint

Medium = D64 | Tape | Cartridge
# The ring of samples has some 0.7 s at the usual rate: it is emptied in time.
_SAMPLES_AT_ONCE = 16_384
# Frames in which SYS, or RUN, comes to the program.
_STARTING = 100


class C64:
    """A Commodore 64 with a drive, which runs when it is told to, for as long as it is told.

    ``model``: ``pal`` or ``ntsc``, which decides on the VIC-II, the clock, and the mains' frequency.
    ``software``: a file (``.prg``, ``.d64``, ``.t64``, ``.crt``), or the bytes of a PRG file. It is mounted, and
    started unless ``autostart`` is False. ``roms``: a directory with the ROMs of a real machine, or `Roms`; else our
    own free ones. What is written on a disk is saved to its file, unless ``read_only``. ``debug_register``: a write to
    $D7FF ends a run. ``history``: so many of the last seconds are kept for :meth:`rewind`; 0 for none. ``tier``:
    ``jit``, ``interpreter`` or ``reference``. ``halted``: what is started stands before its first instruction, if it
    says where that is (machine code does; a BASIC program has been RUN).

    Raises ValueError (ImageError, RomError) for what cannot be used, VMTimeoutError if a program cannot be started.
    """

    def __init__(
        self, software: str | os.PathLike[str] | bytes | Medium | None = None, *,
        roms: str | os.PathLike[str] | Roms | None = None, autostart: bool = True, read_only: bool = False,
        debug_register: bool = False, history: float = 30, tier: str = "interpreter", model: str = "pal",
        progress: Callable[[str], None] | None = None, halted: bool = False,
    ) -> None:
        medium, path = _opened(software)
        if roms is not None and not isinstance(roms, Roms):
            roms = user_roms(roms)
        found = roms._asdict() if roms is not None else {}
        cartridge = medium if isinstance(medium, Cartridge) else None
        machine = Commodore64(
            **found, cartridge=cartridge, tier=tier, debug=debug_register, model=model, progress=progress
        )
        self._begin(machine, history)
        try:
            if isinstance(medium, D64 | Tape):
                machine.insert(medium, path if isinstance(medium, D64) else None, read_only=read_only)
            if medium is not None and autostart:
                first = hands.first_instruction(medium) if halted else None
                if first is not None:
                    machine.cpu.set_breakpoints([first])
                with _timeouts():
                    hands.autostart(machine, medium)
                if first is not None:
                    machine.run_until(lambda: machine.unseen is not None, _STARTING)
                    machine.cpu.set_breakpoints(())
                    if machine.unseen == Stop("breakpoint"):
                        machine.unseen = None
        except BaseException:
            self.close()
            raise

    def _begin(self, machine: Commodore64, history: float) -> None:
        self.machine = machine
        """The board. What is changed there directly, :meth:`rewind` does not know."""
        self.hooks = C64Hooks(machine)
        """Functions that become part of what executes the machine: ``c64.hooks.add(...)``."""
        self._seconds = history
        self._history = History(machine, history) if history > 0 else None
        self._sound: WavFile | None = None
        self._heard: tuple[Callable[[bytes], None], Samples] | None = None
        self._closed = False
        machine.after_run.append(self._take_sound)

    # Running

    def run(self, *, seconds: float = 0, frames: float = 0, cycles: int = 0) -> Stop:
        """Run for so long, of the machine's own time, and to the next jump; gives why it ended."""
        machine = self._running()
        end = machine.elapsed + round(seconds * machine.model.clock) + round(frames * machine.model.frame) + cycles
        if machine.unseen is not None:
            found, machine.unseen = machine.unseen, None
            return found
        while machine.elapsed < end:
            found = machine.run(min(end, self._next_look()) - machine.elapsed)
            if found.reason != "limit":
                return found
        return Stop("limit")

    def run_to_stop(self, seconds: float | None = None) -> Stop:
        """Run until something ends it, such as a breakpoint or a watchpoint; ``limit`` after so many seconds."""
        end = None if seconds is None else self.elapsed + round(seconds * self.machine.model.clock)
        while end is None or self.elapsed < end:
            found = self.run(cycles=self.machine.model.clock if end is None else end - self.elapsed)
            if found.reason != "limit":
                return found
        return Stop("limit")

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Run until a text is on the screen. Raises VMTimeoutError after so many seconds of the machine's time."""
        self.wait_until(lambda: any(text in line for line in self.screen), seconds, repr(text))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 30, what: str = "it") -> None:
        """Run until a condition holds, which is looked at after each frame. Raises VMTimeoutError."""
        end = self.machine.elapsed + round(seconds * self.machine.model.clock)
        while not condition():
            if self.machine.elapsed >= end:
                raise VMTimeoutError(f"{what} did not come within {seconds:g} seconds; the screen says:\n{self.text}")
            found = self.run(frames=1)
            if found.reason != "limit" and not condition():
                raise VMError(f"the run ended ({found.reason}) before {what} came; the screen says:\n{self.text}")

    # Debugging

    def break_at(self, *addresses: int) -> None:
        """Let runs end before these addresses are executed, and before no others. Raises ValueError for too many."""
        for address in addresses:
            if not 0 <= address <= 0xFFFF:
                raise ValueError(f"a breakpoint at ${address:x}: addresses are $0 to $ffff")
        self._running().cpu.set_breakpoints(addresses)

    @property
    def breakpoints(self) -> list[int]:
        """The addresses that :meth:`break_at` was given last, in order."""
        return sorted(self._running().cpu.breakpoints)

    def watch(self, addresses: int | range, kind: str = "write") -> Watchpoint:
        """Let runs end behind each instruction that writes to an address, or one of a range; ``kind``: ``write``,
        ``read``, or ``access`` for both.

        The run's `Stop` has the ``access``. What the CPU does by itself is none: instructions are fetched, and
        interrupts push. Raises ValueError.
        """
        where = range(addresses, addresses + 1) if isinstance(addresses, int) else addresses
        return Watchpoint(self._running(), self.hooks, where, kind)

    def step(self, count: int = 1) -> Stop:
        """Execute so many instructions, up to a watched access; the entry of an interrupt counts as one."""
        machine, found = self._running(), Stop("step")
        for _ in range(count):
            found = machine.step()
            if machine.elapsed >= self._next_look():
                for look in machine.after_run:
                    look()
            if found.reason != "step":
                break
        return found

    def reverse_step(self, count: int = 1) -> Stop:
        """So many instructions back in time, exactly; ``begin`` where the past does not go back so far.

        What came later is forgotten, as by :meth:`rewind`. Raises ValueError without a history.
        """
        with self._past() as history:
            return Stop("step" if count < 1 or history.step_back(count) else "begin")

    def reverse_continue(self) -> Stop:
        """Back in time to the last breakpoint, or to the beginning of the last instruction with a watched access;
        ``begin`` if there is none in the past that is kept. Likewise.
        """
        with self._past() as history:
            return history.back_to_stop() or Stop("begin")

    @contextmanager
    def _past(self) -> Iterator[History]:
        """For going back. Raises ValueError if there is no history."""
        if self._history is None:
            raise ValueError("there is no history: make the machine with history=SECONDS")
        machine = self._running()
        rate = int(machine.state.sid_sample_rate)
        yield self._history
        machine.unseen = None
        if self._sound is not None or self._heard is not None:
            machine.listen(rate)  # who listens now may not have listened then
            self._take_sound()

    # Time

    @property
    def elapsed(self) -> int:
        """Clock cycles since the power came; a second has 985,248 of them, with NTSC 1,022,727."""
        return self._running().elapsed

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return self.elapsed / self.machine.model.clock

    def reset(self) -> None:
        """As by a button: memory stays."""
        self._running().reset()

    def power_cycle(self) -> None:
        """As by the switch: memory is empty."""
        self._running().power_cycle()

    # Hands

    def type(self, text: str) -> None:
        """Type, through the KERNAL's buffer of keys; ``{f1}``, ``{shift home}`` are keys by name.

        Raises ValueError for what no key has, VMTimeoutError if nobody takes the keys.
        """
        with _timeouts():
            hands.type_text(self._running(), text)

    def press(self, *keys: str, frames: int = hands.HOLD) -> None:
        """Press keys together for some frames: ``press("shift", "f1")``. Raises ValueError for unknown ones."""
        hands.press(self._running(), *keys, frames=frames)

    def hold(self, key: str) -> None:
        """Press a key, and keep it held. Raises ValueError."""
        self._running().key(hands.key_name(key))

    def release(self, key: str | None = None) -> None:
        """Let a key go, or all of them. Raises ValueError."""
        if key is None:
            self._running().release_keys()
        else:
            self._running().key(hands.key_name(key), False)

    def joystick(
        self, port: int = 2, *, up: bool = False, down: bool = False, left: bool = False, right: bool = False,
        fire: bool = False,
    ) -> None:
        """Hold the joystick in port 1 or 2 like this from now on. Raises ValueError."""
        self._running().joystick(port, up=up, down=down, left=left, right=right, fire=fire)

    def insert(self, medium: str | os.PathLike[str] | D64 | Tape | None, *, read_only: bool = False) -> None:
        """Put another disk, tape or program into the drive, or take it out (None). Raises ImageError, ValueError."""
        found, path = _opened(medium)
        if isinstance(found, Cartridge):
            raise ValueError("a cartridge is put in while the power is off: make a machine with it")
        self._running().insert(found, path if isinstance(found, D64) else None, read_only=read_only)

    def start(self, program: bytes) -> None:
        """Wait for the prompt, put the bytes of a PRG file into memory, start it. Raises ValueError, VMTimeoutError."""
        with _timeouts():
            hands.start(self._running(), program)

    def load(self, program: bytes) -> int:
        """Put the bytes of a PRG file into memory; gives its address. Raises ValueError."""
        return hands.load(self._running(), program)

    # Looking, and listening

    @property
    def screen(self) -> list[str]:
        """The 25 lines of the text screen, without spaces at their ends."""
        return hands.screen(self._running())

    @property
    def text(self) -> str:
        """The same as one text, without empty lines at its begin and end."""
        return "\n".join(self.screen).strip("\n")

    def picture(self) -> Picture:
        """What is seen now; ``picture().save("screen.png")`` keeps it."""
        return self._running().picture()

    def record(self, path: str | os.PathLike[str], rate: int = SAMPLE_RATE) -> None:
        """Write what is heard from now on to a WAV file, until :meth:`stop_recording`. Raises OSError, ValueError."""
        self.stop_recording()
        machine = self._listened(rate)
        self._sound = WavFile(Path(path), rate, machine.memory.read, int(machine.state.sid_written))

    def stop_recording(self) -> None:
        """Finish the WAV file."""
        if self._sound is not None:
            self._take_sound()
            self._sound.close()
            self._sound = None
            self._listen_no_more()

    def listen(self, hear: Callable[[bytes], None] | None, rate: int = SAMPLE_RATE) -> None:
        """Give ``hear`` what is heard from now on, as the machine runs: signed samples of 16 bits, in the host's order.

        It is called whenever a run has ended, and in a long one now and then, on the thread that runs the machine.
        None: nobody listens any more. Raises ValueError for an impossible rate, or another one than a recording has.
        """
        if hear is None:
            if self._heard is not None:
                self._heard = None
                self._listen_no_more()
            return
        self._heard = None
        machine = self._listened(rate)
        self._heard = hear, Samples(machine.memory.read, int(machine.state.sid_written))

    def _listened(self, rate: int) -> Commodore64:
        """The machine, whose SID makes samples. Raises ValueError."""
        machine = self._running()
        if self._sound is not None or self._heard is not None:
            present = int(machine.state.sid_sample_rate)
            if rate != present:
                raise ValueError(f"somebody listens at {present} samples a second; {rate} are another rate")
        machine.listen(rate)
        return machine

    def _listen_no_more(self) -> None:
        if self._sound is None and self._heard is None:
            self.machine.stop_listening()

    def _take_sound(self) -> None:
        written = int(self.machine.state.sid_written)
        if self._sound is not None:
            self._sound.take(written)
        if self._heard is not None:
            hear, samples = self._heard
            found = samples.take(written)
            if found:
                hear(found)

    def _next_look(self) -> int:
        """When something is to be done beside running, in cycles since the power came."""
        machine = self.machine
        when = self._history.next_copy if self._history is not None else 1 << 63
        if self._sound is not None or self._heard is not None:
            rate = int(machine.state.sid_sample_rate)
            when = min(when, machine.elapsed + _SAMPLES_AT_ONCE * machine.model.clock // rate)
        return max(when, machine.elapsed + 1)

    # Looking inside

    @property
    def cpu(self) -> Any:
        """The registers of the CPU and of the chips, by their declared names: ``c64.cpu.pc``, ``c64.cpu.vic_line``."""
        return self._running().state

    def set(self, **registers: int) -> None:
        """Change registers: ``c64.set(pc=0xC000, a=1)``. Raises ValueError for what there is not."""
        self._running().set_registers(**registers)

    def read(self, address: int, length: int = 1, *, ram: bool = False) -> bytes:
        """Memory as the CPU would read it now, ROMs and chips included, without any effect; with ``ram``, RAM only.

        Raises ValueError behind $FFFF.
        """
        machine = self._running()
        if not ram:
            return machine.look(address, length)
        if not 0 <= address <= address + length <= 0x10000:
            raise ValueError(f"${address:x} to ${address + length - 1:x}: addresses are $0 to $ffff")
        return machine.memory.read(memory.RAM + address, length)

    def write(self, address: int, data: bytes | int) -> None:
        """Change RAM, also where a ROM or a chip is in front of it. Raises ValueError outside of it."""
        self._running().poke(address, data)

    def poke(self, address: int, data: bytes | int) -> None:
        """Write as the CPU would: ``poke(0xD020, 0)`` makes the border black. Raises ValueError behind $FFFF."""
        self._running().store(address, data)

    def disassemble(self, address: int | None = None, count: int = 10) -> list[str]:
        """The instructions from an address on, or from where the CPU is: a line for each, with address and bytes."""
        at = int(self.cpu.pc) if address is None else address
        architecture, lines = self.machine.model.architecture, []
        for _ in range(count):
            code = self.read(at, min(3, 0x10000 - at))
            word = int.from_bytes(code.ljust(3, b"\0"), "little")
            found = architecture.decode(word)
            length = found.encoding.length if found is not None else 1
            text = architecture.disassemble(word, at) or "?"
            lines.append(f"{at:04x}  {code[:length].hex(' '):9} {text}")
            at += length
            if at > 0xFFFF:
                break
        return lines

    # The past, and other machines

    @property
    def keeps_history(self) -> bool:
        """Whether it can go back in time at all."""
        return self._history is not None

    @property
    def kept_seconds(self) -> float:
        """How many seconds :meth:`rewind` can go back."""
        if self._history is None:
            return 0.0
        return (self._running().elapsed - self._history.start) / self.machine.model.clock

    def rewind(self, seconds: float) -> None:
        """Go back in time, exactly: what the machine was so many of its own seconds ago, it is again.

        What came later is forgotten. Raises ValueError for what is not kept any more.
        """
        machine = self._running()
        with self._past() as history:
            back = round(seconds * machine.model.clock) if 0 <= seconds <= machine.elapsed else machine.elapsed + 1
            if back > machine.elapsed - history.start:
                raise ValueError(f"{seconds:g} seconds back: {self.kept_seconds:.2f} are kept")
            history.go_to(machine.elapsed - back)

    def copy(self) -> C64:
        """Another machine that goes on from here by itself. It does not write to the file of a disk, nor have hooks."""
        made = C64.__new__(C64)
        made._begin(self._running().copy(), self._seconds)
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keep the machine in a file, whole, its ROMs and disk included. Raises SnapshotError."""
        snapshot.save(self._running(), Path(path))

    @classmethod
    def restore(cls, path: str | os.PathLike[str], *, history: float = 30) -> C64:
        """A machine that goes on from a file. What it writes on a disk stays in its memory. Raises SnapshotError."""
        made = cls.__new__(cls)
        made._begin(snapshot.restored(Path(path)), history)
        return made

    def __deepcopy__(self, memo: object) -> C64:
        return self.copy()

    # The end

    def _running(self) -> Commodore64:
        if self._closed:
            raise StoppedError("the machine is closed")
        return self.machine

    def close(self) -> None:
        """Finish what is recorded, and give back what it holds of the host; it cannot be used any more."""
        if not self._closed:
            self.stop_recording()
            self._heard = None
            self._closed = True
            self.machine.close()

    def __enter__(self) -> C64:
        return self

    def __exit__(
        self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<C64, closed>" if self._closed else f"<C64 after {self.seconds:.2f} s, pc=${int(self.cpu.pc):04x}>"


def _opened(
    software: str | os.PathLike[str] | bytes | Medium | None,
) -> tuple[Medium | None, str | os.PathLike[str] | None]:
    """The medium, and its file. Raises ImageError."""
    if isinstance(software, bytes):
        return Tape(b"PROGRAM", ((b"PROGRAM", check_program(software)),)), None
    if isinstance(software, str | os.PathLike):
        return open_medium(software), software
    return software, None


@contextmanager
def _timeouts() -> Iterator[None]:
    """What does not happen in time is said as of other machines."""
    try:
        yield
    except NotReadyError as error:
        raise VMTimeoutError(str(error)) from None

