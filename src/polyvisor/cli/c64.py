"""``polyvisor run c64``: a Commodore 64 in the terminal, in a window, or for tests without either."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from polyvisor.boards.c64.machine import SAMPLE_RATE, Stop
from polyvisor.boards.c64.model import MODELS, PAL
from polyvisor.engine.bare import TIERS
from polyvisor.vm.c64.debugger import C64Target
from polyvisor.vm.c64.machine import C64
from polyvisor.vm.errors import VMError
from polyvisor.vm.gdb.server import GdbServer
from polyvisor.vm.sound_card import SoundCard, SoundError
from polyvisor.vm.window import WindowError

from .c64_play import HELP, Pace, Play, TerminalPlay, WindowPlay, is_terminal
from .c64_sound import Speaker
from .desk import check_writable, told

_DEBUG_LIMIT = 600.0
# Seconds that one who looks on can go back.
_HISTORY = 20


def fail(message: str, status: int = 2) -> typer.Exit:
    """Say in one line what is wrong; gives what ends the command."""
    print(f"polyvisor: {message}", file=sys.stderr)
    return typer.Exit(status)


def parse_speed(text: str) -> float | None:
    """``max`` (None), or how many times as fast as the machine. Raises ValueError."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.01 <= speed <= 1000:
        raise ValueError(f"--speed {text!r}: give a number from 0.01 to 1000, or max")
    return speed


def run_c64(
    software: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A program (.prg), disk (.d64), tape (.t64) or cartridge (.crt)."),
    ] = None,
    roms: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The ROMs of a real machine; default: our own free ones.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Which television it is for: {', '.join(MODELS)}; default: {PAL.name}.")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=r"Type this first; \n is RETURN, {f1} and {shift home} are keys by name."),
    ] = None,
    joystick: Annotated[
        int | None, typer.Option(min=1, max=2, help="The cursor keys are the joystick in this port, Tab its button.")
    ] = None,
    window: Annotated[bool, typer.Option("--window", help="Show it in a window of the desktop.")] = False,
    headless: Annotated[
        bool, typer.Option("--headless", help="Show nothing, and run as fast as it goes.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="End after so many of the machine's seconds.")
    ] = None,
    speed: Annotated[
        str | None, typer.Option(metavar="N|max", help="Times as fast as the machine; default: 1, or max if headless.")
    ] = None,
    screenshot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="When it has ended, save the picture.")
    ] = None,
    sound: Annotated[Path | None, typer.Option(metavar="FILE.wav", help="Write what is heard to this file.")] = None,
    speaker: Annotated[
        bool | None,
        typer.Option(
            "--speaker/--no-speaker", help="Play what is heard on the sound card; default: if there is a window."
        ),
    ] = None,
    debug_register: Annotated[
        bool,
        typer.Option("--debug-register", help="A write to $D7FF ends it: the exit status is 0 for $00, else 1."),
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(min=0, help=f"With --debug-register: so many of its seconds may pass; default: {_DEBUG_LIMIT:g}."),
    ] = None,
    restore: Annotated[
        Path | None, typer.Option(metavar="SNAPSHOT", help="Go on from this file, which --save or C64.save wrote.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="SNAPSHOT", help="When it has ended, keep the machine in this file.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Change nothing on the disk.")] = False,
    no_autostart: Annotated[bool, typer.Option("--no-autostart", help="Mount FILE, but do not start it.")] = False,
    gdb: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Wait for a debugger before the program's first instruction."
        ),
    ] = None,
    tier: Annotated[str, typer.Option(help=f"Engine: {', '.join(TIERS)}.")] = "interpreter",
) -> None:
    """A Commodore 64. In the terminal, Ctrl-A x quits, and Ctrl-A h shows the other keys."""
    if model is not None and model not in MODELS:
        raise fail(f"--model {model!r}: there are {', '.join(MODELS)}")
    if tier not in TIERS:
        raise fail(f"--tier {tier!r}: there are {', '.join(TIERS)}")
    if limit is not None and not debug_register:
        raise fail("--limit goes with --debug-register; --seconds ends any run")
    if window and headless:
        raise fail("give --window or --headless, not both")
    if keys and gdb is not None:
        raise fail("--keys are typed before a debugger comes, and the program would run: give it or --gdb, not both")
    if restore is not None and (software or roms or model or read_only or no_autostart or debug_register):
        raise fail("a snapshot has its own software, ROMs, model and switches: give --restore without them")
    seen = window or (not headless and is_terminal())
    if not seen and seconds is None and not debug_register and gdb is None:
        raise fail("there is no terminal, so it would run for ever: give --seconds, --debug-register, or --window")
    try:
        factor = parse_speed(speed if speed is not None else "1" if seen else "max")
        if speaker and factor != 1:
            raise ValueError("--speaker goes with the machine's own speed, which is --speed 1")
        heard = speaker if speaker is not None else window and factor == 1
        for path, option in ((screenshot, "--screenshot"), (sound, "--sound")):
            if path is not None:
                check_writable(path, option)
        most = seconds
        if debug_register:
            allowed = limit if limit is not None else _DEBUG_LIMIT
            most = allowed if most is None else min(most, allowed)
        history = _HISTORY if seen or gdb is not None else 0
        if restore is not None:
            made = C64.restore(restore, history=history)
        else:
            made = C64(
                software, roms=roms, autostart=not no_autostart, read_only=read_only, debug_register=debug_register,
                history=history, tier=tier, model=model or PAL.name, progress=_progress, halted=gdb is not None,
            )  # fmt: skip
        with made as c64, _debugger(c64, gdb) as debugged:
            _progress("")
            if sound is not None:
                with told(sound, "--sound"):
                    c64.record(sound)
            pace = Pace(factor, c64.machine.model.clock)
            play = Play(c64, pace, most, joystick, _speaker(pace) if heard else None, *debugged)
            stop = _play(play, keys, window, seen)
            if screenshot is not None:
                with told(screenshot, "--screenshot"):
                    c64.picture().save(screenshot)
            if save is not None:
                c64.save(save)
            status = _status(c64, stop, debug_register)
            if c64.machine.drive.failure is not None:
                print(f"polyvisor: {c64.machine.drive.failure}", file=sys.stderr)
                status = status or 1
    except (OSError, ValueError, VMError, WindowError) as error:
        raise fail(_one_line(error)) from None
    raise typer.Exit(status)


@contextmanager
def _debugger(c64: C64, port: int | None) -> Iterator[tuple[C64Target | None, str]]:
    """What a debugger has of the machine, and where it can come. Raises OSError with a line for the user."""
    if port is None:
        yield None, ""
        return
    target = C64Target(c64)
    try:
        server = GdbServer(target, port)
    except OSError as error:
        target.close()
        raise OSError(f"--gdb {port}: {error.strerror}") from None
    try:
        notice = f"waiting for gdb: target remote :{server.port}"
        print(notice, file=sys.stderr, flush=True)
        server.start()
        yield target, notice
    finally:
        target.close()
        server.close()


def _speaker(pace: Pace) -> Speaker | None:
    """The host's sound card; without one the machine is silent, and the user is told."""
    try:
        return Speaker(SoundCard(SAMPLE_RATE), pace)
    except SoundError as error:
        print(f"polyvisor: {error}; the machine is silent", file=sys.stderr)
        return None


def _play(play: Play, keys: str | None, window: bool, seen: bool) -> Stop:
    """Type what is to be typed, and run; gives why it ended."""
    c64, speaker = play.c64, play.speaker
    try:
        if keys and c64.machine.unseen is None:
            c64.type(keys.replace("\\n", "\n"))
            play.begin_anew()
        if speaker is not None:
            c64.listen(speaker.hear, SAMPLE_RATE)
        if window:
            return WindowPlay(play).run()
        return TerminalPlay(play).run() if seen else play.headless()
    except KeyboardInterrupt:
        return Stop("interrupted")
    finally:
        if speaker is not None:
            c64.listen(None)
            speaker.close()


def _status(c64: C64, stop: Stop, debug: bool) -> int:
    """The exit status, and a line for the user where something is wrong."""
    if stop.reason == "debug":
        return 0 if stop.value == 0 else 1
    if stop.reason == "interrupted":
        return 130
    if stop.reason == "jam":
        print(f"polyvisor: the CPU is jammed at ${int(c64.cpu.pc):04x}", file=sys.stderr)
        return 1
    if debug:
        spent = c64.seconds
        print(f"polyvisor: nothing was written to $D7FF within {spent:.1f} seconds", file=sys.stderr)
        return 1
    return 0


def _progress(text: str) -> None:
    """Show what takes time: a first start compiles the machine."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    """The message, and what the screen says, in one line."""
    return " | ".join(line.strip() for line in str(error).splitlines() if line.strip())


run_c64.__doc__ = f"{run_c64.__doc__}\n\n\b{HELP}"
