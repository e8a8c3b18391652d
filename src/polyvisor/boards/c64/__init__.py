"""The Commodore 64."""

from .architecture import C64State, c64, c64_ntsc

__all__ = ["C64State", "c64", "c64_ntsc"]
