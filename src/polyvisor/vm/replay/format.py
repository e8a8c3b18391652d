"""The file of a recording; docs/replay.md describes it.

A file is a magic number and *sections*: a kind, a length, a checksum, and bytes compressed with Zstandard. The events
of a run are in sections of some hundred kilobytes each, so what was written before a crash is of use. Several machines
that ran together have a *track* each: sections between those of others.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_type_hints

import zstandard

from polyvisor.engine.outside import Operation, Plain

from ..errors import VMError

VERSION = 2
_MAGIC = b"polyvisor recording\n"
_VERSION = struct.Struct("<I")
# Kind, bytes compressed, bytes, checksum (CRC-32) of the compressed bytes; and a checksum of these.
_SECTION = struct.Struct("<4sIIII")
_HEAD = struct.Struct("<4sIII")
MACHINE, PAGES, EVENTS, TRACK = b"MACH", b"PAGE", b"EVNT", b"TRCK"
_TRACK = struct.Struct("<I")
_MOST_TRACKS = 4096
_LEVEL = 1
_FLUSH_AT = 256 << 10
_LARGEST = 1 << 30
_BASE64 = "base64"

# Kinds of events, and of arguments.
_OPERATION, _VALUE, _CHECKPOINT, _END, _NAME = range(5)
_NOTHING, _POSITIVE, _NEGATIVE, _BYTES, _TEXT = range(5)


class RecordingError(VMError):
    """A file is no recording, or damaged; or what is to be recorded cannot be. One line for the user."""


@dataclass(frozen=True)
class Value:
    """The machine asked ``source``, and got ``value``."""

    source: str
    value: tuple[Plain, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What the machine was before turn ``turn``: instructions executed, nanoseconds, and digests."""

    turn: int
    executed: int
    time: int
    memory: bytes
    registers: bytes
    devices: bytes


@dataclass(frozen=True)
class End:
    """A life of the machine ended, in turn ``turn``. ``how``: off, reset, or cut (by the outside).

    The digests are as those of a checkpoint, but in the midst of the turn; there are none where it was cut.
    """

    how: str
    code: int | None
    turn: int
    memory: bytes = b""
    registers: bytes = b""
    devices: bytes = b""


Event = Operation | Value | Checkpoint | End


class Writer:
    """Writes a recording to ``path``. Everything raises RecordingError where the file cannot be written.

    A file that is there is replaced when the recording has :meth:`begun`, and lost no sooner. Once something cannot be
    written, the file gets no more: what it has are whole sections. Several threads may write, each to a track of its
    own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._begun = self._path.exists() and not self._path.is_file()  # a device, for example
        target = self._target = self._path.resolve()
        self._partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        with self._errors():
            self._file = (self._path if self._begun else self._partial).open("wb", buffering=0)
            self._size = 0
            self._lost: OSError | None = None
            self._put(_MAGIC + _VERSION.pack(VERSION))
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._lock = threading.RLock()
        self._tracks: list[Track] = []
        self._last = 0  # whose section came last

    def track(self) -> Track:
        """A new track, for a machine."""
        with self._lock:
            self._tracks.append(Track(self, len(self._tracks)))
            return self._tracks[-1]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordingError(f"recording {str(self._path)!r}: {error.strerror}") from error

    def section(self, track: int, kind: bytes, data: bytes) -> None:
        """Write a section."""
        with self._lock:
            if track != self._last:
                self._write(TRACK, _TRACK.pack(track))
                self._last = track
            self._write(kind, data)

    def _write(self, kind: bytes, data: bytes) -> None:
        packed = self._compressor.compress(data)
        head = _HEAD.pack(kind, len(packed), len(data), zlib.crc32(packed))
        with self._errors():
            self._put(head + struct.pack("<I", zlib.crc32(head)) + packed)

    def _put(self, data: bytes) -> None:
        """Write all of it, or nothing. Raises OSError, for ever after the first time."""
        if self._lost is not None:
            raise self._lost
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            self._lost = error
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += len(data)

    def begun(self) -> None:
        """From now on the file is of use: let it have its name. May be repeated."""
        with self._lock:
            for track in self._tracks:
                track.flush()
            if not self._begun:
                with self._errors():
                    self._partial.replace(self._target)
                self._begun = True

    def abandon(self) -> None:
        """Close the file; remove it, unless it has its name."""
        with self._lock, suppress(OSError):
            self._file.close()
        if not self._begun:
            with suppress(OSError):
                self._partial.unlink()

    def close(self) -> None:
        """Write the rest. May be repeated."""
        with self._lock:
            if not self._file.closed:
                try:
                    for track in self._tracks:
                        track.flush()
                finally:
                    with self._errors():
                        self._file.close()


class Track:
    """What is written of one machine, and of those that follow it after resets: see :meth:`Writer.track`."""

    def __init__(self, writer: Writer, number: int) -> None:
        self.writer = writer
        self._number = number
        self._buffer = bytearray()
        self._names: dict[str, int] = {}
        self._turn = 0
        self._lock = threading.RLock()

    def machine(self, description: dict[str, Any]) -> None:
        """A new life of the machine begins; :meth:`pages` follow, and its events."""
        self.flush()
        text = json.dumps(description, sort_keys=True, default=_to_json)
        self.writer.section(self._number, MACHINE, text.encode())

    def pages(self, address: int, data: bytes) -> None:
        """Contents of memory at the beginning."""
        self.writer.section(self._number, PAGES, struct.pack("<Q", address) + data)

    def event(self, event: Event) -> None:
        """What happens next."""
        with self._lock:
            self._event(event)

    def _event(self, event: Event) -> None:
        out = self._buffer
        if isinstance(event, Operation):
            name, source = self._name(event.name), self._name(event.source)
            out.append(_OPERATION)
            _number(out, event.turn - self._turn)
            self._turn = event.turn
            _number(out, source)
            _number(out, name)
            _arguments(out, event.arguments)
        elif isinstance(event, Value):
            source = self._name(event.source)
            out.append(_VALUE)
            _number(out, source)
            _arguments(out, event.value)
        elif isinstance(event, Checkpoint):
            out.append(_CHECKPOINT)
            _arguments(
                out, (event.turn, event.executed, event.time, event.memory, event.registers, event.devices)
            )
        else:
            out.append(_END)
            _arguments(out, (event.how, event.code, event.turn, event.memory, event.registers, event.devices))
        if len(out) >= _FLUSH_AT:
            self.flush()

    def _name(self, text: str) -> int:
        """The number of a name; one that is new is written first."""
        number = self._names.get(text)
        if number is None:
            number = self._names[text] = len(self._names)
            self._buffer.append(_NAME)
            _arguments(self._buffer, (text,))
        return number

    def flush(self) -> None:
        """Give everything so far to the host."""
        with self._lock:
            if self._buffer:
                events = bytes(self._buffer)
                self._buffer.clear()
                self.writer.section(self._number, EVENTS, events)
                # Each section can be read without those before it.
                self._names.clear()
                self._turn = 0


def _to_json(value: bytes) -> dict[str, str]:
    """Bytes, which JSON does not have."""
    return {_BASE64: base64.b64encode(value).decode()}


def _from_json(value: dict[str, Any]) -> Any:
    """Bytes again. Raises ValueError."""
    return base64.b64decode(value[_BASE64], validate=True) if value.keys() == {_BASE64} else value


def _number(out: bytearray, value: int) -> None:
    """An unsigned number, seven bits in a byte, the lowest first."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _arguments(out: bytearray, values: Sequence[Plain]) -> None:
    _number(out, len(values))
    for value in values:
        if value is None:
            out.append(_NOTHING)
        elif isinstance(value, int):
            out.append(_POSITIVE if value >= 0 else _NEGATIVE)
            _number(out, abs(value))
        else:
            data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
            out.append(_BYTES if isinstance(value, bytes) else _TEXT)
            _number(out, len(data))
            out += data


@dataclass(frozen=True)
class Life:
    """From where the sections of one life are: its machine, its pages, its events."""

    machine: dict[str, Any]
    pages: tuple[int, ...]
    events: tuple[int, ...]


class Reader:
    """Reads the recording at ``path``. Raises RecordingError, and OSError for what cannot be read."""

    tracks: list[list[Life]]
    """The lives of each machine."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.truncated = False
        """Whether the end is missing: who recorded was interrupted."""
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise RecordingError(f"recording {str(path)!r}: {error.strerror}") from error
        try:
            self.tracks = self._index()
        except BaseException:
            self._file.close()
            raise

    def _fail(self, what: str) -> RecordingError:
        return RecordingError(f"recording {str(self.path)!r}: {what}")

    @property
    def names(self) -> list[str]:
        """The machines' names."""
        return [str(lives[0].machine.get("name", number)) for number, lives in enumerate(self.tracks)]

    def _index(self) -> list[list[Life]]:
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(len(_MAGIC) + _VERSION.size)
        if start[: len(_MAGIC)] != _MAGIC or len(start) < len(_MAGIC) + _VERSION.size:
            raise self._fail("is not a recording of a machine")
        (version,) = _VERSION.unpack(start[len(_MAGIC) :])
        if version != VERSION:
            raise self._fail(f"has version {version} of the format; this polyvisor reads version {VERSION}")
        tracks: dict[int, list[tuple[dict[str, Any], dict[bytes, list[int]]]]] = {}
        lives = tracks.setdefault(0, [])
        at = len(start)
        while at < size:
            self._file.seek(at)
            head = self._file.read(_SECTION.size)
            if len(head) < _SECTION.size:
                self.truncated = True
                break
            kind, packed, _, _, checksum = _SECTION.unpack(head)
            known = kind in (MACHINE, PAGES, EVENTS, TRACK) and zlib.crc32(head[: _HEAD.size]) == checksum
            if not known or (not lives and kind not in (MACHINE, TRACK)):
                raise self._fail("is damaged")
            if at + _SECTION.size + packed > size:
                self.truncated = True
                break
            if kind == MACHINE:
                try:
                    found = json.loads(self._read(at), object_hook=_from_json)
                    lives.append((found, {PAGES: [], EVENTS: []}))
                except ValueError:
                    raise self._fail("is damaged") from None
            elif kind == TRACK:
                number = self._read(at)
                if len(number) != _TRACK.size or _TRACK.unpack(number)[0] >= _MOST_TRACKS:
                    raise self._fail("is damaged")
                lives = tracks.setdefault(_TRACK.unpack(number)[0], [])
            else:
                lives[-1][1][kind].append(at)
            at += _SECTION.size + packed
        complete = [tracks[number] for number in sorted(tracks) if tracks[number]]
        if not complete:
            raise self._fail("has no machine in it")
        return [[Life(machine, tuple(at[PAGES]), tuple(at[EVENTS])) for machine, at in track] for track in complete]

    def _read(self, at: int) -> bytes:
        self._file.seek(at)
        _, packed, length, checksum, _ = _SECTION.unpack(self._file.read(_SECTION.size))
        data = self._file.read(packed)
        if zlib.crc32(data) != checksum or length > _LARGEST:
            raise self._fail("is damaged")
        try:
            found = zstandard.ZstdDecompressor().decompress(data, max_output_size=length)
        except zstandard.ZstdError:
            raise self._fail("is damaged") from None
        if len(found) != length:
            raise self._fail("is damaged")
        return found

    def pages(self, life: Life) -> Iterator[tuple[int, bytes]]:
        """Addresses and contents of memory at the beginning; the rest is zeroes."""
        for at in life.pages:
            data = self._read(at)
            if len(data) < 8:
                raise self._fail("is damaged")
            yield struct.unpack_from("<Q", data)[0], data[8:]

    def events(self, life: Life, section: int) -> list[Event]:
        """What happened, in order, as far as it is in one of ``life.events``."""
        names: list[str] = []
        found: list[Event] = []
        turn = 0
        data = _Decoder(self._read(life.events[section]))
        try:
            while not data.at_end:
                kind = data.byte()
                if kind == _NAME:
                    (name,) = data.arguments()
                    names.append(str(name))
                elif kind == _OPERATION:
                    turn += data.number()
                    source, what = names[data.number()], names[data.number()]
                    found.append(Operation(turn, source, what, data.arguments()))
                elif kind == _VALUE:
                    found.append(Value(names[data.number()], data.arguments()))
                elif kind == _CHECKPOINT:
                    found.append(_typed(Checkpoint, data.arguments()))
                elif kind == _END:
                    found.append(_typed(End, data.arguments()))
                else:
                    raise IndexError
        except (IndexError, TypeError, UnicodeDecodeError):
            raise self._fail("is damaged") from None
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _typed(kind: type[Checkpoint | End], values: Sequence[Plain]) -> Checkpoint | End:
    """An event of these values. Raises TypeError if they are others than it has."""
    for hint, value in zip(get_type_hints(kind).values(), values, strict=False):
        if not isinstance(value, hint):
            raise TypeError
    return kind(*values)  # type: ignore[arg-type]


class _Decoder:
    """Takes apart what the writer put together. Raises IndexError beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def bytes(self) -> bytes:
        length = self.number()
        if self._at + length > len(self._data):
            raise IndexError
        self._at += length
        return self._data[self._at - length : self._at]

    def arguments(self) -> tuple[Plain, ...]:
        found: list[Plain] = []
        for _ in range(self.number()):
            kind = self.byte()
            if kind == _NOTHING:
                found.append(None)
            elif kind in (_POSITIVE, _NEGATIVE):
                value = self.number()
                found.append(value if kind == _POSITIVE else -value)
            elif kind == _BYTES:
                found.append(self.bytes())
            elif kind == _TEXT:
                found.append(self.bytes().decode("utf-8", "surrogateescape"))
            else:
                raise IndexError
        return tuple(found)
