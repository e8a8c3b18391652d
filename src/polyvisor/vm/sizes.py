"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
LEAST_MEMORY = 16 << 20
MOST_MEMORY = 1 << 40


def parse_size(text: str | int, unit: int = 1 << 20) -> int:
    """``512M``, ``2G``, ``65536K``, or a number of ``unit`` bytes, in bytes; an int is bytes. Raises ValueError."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d{1,18})\s*([kmgtp]?)(i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size: give one such as 512M or 2G")
    return int(match[1]) * _UNITS.get(match[2], unit)


def parse_memory(text: str | int) -> int:
    """The size of a machine's RAM, in whole pages. Raises ValueError for what no board has."""
    size = parse_size(text)
    if size < LEAST_MEMORY:
        raise ValueError(f"{text!r}: the board needs 16M at least")
    if size > MOST_MEMORY:
        raise ValueError(f"{text!r}: the board takes 1024G at most")
    return -(-size // 4096) * 4096
