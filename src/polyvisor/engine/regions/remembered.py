"""The regions that pages had in earlier runs, installed as soon as their code is executed again.

Samples find hot places one by one, the less often executed the later; a program with a flat profile is over before.  So
the cache also keeps, by the content of a page of code, the regions that begin there.  When a page is decoded, they are
looked up; when the records where they begin are decoded too, they are installed, whether a sample was seen or not.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from polyvisor.dataclass import dataclass

from ..codecache import CodeCache
from .region import Region

# Regions kept for a page; pages looked up, pages kept, and regions tried at one look: each takes some tens of
# microseconds, of a thread that shares the interpreter's lock with the devices.
_MAX_REGIONS = 96
_LOOKED_UP, _SAVED, _TRIED = 32, 4, 48
# A region is tried so often: its other pages may not be decoded at first.
_MAX_TRIES = 40


@dataclass
class Wish:
    """A region that a page had before, not installed yet."""

    region: Region
    tries: int = 0


def _identity(region: Region) -> tuple[object, ...]:
    """Of two regions with the same identity one is enough."""
    return region.request.entry, tuple(sorted(region.assumed.items()))


class RememberedRegions:
    """Regions by their pages: ``content(slot)`` gives the bytes of the page that has its records there."""

    def __init__(self, cache: CodeCache, content: Callable[[int], bytes]) -> None:
        self._cache = cache
        self._content = content
        self._new: deque[int] = deque()
        self._wishes: dict[int, list[Wish]] = {}
        self._known: dict[str, dict[tuple[object, ...], Region]] = {}  # by page's name: what the cache has
        self._unsaved: dict[str, None] = {}
        self._names: dict[int, str] = {}  # of pages by slot, as they were when they were decoded

    @staticmethod
    def _name(content: bytes) -> str:
        return "page " + hashlib.sha256(content).hexdigest()

    # What was

    def decoded(self, slots: Iterable[int]) -> None:
        """Pages were decoded: look for their regions at the next looks."""
        self._new.extend(slots)

    def forget(self) -> None:
        """No page is decoded any more."""
        self._new.clear()
        self._wishes.clear()
        self._names.clear()

    @property
    def waiting(self) -> bool:
        """Whether there is any region to be tried."""
        return bool(self._wishes)

    def look_up(self) -> None:
        """Look for the regions of some of the pages decoded since."""
        for _ in range(min(_LOOKED_UP, len(self._new))):
            slot = self._new.popleft()
            name = self._names[slot] = self._name(self._content(slot))
            found = self._recall(name)
            if found:
                self._wishes[slot] = [Wish(region) for region in found.values()]

    def _recall(self, name: str) -> dict[tuple[object, ...], Region]:
        if name not in self._known:
            content = self._cache.get(name)
            regions = pickle.loads(content) if content is not None else ()
            self._known[name] = {_identity(region): region for region in regions}
        return self._known[name]

    def try_some(self, mapped: Mapping[int, int], install: Callable[[int, int, Region], bool | None]) -> None:
        """Try regions of pages that are executed now; ``mapped`` are their slots and virtual addresses.

        ``install(slot, page, region)`` gives whether it was; None: its entry is not decoded, which is no attempt.
        """
        left = _TRIED
        for slot in [s for s in self._wishes if s in mapped]:
            remaining = []
            for wish in self._wishes[slot]:
                done = install(slot, mapped[slot], wish.region) if left > 0 else None
                if done is not None:
                    left -= 1
                    wish.tries += 1
                if not done and wish.tries < _MAX_TRIES:
                    remaining.append(wish)
            if remaining:
                self._wishes[slot] = remaining
            else:
                del self._wishes[slot]
            if left <= 0:
                break

    # What will be

    def note(self, slot: int, region: Region) -> None:
        """A region was installed that begins in the page with records at ``slot``."""
        name = self._names.get(slot)
        if name is None:
            return  # not looked up yet
        known = self._recall(name)
        before = known.get(_identity(region))
        if before is None or (before.request.quick and not region.request.quick) or (
            before.footprint != region.footprint and not region.request.quick
        ):
            known[_identity(region)] = region
            self._unsaved[name] = None

    def save(self, everything: bool = False) -> None:
        """Keep what was noted: that of some pages, or of all."""
        count = len(self._unsaved) if everything else _SAVED
        for name in list(self._unsaved)[:count]:
            del self._unsaved[name]
            regions = list(self._known[name].values())[-_MAX_REGIONS:]
            self._cache.put(name, pickle.dumps(regions))
