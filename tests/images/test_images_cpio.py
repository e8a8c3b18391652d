from __future__ import annotations

import io
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyvisor.images import cpio


def pack(*entries: cpio.Entry) -> bytes:
    stream = io.BytesIO()
    assert cpio.write(stream, entries) == len(stream.getvalue())
    return stream.getvalue()


ENTRIES = (
    cpio.file("init", b"#!/bin/sh\n", 0o755),
    cpio.symlink("bin/sh", "busybox"),
    cpio.character_device("dev/console", 5, 1, 0o600),
    cpio.file("usr/lib/odd", b"123"),
)


def test_round_trip_in_order_with_parents() -> None:
    entries = {entry.name: entry for entry in cpio.read(pack(*ENTRIES))}
    assert list(entries) == ["bin", "bin/sh", "dev", "dev/console", "init", "usr", "usr/lib", "usr/lib/odd"]
    assert all(entries[entry.name] == entry for entry in ENTRIES)
    assert entries["usr"] == cpio.directory("usr")


def test_same_bytes_whatever_the_order() -> None:
    assert pack(*ENTRIES) == pack(*reversed(ENTRIES))


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=9)))
def test_any_file(files: dict[str, bytes]) -> None:
    archive = pack(*(cpio.file(name, data) for name, data in files.items()))
    assert {entry.name: entry.data for entry in cpio.read(archive)} == files
    assert len(archive) % 512 == 0


def test_two_of_one_name() -> None:
    with pytest.raises(ValueError, match="two entries"):
        pack(cpio.file("a", b""), cpio.file("a", b""))


@pytest.mark.parametrize("size", [0, 50, 200])
def test_cut_short(size: int) -> None:
    with pytest.raises(ValueError):
        list(cpio.read(pack(cpio.file("name", b"x" * 300))[:size]))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio program")
def test_the_cpio_program_agrees() -> None:
    listing = subprocess.run(["cpio", "-tv"], input=pack(*ENTRIES), capture_output=True, check=True).stdout.decode()
    assert "bin/sh -> busybox" in listing and "5,   1" in listing
