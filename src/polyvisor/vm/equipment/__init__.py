"""What is plugged into a machine: each piece says in words or in Python what it is, and makes its devices.

A guest that restarts gets new devices; what the pieces keep (a disk's overlay, a card's address) outlives that.
"""

from __future__ import annotations

from .disk import Disk
from .nic import Nic
from .screen import Screen
from .share import Share

__all__ = ["Disk", "Nic", "Screen", "Share"]
