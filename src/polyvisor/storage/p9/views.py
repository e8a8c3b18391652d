"""Messages spread over several pieces of memory, in order."""

from __future__ import annotations


def front(views: list[memoryview], count: int) -> bytes:
    """The first ``count`` bytes, copied once: the client may change them meanwhile."""
    return b"".join(bytes(view) for view in part(views, 0, count))


def part(views: list[memoryview], start: int, count: int) -> list[memoryview]:
    """The parts of ``views`` with the bytes from ``start`` on, ``count`` of them."""
    found = []
    for view in views:
        if count <= 0:
            break
        if start < len(view):
            piece = view[start : start + count]
            found.append(piece)
            count -= len(piece)
            start = 0
        else:
            start -= len(view)
    return found


def put(views: list[memoryview], data: bytes) -> None:
    """Write ``data``, for which there is room, to the start of ``views``."""
    for view in views:
        piece = data[: len(view)]
        if not piece:
            return
        view[: len(piece)] = piece
        data = data[len(piece) :]
