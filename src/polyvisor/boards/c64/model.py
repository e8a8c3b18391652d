"""The Commodore 64 for either television standard: what differs between the two.

Both clocks are the colour carrier's crystal divided: 17.734475 MHz by 18 for PAL, 14.31818 MHz by 14 for NTSC
(Commodore 64 Programmer's Reference Guide, schematic; C. Bauer's article on the VIC-II, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyvisor.adl import Architecture
from polyvisor.devices.c64 import vic_ii

from .architecture import c64, c64_ntsc


@dataclass(frozen=True)
class Model:
    """One of them."""

    name: str
    architecture: Architecture
    vic: vic_ii.Model
    clock: int
    """Clock cycles of a second."""
    mains: int
    """Cycles of the mains in a second, which the CIAs' time of day counts."""

    @property
    def frame(self) -> int:
        """Clock cycles of a frame."""
        return self.vic.lines * self.vic.cycles

    def set_rates(self, state: Any) -> None:
        """Tell the chips how fast their clocks are, after a reset."""
        state.sid_clock_rate = state.tod_clock_rate = self.clock
        state.tod_mains_rate = self.mains


PAL = Model("pal", c64, vic_ii.PAL, 985_248, 50)
NTSC = Model("ntsc", c64_ntsc, vic_ii.NTSC, 1_022_727, 60)
MODELS = {model.name: model for model in (PAL, NTSC)}


def model_named(name: str) -> Model:
    """The model of a name. Raises ValueError."""
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
