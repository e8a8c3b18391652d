"""A Commodore 64 in a file: a snapshot file as of any machine (docs/snapshots.md), with what this one has."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polyvisor
from polyvisor.adl import DescriptionError, Field
from polyvisor.boards.c64.drive import COMMANDS, DriveState, PortState
from polyvisor.boards.c64.machine import RAM_SIZE, Commodore64, Saved
from polyvisor.boards.c64.model import PAL, Model, model_named
from polyvisor.boards.c64.roms import CHARACTERS_SIZE, SIZE
from polyvisor.devices.c64 import memory
from polyvisor.engine.memory import PAGE_SIZE
from polyvisor.storage.commodore.cartridge import Cartridge
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import ImageError
from polyvisor.storage.commodore.tape import Tape
from polyvisor.vm.errors import SnapshotError
from polyvisor.vm.snapshot import ram
from polyvisor.vm.snapshot.codec import to_plain
from polyvisor.vm.snapshot.file import Section, SnapshotFile
from polyvisor.vm.snapshot.writer import Writer, remove_stale

BOARD = "c64"
FORMAT = 2
# Files of this format have no model, as there was but one, and none of these registers. They are found anew; but a row
# of a sprite that was being drawn is not.
_OLD = 1
_NEW_REGISTERS = {
    "c64_watched": [0], "c64_watched_bank": [0], "vic_sprite_laid": [0] * 8, "vic_sprite_since": [0] * 8,
}


@dataclass
class Contents:
    """What the file's document has of the machine, beside RAM and the ROMs in it."""

    format: int
    tier: str
    debug: bool
    model: str
    cycles: int
    before: int
    registers: dict[str, list[int]]
    port: PortState
    drive: DriveState
    tape: Tape | None
    cartridge: Cartridge | None
    ram: Section = field(repr=False)


def save(machine: Commodore64, path: Path) -> None:
    """Write the machine's state into a file, which then is complete, or as it was before. Raises SnapshotError."""
    try:
        remove_stale(path)
        writer = Writer(path, uuid.uuid4().bytes)
        try:
            view = machine.memory.view(0, RAM_SIZE)
            runs = list(ram.merged(ram.nonzero(view, [(0, RAM_SIZE)])))
            section = writer.section(RAM_SIZE, PAGE_SIZE, runs, lambda offset, length: view[offset : offset + length])
            contents = Contents(
                FORMAT, machine.tier, machine.debug, machine.model.name, machine.cycles, machine.before,
                _registers(machine.state), machine.port.state, machine.drive.state, machine.save().tape,
                machine.cartridge, section,
            )
            writer.finish({
                "by": f"polyvisor {polyvisor.__version__}",
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "board": BOARD,
                BOARD: to_plain(contents),
            })  # fmt: skip
            writer.save()
        finally:
            writer.close()
    except OSError as error:
        raise SnapshotError(f"{path}: the snapshot cannot be written: {error.strerror or error}") from error


def restored(path: Path) -> Commodore64:
    """A machine that goes on from what is in a file. Raises SnapshotError."""
    file = SnapshotFile(path)
    if file.document.get("board") != BOARD:
        raise SnapshotError(f"{path}: is a snapshot of another machine than a Commodore 64")
    plain = file.document.get(BOARD)
    if isinstance(plain, dict) and plain.get("format") == _OLD and isinstance(plain.get("registers"), dict):
        plain["registers"] |= _NEW_REGISTERS
        plain |= {"format": FORMAT, "model": PAL.name}
    if isinstance(plain, dict) and plain.get("format") != FORMAT:
        raise SnapshotError(f"{path}: is of format {plain.get('format')}, and this polyvisor knows {FORMAT}")
    contents = file.take(Contents, BOARD)
    try:
        content = _ram(file, contents.ram)
        roms: dict[str, Any] = {
            name: content[place : place + size]
            for name, place, size in (
                ("basic", memory.BASIC_ROM, SIZE), ("kernal", memory.KERNAL_ROM, SIZE),
                ("characters", memory.CHARACTER_ROM, CHARACTERS_SIZE),
            )
        }  # fmt: skip
        _check(contents)
        model = model_named(contents.model)
        made = Commodore64(
            **roms, cartridge=contents.cartridge, tier=contents.tier, debug=contents.debug,
            model=model.name,
        )
        try:
            made.restore(Saved(
                contents.cycles, contents.before, _block(model, contents.registers), content, contents.port,
                contents.drive, contents.tape, None, False, model.name,
            ))  # fmt: skip
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise SnapshotError(f"{path}: cannot read the snapshot: {error.strerror}") from error
    except (ValueError, DescriptionError) as error:
        raise SnapshotError(f"{path}: the snapshot makes no sense: {error}") from error
    return made


def _registers(state: Any) -> dict[str, list[int]]:
    values = {}
    for name, member in state.members.items():
        value = getattr(state, name)
        values[name] = [int(value)] if isinstance(member, Field) else [int(each) for each in value]
    return values


def _block(model: Model, registers: dict[str, list[int]]) -> bytes:
    """The declared state as it is in memory. Raises ValueError, DescriptionError."""
    assert model.architecture.state_type is not None
    state = model.architecture.state_type()
    odd = sorted(set(registers) ^ set(state.members))
    if odd:
        raise ValueError(f"registers {', '.join(odd[:5])} are missing, or unknown")
    for name, member in state.members.items():
        values = registers[name]
        if len(values) != (1 if isinstance(member, Field) else member.count):
            raise ValueError(f"{len(values)} values of {name}")
        if isinstance(member, Field):
            setattr(state, name, values[0])
        else:
            for index, value in enumerate(values):
                getattr(state, name)[index] = value
    return bytes(state.block[: state.size])


def _ram(file: SnapshotFile, section: Section) -> bytes:
    """Memory. Raises SnapshotError, OSError, ValueError."""
    if section.size != RAM_SIZE:
        raise ValueError(f"memory of {section.size} bytes")
    file.verify(section)
    content = bytearray(RAM_SIZE)
    for offset, length in section.runs:
        content[offset : offset + length] = file.read(section.offset + offset, length)
    return bytes(content)


def _check(contents: Contents) -> None:
    """Raise ValueError for a drive that cannot be, ImageError for a medium."""
    drive = contents.drive
    if len(drive.channels) != COMMANDS or not 0 <= drive.code <= 99 or not 0 <= contents.port.data <= 0xFF:
        raise ValueError("a drive that cannot be")
    if any(channel.mode not in ("", "r", "w") or channel.position < 0 for channel in drive.channels):
        raise ValueError("a drive with a channel that cannot be")
    if drive.sectors:
        try:
            D64.parse(bytes(drive.sectors) + drive.errors)
        except ImageError as error:
            raise ValueError(f"a disk that {error}") from error
    if not 0 <= contents.cycles < 1 << 62 or not 0 <= contents.before < 1 << 62:
        raise ValueError("a time that cannot be")
