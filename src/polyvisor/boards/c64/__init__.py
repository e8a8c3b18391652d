"""The Commodore 64."""

from .architecture import C64State, c64

__all__ = ["C64State", "c64"]
