"""What a machine adds to a guest's own initramfs: an archive that the kernel unpacks behind it, over it."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path

from polyvisor.engine.codecache import CodeCache
from polyvisor.engine.objectcode import cache_key
from polyvisor.images import cpio, guest_files

from .program import Platform

AGENT_PATH = "/polyvisor/agent"


def _agent(platform: Platform) -> bytes:
    """The agent's program, compiled when it is not in the cache of compiled code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    units = CodeCache(cache_key(platform.architecture))
    name = f"agent {platform.triple} {digest.hexdigest()}"
    program = units.get(name)
    if program is None:
        from .agent import agent

        program = agent(platform)
        units.put(name, program)
    return program


@cache
def _archive(platform: Platform | None, scripts: bool) -> bytes:
    stream = io.BytesIO()
    added = list(guest_files.scripts()) if scripts else []
    if platform is not None:
        added.append(cpio.file(AGENT_PATH.lstrip("/"), _agent(platform), 0o755))
    cpio.write(stream, added)
    return stream.getvalue()


def extend(initrd: bytes, *, agent_for: Platform | None, scripts: bool) -> bytes:
    """``initrd`` (which may be compressed, or empty) with our additions behind it.

    The agent is put at :data:`AGENT_PATH`; ``scripts``: the start-up scripts of our images are replaced by this
    version's, as the image may have been built by an older one.
    """
    if agent_for is None and not scripts:
        return initrd
    return initrd + bytes(-len(initrd) % 512) + _archive(agent_for, scripts)
