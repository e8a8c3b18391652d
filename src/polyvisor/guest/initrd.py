"""The agent as an archive that a kernel unpacks beside a guest's own initramfs."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path

from polyvisor.engine.codecache import CodeCache
from polyvisor.engine.objectcode import cache_key
from polyvisor.images import cpio

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
def agent_archive(platform: Platform) -> bytes:
    """An uncompressed cpio archive with the agent at :data:`AGENT_PATH`, padded so that another may follow it."""
    stream = io.BytesIO()
    cpio.write(stream, [cpio.file(AGENT_PATH.lstrip("/"), _agent(platform), 0o755)])
    data = stream.getvalue()
    return data + bytes(-len(data) % 512)
