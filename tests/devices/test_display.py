"""What a person sees: pictures, PNG files, changes."""

from __future__ import annotations

import struct
import subprocess
import threading
import zlib
from pathlib import Path
from shutil import which

import pytest

from polyvisor.devices import png
from polyvisor.devices.display import Cursor, Display, Rect
from polyvisor.devices.edid import MAX_SIZE, edid


def decode(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and RGB of a PNG file, by the specification."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (1 + 3 * width)
    rows = [bytes(3 * width)]
    for start in range(0, len(raw), 1 + 3 * width):
        assert raw[start] in (0, 2)
        row = raw[start + 1 : start + 1 + 3 * width]
        rows.append(bytes((a + b) & 255 for a, b in zip(row, rows[-1], strict=True)) if raw[start] == 2 else row)
    return width, height, b"".join(rows[1:])


def bgrx(*colours: int) -> memoryview:
    return memoryview(b"".join(struct.pack("<I", colour) for colour in colours))


def test_png_files_hold_the_pixels() -> None:
    rgb = bytes(range(18)) + bytes(range(18))[9:] + bytes(9)
    assert decode(png.encode(3, 4, rgb)) == (3, 4, rgb)
    assert decode(png.encode(1, 2, b"\0\0\0\0\0\0")) == (1, 2, bytes(6))


@pytest.mark.parametrize(("width", "height", "size"), [(0, 1, 0), (1, 0, 0), (2, 2, 11), (-1, -1, 3)])
def test_png_refuses_what_is_no_image(width: int, height: int, size: int) -> None:
    with pytest.raises(ValueError, match="no image"):
        png.encode(width, height, bytes(size))


def test_drawing() -> None:
    display = Display(4, 3)
    assert display.size == (4, 3) and not display.active and display.frame().pixels == bytes(48)
    display.set_mode(3, 2)
    assert display.size == (3, 2) and display.active
    display.draw(Rect(0, 0, 3, 2), bgrx(1, 2, 3, 4, 5, 0xAABBCC), 12)
    # Of a larger picture, rows are further apart.
    display.draw(Rect(1, 0, 2, 2), bgrx(7, 8, 99, 99, 99, 9, 0xFF112233), 20)
    frame = display.frame()
    assert frame.pixels == bytes(bgrx(1, 7, 8, 4, 9, 0xFF112233))
    assert frame.pixel(2, 1) == (0x11, 0x22, 0x33)
    assert decode(display.screenshot()) == (3, 2, bytes.fromhex("000001 000007 000008 000004 000009 112233"))
    for place in ((3, 0), (0, 2), (-1, 0)):
        with pytest.raises(IndexError):
            frame.pixel(*place)
    display.set_mode(3, 2)
    assert display.frame() == frame
    display.switch_off()
    assert display.size == (4, 3) and display.frame().pixels == bytes(48)


def test_the_pointer_is_drawn_over_the_picture() -> None:
    display = Display(3, 2)
    display.set_mode(3, 2)
    display.draw(Rect(0, 0, 3, 2), bgrx(*[0x404040] * 6), 12)
    cursor = Cursor(2, 2, bytes(bgrx(0xFF0000FF, 0x00000000, 0x80202020, 0x80FFFFFF)), 1, 1)
    display.set_cursor(cursor, 1, 0)
    assert display.cursor == (cursor, 1, 0)
    assert display.frame().pixel(1, 0) == (0x40, 0x40, 0x40)
    frame = display.frame(cursor=True)
    assert [frame.pixel(x, 0) for x in range(3)] == [(0x40,) * 3, (0, 0, 0xFF), (0x40,) * 3]
    half = 0x20 + 0x40 * 127 // 255
    assert [frame.pixel(x, 1) for x in range(3)] == [(0x40,) * 3, (half,) * 3, (0xFF,) * 3]
    display.set_cursor(cursor, -1, -1)
    assert display.frame(cursor=True).pixel(0, 0) == (0xFF,) * 3
    display.set_cursor(cursor, 1 << 31, 5)
    assert display.frame(cursor=True) == display.frame()
    display.switch_off()
    assert display.cursor is None


def test_changes_are_told() -> None:
    display = Display(8, 8)
    seen: list[Rect] = []
    stop = display.listen(seen.append)
    display.set_mode(8, 8)
    display.draw(Rect(2, 3, 1, 1), bgrx(5), 4)
    display.set_cursor(Cursor(4, 4, bytes(64), 0, 0), 6, 6)
    display.set_cursor(None)
    assert seen == [Rect(0, 0, 8, 8), Rect(2, 3, 1, 1), Rect(6, 6, 2, 2), Rect(6, 6, 2, 2)]
    stop()
    stop()
    display.switch_off()
    assert len(seen) == 4


def test_waiting_for_a_change() -> None:
    display = Display(8, 8)
    before = display.changes
    assert not display.wait_for_change(0)
    display.set_mode(8, 8)
    assert display.wait_for_change(0, since=before) and not display.wait_for_change(0)
    thread = threading.Thread(target=display.switch_off)
    seen = display.changes
    thread.start()
    assert display.wait_for_change(60, since=seen)
    thread.join()


def test_resizing_asks_the_device() -> None:
    display = Display(8, 8)
    asked = []
    unplug = display.plug(lambda: asked.append(display.preferred_size))
    with pytest.raises(ValueError, match="another device"):
        display.plug(print)
    display.resize(8, 8)
    display.resize(9, 7)
    assert asked == [(9, 7)] and display.size == (9, 7)
    display.set_mode(5, 5)
    display.resize(10, 10)
    assert asked == [(9, 7), (10, 10)] and display.size == (5, 5)
    unplug()
    display.resize(11, 11)
    assert len(asked) == 2
    display.plug(print)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (4096, 5), (5, 4096), (-1, 5)])
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="1 to 4095"):
        Display(*size)
    with pytest.raises(ValueError, match="1 to 4095"):
        Display().resize(*size)


@pytest.mark.parametrize("size", [(1024, 768), (1, 1), (2560, 1440), (MAX_SIZE, MAX_SIZE)])
def test_edid_says_the_size(size: tuple[int, int], tmp_path: Path) -> None:
    block = edid(*size, serial=3)
    assert len(block) == 128 and sum(block) % 256 == 0
    timing = block[54:72]
    assert (timing[2] | timing[4] >> 4 << 8, timing[5] | timing[7] >> 4 << 8) == size
    if which("edid-decode") is None:
        pytest.skip("edid-decode is not installed")
    (tmp_path / "edid").write_bytes(block)
    done = subprocess.run(["edid-decode", "--check", str(tmp_path / "edid")], capture_output=True, text=True)
    assert f"{size[0]}x{size[1]}" in done.stdout and "polyvisor" in done.stdout, done.stdout
    if size == (1024, 768):
        assert "Failures" not in done.stdout and "FAIL" not in done.stdout, done.stdout


def test_edid_refuses_what_it_cannot_say() -> None:
    with pytest.raises(ValueError, match="4095"):
        edid(4096, 1)
    with pytest.raises(ValueError, match="13 characters"):
        edid(64, 64, name="x" * 14)
