"""The host's sound card (SDL's queue of samples, from the SDL that pygame-ce brings along).

pygame's own mixer plays whole sounds, one after the other, and does not say how much is left of one. SDL's queue takes
samples as they come and says how many wait, and no Python runs on the thread that feeds the card. So a few of SDL's
functions are called directly. Source: SDL 2's header SDL_audio.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_uint8, c_uint16, c_uint32, c_void_p

from .sdl import load

SAMPLE = 2
"""Bytes of a sample: 16 bits, signed, in the host's order, for one channel."""
_INIT_AUDIO = 0x10
_SIGNED_16 = 0x8010 if sys.byteorder == "little" else 0x9010
# So many samples the card takes at once: 12 ms at 44,100 a second.
_AT_ONCE = 512
# What waits is played before the card is closed, but no longer than so many seconds.
_LAST = 0.2


class SoundError(Exception):
    """There can be no sound; the text is a line for the user."""


class _Spec(ctypes.Structure):
    """SDL_AudioSpec. Without a callback, samples come from the queue."""

    _fields_ = (
        ("frequency", c_int), ("format", c_uint16), ("channels", c_uint8), ("silence", c_uint8), ("samples", c_uint16),
        ("padding", c_uint16), ("size", c_uint32), ("callback", c_void_p), ("userdata", c_void_p),
    )  # fmt: skip


class SoundCard:
    """A queue of samples that the host's default device plays, ``rate`` of them a second."""

    def __init__(self, rate: int) -> None:
        """Open the device. Raises SoundError if the library is missing, or there is none."""
        self.rate = rate
        self._sdl = sdl = _library()
        self._device = 0
        with _silent_stderr():
            if sdl.SDL_InitSubSystem(_INIT_AUDIO) != 0:
                raise SoundError(f"no sound: {_error(sdl)}")
            wanted = _Spec(frequency=rate, format=_SIGNED_16, channels=1, samples=_AT_ONCE)
            self._device = int(sdl.SDL_OpenAudioDevice(None, 0, byref(wanted), None, 0))
            if self._device == 0:
                message = _error(sdl)
                sdl.SDL_QuitSubSystem(_INIT_AUDIO)
                raise SoundError(f"no sound: {message}")
        sdl.SDL_PauseAudioDevice(self._device, 0)

    @property
    def waiting(self) -> int:
        """Samples that the card has not taken yet."""
        if self._device == 0:
            return 0
        return int(self._sdl.SDL_GetQueuedAudioSize(self._device)) // SAMPLE

    def play(self, samples: bytes) -> None:
        """Put samples at the end of the queue. While it is empty, there is silence."""
        if self._device != 0:
            self._sdl.SDL_QueueAudio(self._device, samples, len(samples))

    def close(self) -> None:
        """Play what waits, and give the device back."""
        if self._device == 0:
            return
        end = time.monotonic() + _LAST
        while self.waiting and time.monotonic() < end:
            time.sleep(0.005)
        self._sdl.SDL_CloseAudioDevice(self._device)
        self._sdl.SDL_QuitSubSystem(_INIT_AUDIO)
        self._device = 0

    def __enter__(self) -> SoundCard:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def _library() -> ctypes.CDLL:
    """SDL's functions. Raises SoundError."""
    try:
        # What a library is linked with is found by way of it.
        sdl = ctypes.CDLL(load().base.__file__)
        sdl.SDL_InitSubSystem.argtypes = sdl.SDL_QuitSubSystem.argtypes = [c_uint32]
        sdl.SDL_GetError.restype = c_char_p
        sdl.SDL_OpenAudioDevice.argtypes = [c_char_p, c_int, POINTER(_Spec), c_void_p, c_int]
        sdl.SDL_OpenAudioDevice.restype = c_uint32
        sdl.SDL_PauseAudioDevice.argtypes = [c_uint32, c_int]
        sdl.SDL_QueueAudio.argtypes = [c_uint32, c_char_p, c_uint32]
        sdl.SDL_GetQueuedAudioSize.argtypes = [c_uint32]
        sdl.SDL_GetQueuedAudioSize.restype = c_uint32
        sdl.SDL_CloseAudioDevice.argtypes = [c_uint32]
    except ImportError as error:
        raise SoundError(f"no sound: {error}") from None
    except (AttributeError, OSError):
        raise SoundError("no sound: the SDL of this pygame is no SDL 2") from None
    return sdl


def _error(sdl: ctypes.CDLL) -> str:
    found = sdl.SDL_GetError()
    return (found or b"SDL does not say why").decode(errors="replace").replace("\n", " ")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """What libraries below SDL print about missing devices is lost: SDL says it too, in one line."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
