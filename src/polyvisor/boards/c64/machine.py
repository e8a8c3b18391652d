"""A Commodore 64 as a whole: ROMs, chips, a drive, a cartridge; run by cycles and frames.

All that reaches it from outside goes through :meth:`Commodore64.change`, so that whoever keeps a log of that can
repeat a run: there is no other time but its own clock cycles.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from polyvisor.adl import Architecture, Field
from polyvisor.devices.c64 import keyboard, memory
from polyvisor.devices.c64.picture import Picture, picture
from polyvisor.engine.bare import BareMachine
from polyvisor.engine.memory import Memory
from polyvisor.storage.commodore.cartridge import Cartridge, Hardware
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.tape import Tape

from . import cpu_memory, expansion
from .drive import Drive, DrivePort, DriveState, PortState
from .model import Model, model_named
from .rom_files import reaching_drives
from .roms import CHARACTERS_SIZE, SIZE, Roms, free_roms

RAM_SIZE = 0x5_8000
SAMPLE_RATE = 44_100
DRIVE = 8
"""The number of the drive."""
# RAM and ROM have 1280 pages together, of 256 bytes, and a cartridge up to 8192.
_CODE_PAGES = 1024
# How far in front of a cycle that is looked for single steps begin: no run goes on so long after its end.
_APPROACH = 3000
_PAGE = 256
_KINDS = {
    Hardware.NORMAL: expansion.PLAIN, Hardware.OCEAN: expansion.OCEAN, Hardware.MAGIC_DESK: expansion.MAGIC_DESK,
    Hardware.EASYFLASH: expansion.EASYFLASH,
}  # fmt: skip


class Access(NamedTuple):
    """A read or a write of a byte: ``kind`` is ``read`` or ``write``, and ``pc`` where the instruction is."""

    kind: str
    address: int
    value: int
    pc: int


class Stop(NamedTuple):
    """Why a run ended: ``limit``, ``breakpoint``, ``watchpoint`` with the ``access``, ``stop`` (asked to), ``jam``, or
    ``debug`` with the byte that was written to $D7FF; after a single step, ``step``; on the way back, ``begin``."""

    reason: str
    value: int = 0
    access: Access | None = None


@dataclass
class Saved:
    """A machine at one moment: all that decides how it goes on, but for its ROMs and its cartridge's, which stay."""

    cycles: int
    before: int
    """Cycles before the last reset."""
    registers: bytes
    """CPU and chips: the declared state, as it is in memory."""
    memory: bytes = field(repr=False)
    port: PortState
    drive: DriveState
    tape: Tape | None
    """What is in the drive, if it is no disk."""
    path: str | None
    """The file that the disk is saved to."""
    read_only: bool
    model: str
    """Its name."""

    @property
    def elapsed(self) -> int:
        """Cycles since the power came."""
        return self.before + self.cycles


class Commodore64:
    """The machine. ``model``: ``pal`` or ``ntsc``. ``basic``, ``kernal`` and ``characters`` are its ROMs, 8 KiB, 8 KiB
    and 4 KiB: else our own.

    ``cartridge`` is in it for good; one with registers at $DF00 hides the drive. ``tier``: ``jit``, ``interpreter`` or
    ``reference``; ``debug``: a write to $D7FF ends a run, as test programs want. Raises ValueError for ROMs of another
    size, or a model that there is not.
    """

    def __init__(
        self, *, basic: bytes | None = None, kernal: bytes | None = None, characters: bytes | None = None,
        cartridge: Cartridge | None = None, tier: str = "jit", debug: bool = False,
        model: str = "pal", progress: Callable[[str], None] | None = None,
    ) -> None:
        self.model: Model = model_named(model)
        """Which television it is for, and what follows from that: clock, lines, cycles of a frame."""
        self.roms = _whole(basic, kernal, characters)
        self.cartridge = cartridge
        self.tier, self.debug = tier, debug
        self.memory = Memory()
        self.memory.add_ram(memory.RAM, RAM_SIZE, "ram")
        self.memory.write(memory.BASIC_ROM, self.roms.basic)
        self.memory.write(memory.KERNAL_ROM, reaching_drives(self.roms.kernal))
        self.memory.write(memory.CHARACTER_ROM, self.roms.characters)
        self._banks = 1 << (len(cartridge.low) - 1).bit_length() if cartridge is not None else 0
        if cartridge is not None:
            self._plug_in(cartridge)
        self.drive = Drive(DRIVE)
        self.port = DrivePort([self.drive])
        # All that no chip and no cartridge answers for: the registers begin at $DE00.
        self.memory.add_device(cpu_memory.DRIVE_PORT, 0x200, self.port)
        self._bare = BareMachine(self.model.architecture, self.memory, tier=tier, pages=_CODE_PAGES, progress=progress)
        self.cpu = self._bare.cpu
        self.regions = self._bare.regions
        self.before = 0
        """Cycles before the last reset."""
        self.on_change: Callable[[str, tuple[Any, ...]], None] | None = None
        """Called with what is changed from outside, before it is."""
        self.after_run: list[Callable[[], None]] = []
        """Called whenever a run has ended."""
        self._asked: Stop | None = None
        self.unseen: Stop | None = None
        """What ended a run that somebody else had begun, such as who waits for the prompt."""
        self._reset()

    def _plug_in(self, cartridge: Cartridge) -> None:
        size = self._banks * memory.CARTRIDGE_BANK
        self.memory.add_ram(memory.CARTRIDGE, size, "cartridge")
        nothing = bytes([0xFF]) * SIZE
        both = cartridge.hardware is Hardware.OCEAN
        for bank, (low, high) in enumerate(zip(cartridge.low, cartridge.high, strict=True)):
            upper = low if both and high is None else high
            rom = (low or nothing) + (upper or nothing)
            self.memory.write(memory.CARTRIDGE + bank * memory.CARTRIDGE_BANK, rom)
        for bank in range(len(cartridge.low), self._banks):
            self.memory.write(memory.CARTRIDGE + bank * memory.CARTRIDGE_BANK, 2 * nothing)
        self.memory.write(memory.CARTRIDGE_HIGH, cartridge.high[0] or nothing)

    @property
    def state(self) -> Any:
        """Registers and chips, by their declared names."""
        return self.cpu.state

    @property
    def cycles(self) -> int:
        """Clock cycles since the last reset."""
        return self.cpu.retired

    @property
    def elapsed(self) -> int:
        """Clock cycles since the power came."""
        return self.before + self.cycles

    @property
    def frames(self) -> int:
        """Frames that were completed since the last reset."""
        return int(self.state.vic_frames)

    # What reaches it from outside

    def change(self, what: str, *arguments: Any) -> None:
        """Do something to the machine: ``what`` is one of the methods below that begin with an underscore."""
        if self.on_change is not None:
            self.on_change(what, arguments)
        getattr(self, f"_{what}")(*arguments)
        self._look_again()

    def _look_again(self) -> None:
        """When something is due is not what it was: ask before anything is executed, which is not done after steps."""
        self.cpu.turn_state = self.cpu.turn_state[0], False

    def reset(self) -> None:
        """As by a button at the expansion port: memory stays as it is."""
        self.change("reset")

    def power_cycle(self) -> None:
        """Take the power away, and give it again: RAM is empty, the drive begins anew."""
        self.change("power_cycle")

    def poke(self, address: int, value: int | bytes) -> None:
        """Change a byte of RAM, or several."""
        data = bytes([value]) if isinstance(value, int) else bytes(value)
        if not 0 <= address <= 0x10000 - len(data):
            raise ValueError(f"there is no RAM at ${address:x} for {len(data)} bytes")
        self.change("poke", address, data)

    def store(self, address: int, value: int | bytes) -> None:
        """Write one byte, or several, as the CPU would: to chips and banks too. Raises ValueError behind $FFFF."""
        data = bytes([value]) if isinstance(value, int) else bytes(value)
        if not 0 <= address <= 0x10000 - len(data):
            raise ValueError(f"there is nothing at ${address:x} for {len(data)} bytes; addresses are $0 to $ffff")
        self.change("store", address, data)

    def set_registers(self, **values: int) -> None:
        """Set registers of the CPU, or of chips, by their declared names, or all flags as ``p``.

        Raises ValueError for what there is not, and for a value that does not fit.
        """
        for name, value in values.items():
            bits = _bits(self.model.architecture, name)
            if not 0 <= int(value) < 1 << bits:
                raise ValueError(f"{name}={int(value)} does not fit into {bits} bits")
        self.change("set_registers", values)

    def key(self, name: str, down: bool = True) -> None:
        """Press a key by its name in :mod:`polyvisor.devices.c64.keyboard`, or ``restore``, or let it go.

        Raises ValueError.
        """
        if name != "restore" and name not in keyboard.POSITIONS:
            raise ValueError(f"there is no key {name!r}; keys are restore {' '.join(keyboard.POSITIONS)}")
        self.change("key", name, down)

    def release_keys(self) -> None:
        """Let all keys go."""
        self.change("release_keys")

    def joystick(
        self, port: int = 2, *, up: bool = False, down: bool = False, left: bool = False, right: bool = False,
        fire: bool = False,
    ) -> None:
        """Hold the joystick in port 1 or 2 like this. Raises ValueError for another port."""
        if port not in (1, 2):
            raise ValueError(f"there is no port {port!r} for joysticks; there are 1 and 2")
        self.change("joystick", port, up | down << 1 | left << 2 | right << 3 | fire << 4)

    def insert(
        self, medium: D64 | Tape | None, path: str | os.PathLike[str] | None = None, *, read_only: bool = False
    ) -> None:
        """Put a disk, or the programs of a tape or a file, into the drive, or take it out (None).

        What the machine writes on a disk is saved to ``path``, if that is given and not ``read_only``.
        """
        name = None if path is None else os.fspath(path)
        self.change("insert", copy.deepcopy(medium), name, read_only)

    def listen(self, rate: int = SAMPLE_RATE) -> None:
        """Let the SID make samples, so many a second, of which the latest are kept. Raises ValueError."""
        if not 4_000 <= rate <= 192_000:
            raise ValueError(f"{rate} samples a second; 4000 to 192000 are possible")
        self.change("set_registers", {"sid_listening": 1, "sid_sample_rate": rate})

    def stop_listening(self) -> None:
        """Let the SID make no samples any more, which takes time."""
        self.change("set_registers", {"sid_listening": 0})

    def _reset(self) -> None:
        state, kept = self.state, {}
        for name in ("sid_listening", "sid_sample_rate", "sid_written"):
            kept[name] = int(getattr(state, name))
        rows, sticks = list(map(int, state.keyboard_rows)), (int(state.cia_pb_inputs[0]), int(state.cia_pa_inputs[0]))
        self.before += self.cpu.retired
        held = self.before > 0
        state.reset()
        self.cpu.retired = 0
        self.model.set_rates(state)
        state.c64_debug = self.debug
        if held:
            # Who listens, and hands on the keyboard, are not the machine's.
            for name, value in kept.items():
                setattr(state, name, value)
            for row, value in enumerate(rows):
                state.keyboard_rows[row] = value
            state.cia_pb_inputs[0], state.cia_pa_inputs[0] = sticks
        if self.cartridge is not None:
            state.c64_cartridge = _KINDS[self.cartridge.hardware]
            state.c64_banks = self._banks - 1
            state.c64_exrom, state.c64_game = int(self.cartridge.exrom), int(self.cartridge.game)
            state.vic_ultimax = int(self.cartridge.exrom and not self.cartridge.game)
        ultimax = int(state.vic_ultimax)
        top = memory.CARTRIDGE + SIZE if ultimax else memory.KERNAL_ROM
        state.pc = int.from_bytes(self.memory.read(top + 0x1FFC, 2), "little")
        self.port.reset()
        self.drive.reset()
        self.cpu.flush()

    def _power_cycle(self) -> None:
        for place, size in ((memory.RAM, 0x10000), (memory.COLOUR_RAM, 0x400), (memory.CARTRIDGE_RAM, _PAGE)):
            self.memory.write(place, bytes(size))
        self._reset()

    def _poke(self, address: int, data: bytes) -> None:
        self.memory.write(memory.RAM + address, data)

    def _store(self, address: int, data: bytes) -> None:
        cpu_memory.store(self, address, data)

    def _set_registers(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            setattr(self.state, name, value)
        self.cpu.flush()

    def _key(self, name: str, down: bool) -> None:
        if name != "restore":
            keyboard.press(self.state, name, down)
        elif down:
            # The key makes a short pulse on the NMI line.
            self.state.nmi_pending = 1
            self.state.nmi_since = self.cycles
        self.cpu.poke()

    def _release_keys(self) -> None:
        for row in range(8):
            self.state.keyboard_rows[row] = 0

    def _joystick(self, port: int, held: int) -> None:
        inputs = self.state.cia_pb_inputs if port == 1 else self.state.cia_pa_inputs
        inputs[0] = 0xFF & ~held

    def _insert(self, medium: D64 | Tape | None, path: str | None, read_only: bool) -> None:
        # A copy: the log of changes keeps the medium as it is now.
        self.drive.insert(copy.deepcopy(medium), path, read_only=read_only)

    # Running

    def run(self, cycles: int) -> Stop:
        """Run for so many clock cycles, and to the next jump."""
        try:
            return self._run(self.elapsed + cycles)
        finally:
            for call in self.after_run:
                call()

    def _run(self, end: int) -> Stop:
        while self.elapsed < end:
            found = self.cpu.run(end - self.elapsed)
            asked, self._asked = self._asked, None
            if found.kind == "leave":
                return self._left(found.reason)
            if asked is not None:
                return asked
            # The engine returns for events of the chips too, and passes a breakpoint where it goes on.
            if found.kind == "breakpoint" or int(self.state.pc) in self.cpu.breakpoints:
                return Stop("breakpoint")
            if found.kind == "stop":
                return Stop("stop")
        return Stop("limit")

    def end_run(self, stop: Stop) -> None:
        """Called by a hook's callback for an access: the run, or step, ends behind its instruction, and gives this.

        Of several calls in one instruction, the last counts.
        """
        self._asked = stop
        self.cpu.stop_behind()

    def _left(self, reason: str) -> Stop:
        return Stop(reason, int(self.state.c64_debug_value) if reason == "debug" else 0)

    def run_frames(self, frames: int = 1) -> Stop:
        """Run until about so many frames later."""
        return self.run(frames * self.model.frame)

    def run_until(self, condition: Callable[[], bool], frames: int = 500) -> bool:
        """Run, frame by frame, until a condition holds; gives whether it did within so many frames."""
        for _ in range(frames):
            if condition():
                return True
            found = self.run_frames()
            if found.reason != "limit":
                self.unseen = found
                break
        return condition()

    def run_to(self, elapsed: int) -> None:
        """Run to the end of the first instruction that ends so many cycles after the power came, or later.

        Whatever would end a run does not end this one, but for a CPU that is jammed.
        """
        for _ in self.stops_to(elapsed):
            pass

    def stops_to(self, elapsed: int) -> Iterator[Stop]:
        """The same; says at which breakpoints and watchpoints the machine comes by, when it is there."""
        ends = ("breakpoint", "watchpoint")
        while self.elapsed < elapsed - _APPROACH:
            before = self.elapsed
            found = self._run(elapsed - _APPROACH)
            if found.reason in ends:
                yield found
            if found.reason == "watchpoint" and int(self.state.pc) in self.cpu.breakpoints:
                yield Stop("breakpoint")
            if self.elapsed == before:
                break
        while self.elapsed < elapsed:
            before = self.elapsed
            found = self.step()
            if found.reason in ends:
                yield found
            if int(self.state.pc) in self.cpu.breakpoints:
                yield Stop("breakpoint")
            if self.elapsed == before:
                break

    def step(self) -> Stop:
        """Execute one instruction, or enter an interrupt that is due."""
        found = self.cpu.step()
        while found.kind == "stop":  # left over from someone who asked it to
            found = self.cpu.step()
        asked, self._asked = self._asked, None
        if found.kind == "leave":
            return self._left(found.reason)
        return asked if asked is not None else Stop("step")

    # The same machine at another time

    def save(self) -> Saved:
        """All that decides how it goes on."""
        state = self.state
        return Saved(
            self.cycles, self.before, bytes(state.block[: state.size]), self.memory.read(0, RAM_SIZE),
            copy.deepcopy(self.port.state), copy.deepcopy(self.drive.state), cast(Tape | None, self.drive.tape),
            cast(str | None, self.drive.path), self.drive.read_only,
            self.model.name,
        )  # fmt: skip

    def restore(self, saved: Saved) -> None:
        """Be as a machine with the same ROMs was. Raises ValueError if it was of another model, or had other memory."""
        state = self.state
        if saved.model != self.model.name or len(saved.memory) != RAM_SIZE or len(saved.registers) != state.size:
            raise ValueError("it is of a machine of another kind")
        self._write_changes(saved.memory)
        state.block[: state.size] = saved.registers
        self.cpu.retired, self.before = saved.cycles, saved.before
        self.port.state = copy.deepcopy(saved.port)
        self.drive.restore(copy.deepcopy(saved.drive), saved.tape, saved.path, saved.read_only)
        self.cpu.flush()
        self._look_again()

    def _write_changes(self, wanted: bytes) -> None:
        """Write memory, and leave alone what is the same already: code that was decoded from it stays."""
        now = self.memory.read(0, RAM_SIZE)
        start = None
        for at in range(0, RAM_SIZE + _PAGE, _PAGE):
            differs = at < RAM_SIZE and now[at : at + _PAGE] != wanted[at : at + _PAGE]
            if differs and start is None:
                start = at
            elif not differs and start is not None:
                self.memory.write(start, wanted[start:at])
                start = None

    def copy(self) -> Commodore64:
        """Another machine that goes on from here. What it writes on a disk is not saved to a file."""
        made = Commodore64(
            **self.roms._asdict(), cartridge=self.cartridge, tier=self.tier, debug=self.debug, model=self.model.name
        )
        made.drive.saves = False
        made.restore(self.save())
        return made

    # Looking in

    def look(self, address: int, length: int = 1) -> bytes:
        """Memory as the CPU would read it now, chips included, without any effect. Raises ValueError behind $FFFF."""
        return cpu_memory.look(self, address, length)

    def peek(self, address: int) -> int:
        """A byte of RAM, whatever is in front of it."""
        return self.memory.read(memory.RAM + address, 1)[0]

    def picture(self) -> Picture:
        """The picture on the screen."""
        return picture(self.memory, self.model.vic)

    def close(self) -> None:
        """Give back what it holds of the host."""
        self._bare.close()


def _bits(architecture: Architecture, name: str) -> int:
    """The size of a register. Raises ValueError if there is none of that name."""
    if name in ("pc", "p"):
        return architecture.address_bits if name == "pc" else 8
    assert architecture.state_type is not None
    member = architecture.state_type.members.get(name)
    if not isinstance(member, Field):
        raise ValueError(f"there is no register {name!r}" if member is None else f"{name!r} is more than one register")
    return member.type.bits


def _whole(basic: bytes | None, kernal: bytes | None, characters: bytes | None) -> Roms:
    ours = free_roms()
    made = Roms(
        ours.basic if basic is None else basic, ours.kernal if kernal is None else kernal,
        ours.characters if characters is None else characters,
    )  # fmt: skip
    for name, rom, size in (
        ("BASIC", made.basic, SIZE), ("KERNAL", made.kernal, SIZE), ("character", made.characters, CHARACTERS_SIZE)
    ):  # fmt: skip
        if len(rom) != size:
            raise ValueError(f"the {name} ROM has {len(rom)} bytes; it must have {size}")
    return made
