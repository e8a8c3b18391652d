"""Regions in the code cache by what they begin with: several for the same code, as the rest of it may differ."""

from __future__ import annotations

import hashlib
import pickle

from ..codecache import CodeCache
from .region import Region

_KEY_BYTES = 64
_MAX_VARIANTS = 6


def _key(content: bytes, entry: int) -> str:
    code = content[entry : entry + _KEY_BYTES]
    return "region " + hashlib.sha256(entry.to_bytes(4, "little") + code).hexdigest()


def kept_regions(cache: CodeCache, content: bytes, entry: int) -> list[Region]:
    """Those that may fit the instruction at ``entry`` of a page, in the order in which they are to be tried."""
    found = cache.get(_key(content, entry))
    return pickle.loads(found) if found is not None else []


def keep_region(cache: CodeCache, content: bytes, region: Region) -> None:
    """Keep a region that begins in the page ``content``, good ones before those that were made quickly."""
    entry = region.request.entry
    good = [v for v in kept_regions(cache, content, entry) if not v.request.quick]
    if not region.request.quick:
        good = [v for v in good if v.footprint != region.footprint or v.assumed != region.assumed]
    good = good[: _MAX_VARIANTS - 1]
    cache.put(_key(content, entry), pickle.dumps([*good, region] if region.request.quick else [region, *good]))
