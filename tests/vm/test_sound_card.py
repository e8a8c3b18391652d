"""The sound card, by way of SDL's drivers that need none."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path

import pytest

pytest.importorskip("pygame", exc_type=ImportError)

from polyvisor.vm.sound_card import SoundCard, SoundError


def test_all_that_is_queued_is_played_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_AUDIODRIVER", "disk")
    monkeypatch.setenv("SDL_DISKAUDIOFILE", str(tmp_path / "played"))
    samples = array("h", range(1, 5001))
    with SoundCard(44_100) as card:
        card.play(samples.tobytes())
        assert 4000 < card.waiting <= 5000
    assert card.waiting == 0
    card.play(b"\0\0")
    card.close()
    played = array("h", (tmp_path / "played").read_bytes())
    begin = played.index(1)
    assert played[begin : begin + 5000] == samples and not any(played[:begin]) and not any(played[begin + 5000 :])
    assert capfd.readouterr().err == ""


def test_a_card_takes_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    for _ in range(2):
        with SoundCard(22_050) as card:
            assert card.rate == 22_050 and card.waiting == 0
            card.play(bytes(2 * 2205))
            while card.waiting:
                pass


def test_without_a_card_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SDL_AUDIODRIVER", "alsa")
    monkeypatch.setenv("ALSA_CONFIG_PATH", "/nonexistent")
    with pytest.raises(SoundError, match=r"^no sound: [^\n]*ALSA[^\n]*$"):
        SoundCard(44_100)
    monkeypatch.setenv("SDL_AUDIODRIVER", "nothing")
    with pytest.raises(SoundError, match=r"^no sound: Audio target 'nothing' not available$"):
        SoundCard(44_100)
    assert capfd.readouterr().err == ""


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SoundError, match=r"pip install 'polyvisor\[window\]'"):
        SoundCard(44_100)
