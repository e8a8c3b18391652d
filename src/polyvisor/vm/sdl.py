"""SDL, by way of pygame-ce: an optional library (``pip install 'polyvisor[window]'``), imported when it is needed."""

from __future__ import annotations

import os
from types import ModuleType


def load() -> ModuleType:
    """The library, set up for a machine's window and sound. Raises ImportError; the text is a line for the user."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    # Signals are the terminal's; a grab is for keys such as Alt-Tab above all.
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
    os.environ.setdefault("SDL_GRAB_KEYBOARD", "1")
    os.environ.setdefault("SDL_VIDEO_ALLOW_SCREENSAVER", "1")
    try:
        import pygame
    except ImportError as error:
        raise ImportError(f"pygame-ce is missing: pip install 'polyvisor[window]' ({error})") from None
    return pygame
