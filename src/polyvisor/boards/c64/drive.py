"""Disk drives at the level of the KERNAL's serial routines, and the registers by which our KERNAL reaches them.

The registers are four bytes from $DF00 on:

==== ======= ===================================================================================================
  0  write   a command: 1: DATA is sent as a command of the bus (with ATN); 2: as a byte; 3: as the last byte (EOI);
             4: the talker sends a byte, to DATA
  1  both    DATA
  2  read    what the command led to, as bits of the KERNAL's ST ($90): $80 no such device, $40 that was the last byte,
             $02 nothing to read, $01 nobody takes the byte
  3  read    $56: the registers are here
==== ======= ===================================================================================================

Commands of the bus are those of the serial bus: $20 + device LISTEN, $3F UNLISTEN, $40 + device TALK, $5F UNTALK,
$60 + n channel n, $E0 + n CLOSE, $F0 + n OPEN (a name follows).  Sources: Commodore 64 Programmer's Reference Guide,
chapter 6; Commodore 1541 User's Guide; "Inside Commodore DOS", chapter 3 and appendix B.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from polyvisor.storage.commodore.d64 import D64, DiskFullError, ReadError
from polyvisor.storage.commodore.files import Entry, FileType, ImageError, Volume, matches

PRESENT = 0x56
COMMAND, DATA, STATUS, IDENTITY = range(0x100, 0x104)
"""The registers, from $DE00 on: the cartridges' part of the I/O area."""
ATTENTION, SEND, SEND_LAST, RECEIVE = 1, 2, 3, 4
NO_DEVICE, LAST, NOTHING, NOT_TAKEN = 0x80, 0x40, 0x02, 0x01
COMMANDS = 15
"""The channel for commands and the status."""
_TYPES = {b"S": FileType.SEQ, b"P": FileType.PRG, b"U": FileType.USR, b"L": FileType.REL}
"""How a name's options call them."""
_LONGEST_NAME = 256
_MOST_WRITTEN = 1 << 20
_DIRECTORY_ADDRESS = 0x0401

MESSAGES = {
    0: " OK", 1: " FILES SCRATCHED", 20: "READ ERROR", 25: "WRITE ERROR", 26: "WRITE PROTECT ON", 31: "SYNTAX ERROR",
    33: "SYNTAX ERROR", 34: "SYNTAX ERROR", 60: "WRITE FILE OPEN", 61: " FILE NOT OPEN", 62: " FILE NOT FOUND",
    63: " FILE EXISTS", 64: " FILE TYPE MISMATCH", 67: "ILLEGAL TRACK OR SECTOR", 70: "NO CHANNEL", 71: "DIR ERROR",
    72: "DISK FULL", 73: "CBM DOS V2.6 1541", 74: "DRIVE NOT READY",
}  # fmt: skip
"""What the drive calls its numbers."""


class _DriveError(Exception):
    """An error of the drive: the number, and what its status has as track and sector."""

    def __init__(self, code: int, track: int = 0, sector: int = 0) -> None:
        self.values = code, track, sector


@dataclass
class Channel:
    """An open file: what is read from it, or was written to it, which is put on the disk when it is closed."""

    mode: str = ""
    """``r``, ``w``, or nothing: not open."""
    contents: bytearray = field(default_factory=bytearray)
    position: int = 0
    name: bytes = b""
    type: int = int(FileType.SEQ)
    replaces: bool = False


@dataclass
class DriveState:
    """All that the guest can change. ``sectors`` and ``errors`` are those of the disk, if it is one; see `D64`."""

    channels: list[Channel] = field(default_factory=lambda: [Channel() for _ in range(COMMANDS)])
    command: bytearray = field(default_factory=bytearray)
    answer: bytes = b""
    """What is left of the status to be read; empty: it begins anew."""
    code: int = 73
    track: int = 0
    sector: int = 0
    sectors: bytearray = field(default_factory=bytearray)
    errors: bytes = b""


class Drive:
    """A drive with a medium in it: a disk, or the programs of a tape's image or a file, which can only be read."""

    def __init__(self, number: int = 8, medium: D64 | Volume | None = None) -> None:
        self.number = number
        self.saves = True
        """Whether changes of a disk are saved to its file."""
        self.state = DriveState()
        self.insert(medium)

    def insert(
        self, medium: D64 | Volume | None, path: str | os.PathLike[str] | None = None, *, read_only: bool = False
    ) -> None:
        """Put a medium in, or take it out (None). Changes of a disk are saved to ``path`` if that is given.

        The drive has a copy of the disk: what was changed is in `medium`.
        """
        self.path = path
        self.read_only = read_only
        self.failure: str | None = None
        """Why the disk could not be saved to its file, if so."""
        self._tape = None if isinstance(medium, D64) else medium
        self.state.sectors = bytearray(medium.data if isinstance(medium, D64) else b"")
        self.state.errors = medium.errors if isinstance(medium, D64) else b""
        self.state.channels = [Channel() for _ in range(COMMANDS)]

    @property
    def medium(self) -> D64 | Volume | None:
        """What is in the drive; of a disk, as it is now."""
        return D64(self.state.sectors, self.state.errors) if self.state.sectors else self._tape

    @property
    def tape(self) -> Volume | None:
        """What is in the drive, if it is no disk."""
        return self._tape

    def restore(
        self, state: DriveState, tape: Volume | None, path: str | os.PathLike[str] | None, read_only: bool
    ) -> None:
        """Be as a drive was with that state, and with that in it; see :meth:`insert`."""
        self.state, self._tape, self.path, self.read_only = state, tape, path, read_only

    def save(self) -> None:
        """Save the disk to its file, if it has one and is to be saved. Raises ImageError."""
        if self.path is not None and self.saves and not self.read_only and self.state.sectors:
            D64(self.state.sectors, self.state.errors).save(self.path)

    def reset(self) -> None:
        """As when it is switched on; files that were being written are lost."""
        self.state.channels = [Channel() for _ in range(COMMANDS)]
        self.state.command, self.state.answer = bytearray(), b""
        self.state.code, self.state.track, self.state.sector = 73, 0, 0

    # What the bus asks for

    def open(self, number: int, name: bytes) -> None:
        """Open the file ``name`` on a channel; what is wrong with it is in the status."""
        if number == COMMANDS:
            self.state.command[:] = name
            self._execute()
            return
        with self._reporting():
            self._close(number)
            self._open(number, name)

    def close(self, number: int) -> None:
        """Close a channel; a file that was written is put on the disk now. That for commands closes all."""
        with self._reporting():
            for each in range(COMMANDS) if number == COMMANDS else (number,):
                self._close(each)

    def write(self, number: int, byte: int, last: bool) -> bool:
        """A byte for a channel; gives whether it was taken. A command is executed at its ``last`` byte."""
        if number == COMMANDS:
            if len(self.state.command) < _LONGEST_NAME:
                self.state.command.append(byte)
            if last:
                self._execute()
            return True
        channel = self.state.channels[number]
        if channel.mode != "w":
            self._report(61)
            return False
        if len(channel.contents) >= _MOST_WRITTEN:
            self._report(72)
            return False
        channel.contents.append(byte)
        return True

    def read(self, number: int) -> tuple[int, bool] | None:
        """The next byte of a channel, and whether it is the last; None if there is none."""
        if number == COMMANDS:
            answer = self.state.answer or self.status()
            self.state.answer = answer[1:]
            if len(answer) == 1:
                self._report(0)
            return answer[0], len(answer) == 1
        channel = self.state.channels[number]
        if channel.mode != "r" or channel.position >= len(channel.contents):
            return None
        byte = channel.contents[channel.position]
        channel.position += 1
        return byte, channel.position == len(channel.contents)

    def status(self) -> bytes:
        """What the channel for commands says: number, message, track and sector."""
        state = self.state
        message = MESSAGES.get(state.code, "READ ERROR")
        return f"{state.code:02},{message},{state.track:02},{state.sector:02}\r".encode("ascii")

    # Status

    def _report(self, code: int, track: int = 0, sector: int = 0) -> None:
        self.state.code, self.state.track, self.state.sector = code, track, sector
        self.state.answer = b""

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """What goes wrong becomes the status, which else is that all is well."""
        self._report(0)
        try:
            yield
        except _DriveError as error:
            self._report(*error.values)
        except DiskFullError:
            self._report(72)
        except ReadError as error:
            self._report(error.code, error.track, error.sector)
        except ImageError:
            self._report(71)

    # Files

    def _volume(self) -> D64 | Volume:
        medium = self.medium
        if medium is None:
            raise _DriveError(74)
        return medium

    @contextmanager
    def _changing(self) -> Iterator[D64]:
        """The disk, to be changed and then saved; if the change fails, nothing is changed."""
        disk = self._volume()
        if self.read_only or not isinstance(disk, D64):
            raise _DriveError(26)
        before = bytes(disk.data), disk.errors
        try:
            yield disk
        except (_DriveError, ImageError):
            disk.data[:], disk.errors = before
            raise
        self.state.errors = disk.errors
        if self.path is not None and self.saves:
            try:
                disk.save(self.path)
                self.failure = None
            except ImageError as error:
                self.failure = str(error)
                raise _DriveError(25) from error

    def _open(self, number: int, name: bytes) -> None:
        if name[:1] == b"#":
            raise _DriveError(70)  # sectors by number
        if name[:1] == b"$" and number == 0:
            pattern = name[1:].partition(b":")[2] if b":" in name else name[1:].lstrip(b"0123456789")
            contents = directory_listing(self._volume(), pattern or b"*")
            self.state.channels[number] = Channel("r", bytearray(contents))
            return
        replaces = name[:1] == b"@"
        plain, *options = _without_drive(name[1:] if replaces else name).split(b",")
        kind, mode = FileType.PRG if number < 2 else FileType.SEQ, "w" if number == 1 else "r"
        wanted = None
        for option in options:
            if option[:1] in _TYPES:
                kind = wanted = _TYPES[option[:1]]
            if option[:1] in (b"R", b"W", b"A"):
                mode = option[:1].decode().lower()
        if not plain:
            raise _DriveError(34)
        if mode == "r":
            self._open_to_read(number, plain, wanted)
        else:
            self._open_to_write(number, plain, kind, replaces, mode == "a")

    def _open_to_read(self, number: int, pattern: bytes, wanted: FileType | None) -> None:
        volume = self._volume()
        entry = _find(volume, pattern)
        if entry is None:
            raise _DriveError(62)
        if wanted is not None and entry.type != wanted:
            raise _DriveError(64)
        if any(channel.mode == "w" and channel.name == entry.name for channel in self.state.channels):
            raise _DriveError(60)
        contents = bytearray(volume.read(entry))
        self.state.channels[number] = Channel("r", contents, 0, entry.name, int(entry.type))

    def _open_to_write(self, number: int, name: bytes, kind: FileType, replaces: bool, appends: bool) -> None:
        volume = self._volume()
        if self.read_only or not isinstance(volume, D64):
            raise _DriveError(26)
        if b"*" in name or b"?" in name:
            raise _DriveError(33)
        if kind is FileType.REL:
            raise _DriveError(64)
        name = name[:16]
        if any(channel.mode == "w" and channel.name == name for channel in self.state.channels):
            raise _DriveError(60)
        entry = next((each for each in volume.entries() if each.name == name), None)
        contents = bytearray()
        if appends:
            if entry is None:
                raise _DriveError(62)
            contents, kind = bytearray(volume.read(entry)), entry.type
        elif entry is not None and not replaces:
            raise _DriveError(63)
        self.state.channels[number] = Channel("w", contents, 0, name, int(kind), replaces or appends)

    def _close(self, number: int) -> None:
        channel, self.state.channels[number] = self.state.channels[number], Channel()
        if channel.mode != "w":
            return
        with self._changing() as disk:
            if channel.replaces and (entry := next((e for e in disk.entries() if e.name == channel.name), None)):
                disk.scratch(entry)
            # CBM DOS leaves a return in a file to which nothing was written.
            disk.write(channel.name, bytes(channel.contents) or b"\r", FileType(channel.type))

    # Commands

    def _execute(self) -> None:
        """Do what the command says. Without one, the status stays."""
        command = bytes(self.state.command).rstrip(b"\r")
        self.state.command = bytearray()
        if not command:
            return
        with self._reporting():
            for start, action in self._commands().items():
                if command.startswith(start):
                    action(command.partition(b":")[2])
                    return
            raise _DriveError(31)

    def _commands(self) -> dict[bytes, Callable[[bytes], None]]:
        return {
            b"I": self._initialize, b"V": self._validate, b"N": self._new, b"S": self._scratch, b"R": self._rename,
            b"C": self._copy, b"UI": self._restart, b"U9": self._restart, b"UJ": self._restart, b"U:": self._restart,
        }  # fmt: skip

    def _initialize(self, rest: bytes) -> None:
        self._volume()

    def _restart(self, rest: bytes) -> None:
        self.reset()
        raise _DriveError(73)

    def _validate(self, rest: bytes) -> None:
        with self._changing() as disk:
            disk.validate()

    def _new(self, rest: bytes) -> None:
        name, comma, identity = rest.partition(b",")
        if not name:
            raise _DriveError(34)
        with self._changing() as disk:
            disk.format(name[:16], identity[:2] if comma else None)

    def _scratch(self, rest: bytes) -> None:
        patterns = [_without_drive(part) for part in rest.split(b",")]
        if not all(patterns):
            raise _DriveError(34)
        count = 0
        with self._changing() as disk:
            for entry in disk.entries():
                if not entry.locked and any(matches(pattern, entry.name) for pattern in patterns):
                    disk.scratch(entry)
                    count += 1
        raise _DriveError(1, min(count, 99))

    def _rename(self, rest: bytes) -> None:
        new, equals, old = rest.partition(b"=")
        old = _without_drive(old)
        if not new or not equals or not old:
            raise _DriveError(34)
        if any(wild in new for wild in b"*?,"):
            raise _DriveError(33)
        with self._changing() as disk:
            entry = disk.find(old)
            if entry is None:
                raise _DriveError(62)
            if any(each.name == new[:16] for each in disk.entries()):
                raise _DriveError(63)
            disk.rename(entry, new[:16])

    def _copy(self, rest: bytes) -> None:
        new, equals, sources = rest.partition(b"=")
        if not new or not equals or not sources:
            raise _DriveError(34)
        with self._changing() as disk:
            found = [disk.find(_without_drive(source)) for source in sources.split(b",")]
            if any(each.name == new[:16] for each in disk.entries()):
                raise _DriveError(63)
            contents, kind = b"", FileType.PRG
            for entry in found:
                if entry is None:
                    raise _DriveError(62)
                if entry.type is FileType.REL:
                    raise _DriveError(64)
                contents, kind = contents + disk.read(entry), entry.type
            disk.write(new[:16], contents, kind)


def _without_drive(name: bytes) -> bytes:
    """A name without the drive's number before it: ``0:NAME``."""
    drive, colon, rest = name.partition(b":")
    return rest if colon and len(drive) <= 1 and (not drive or drive.isdigit()) else name


def _find(volume: Volume, pattern: bytes) -> Entry | None:
    return next((e for e in volume.entries() if e.closed and e.type and matches(pattern, e.name)), None)


def directory_listing(volume: Volume, pattern: bytes = b"*") -> bytes:
    """The directory as a program in BASIC, whose lines' numbers are the files' blocks. Raises ImageError."""
    title = b'\x12"' + volume.title[:16].ljust(16) + b'" ' + volume.id
    lines = [(0, title)]
    for entry in volume.entries():
        if matches(pattern, entry.name):
            text = b" " * max(1, 4 - len(str(entry.blocks))) + b'"' + entry.name + b'"'
            mark = b" " if entry.closed else b"*"
            kind = mark + entry.type.name.encode() + (b"<" if entry.locked else b" ")
            lines.append((entry.blocks, text + b" " * (16 - len(entry.name)) + kind))
    lines.append((volume.free, b"BLOCKS FREE."))
    out = _DIRECTORY_ADDRESS.to_bytes(2, "little")
    for number, text in lines:
        # LOAD puts the right addresses in place of the first two bytes.
        out += b"\1\1" + (number & 0xFFFF).to_bytes(2, "little") + text.replace(b"\0", b"?") + b"\0"
    return out + b"\0\0"


@dataclass
class PortState:
    """What the registers hold, and who was told to listen or to talk, on which channel; -1: nobody."""

    data: int = 0
    status: int = 0
    listener: int = -1
    talker: int = -1
    listening: int = 0
    talking: int = 0
    opening: bool = False
    name: bytearray = field(default_factory=bytearray)


class DrivePort:
    """The registers, as a device that has the 512 bytes from $DE00 on: see the module."""

    def __init__(self, drives: Sequence[Drive]) -> None:
        self.drives = {drive.number: drive for drive in drives}
        self.state = PortState()

    def reset(self) -> None:
        """As after the machine's reset."""
        self.state = PortState()

    def read(self, offset: int, size: int) -> int:
        """The value of a register; others than those described are $FF."""
        values = {DATA: self.state.data, STATUS: self.state.status, IDENTITY: PRESENT}
        return values.get(offset, 0xFF)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register: commands are done at once."""
        if offset == DATA:
            self.state.data = value & 0xFF
        elif offset == COMMAND:
            actions = {
                ATTENTION: self._attention, SEND: self._send, SEND_LAST: lambda: self._send(True),
                RECEIVE: self._receive,
            }  # fmt: skip
            self.state.status = 0
            if value in actions:
                actions[value]()

    def _attention(self) -> None:
        state, byte = self.state, self.state.data
        kind, number = byte & 0xE0, byte & 0x1F
        if kind in (0x20, 0x40) and number != 31:
            if number not in self.drives:
                state.status = NO_DEVICE
                number = -1
            if kind == 0x20:
                state.listener, state.listening = number, COMMANDS
            else:
                state.talker, state.talking = number, COMMANDS
        elif kind == 0x20:
            if state.opening and state.listener in self.drives:
                self.drives[state.listener].open(state.listening, bytes(state.name))
            state.opening, state.listener = False, -1
        elif kind == 0x40:
            state.talker = -1
        elif state.talker in self.drives and kind == 0x60:
            state.talking = byte & 15
        elif state.listener in self.drives:
            state.listening = byte & 15
            state.opening = byte & 0xF0 == 0xF0
            state.name = bytearray()
            if byte & 0xF0 == 0xE0:
                self.drives[state.listener].close(byte & 15)
        else:
            state.status = NO_DEVICE

    def _send(self, last: bool = False) -> None:
        state = self.state
        if state.listener not in self.drives:
            state.status = NO_DEVICE
        elif state.opening:
            if len(state.name) < _LONGEST_NAME:
                state.name.append(state.data)
        elif not self.drives[state.listener].write(state.listening, state.data, last):
            state.status = NOT_TAKEN

    def _receive(self) -> None:
        state = self.state
        answer = self.drives[state.talker].read(state.talking) if state.talker in self.drives else None
        if answer is None:
            state.data, state.status = 0x0D, NOTHING | LAST
        else:
            state.data, state.status = answer[0], LAST if answer[1] else 0
