"""The events of a recording, given to the machine again."""

from __future__ import annotations

from collections.abc import Sequence

from polyvisor.engine.outside import Operation, Plain

from .format import End, Event, Life, Reader, RecordingError, Value

Place = tuple[int, int]
"""A section of events, and one of them."""


class DivergenceError(RecordingError):
    """A replay does not do what was recorded; the message says where that shows first."""


class OverError(Exception):
    """The recording ends in the midst of a turn."""


class LogScript:
    """The events of ``life``, in order. Raises RecordingError where they are damaged."""

    def __init__(self, reader: Reader, life: Life) -> None:
        self._reader = reader
        self._life = life
        self._section = -1
        self._events: Sequence[Event] = ()
        self._at = 0

    @property
    def place(self) -> Place:
        """Where it is; can be set."""
        return self._section, self._at

    @place.setter
    def place(self, place: Place) -> None:
        section, self._at = place
        if section != self._section:
            self._section = section
            self._events = self._reader.events(self._life, section) if section >= 0 else ()

    def peek(self) -> Event | None:
        """The next event; None at the end."""
        while self._at >= len(self._events):
            if self._section + 1 >= len(self._life.events):
                return None
            self.place = (self._section + 1, 0)
        return self._events[self._at]

    def take(self) -> None:
        """The next one is dealt with."""
        self._at += 1

    def operations(self, turn: int) -> Sequence[Operation]:
        """See :class:`polyvisor.engine.outside.Script`. Raises DivergenceError."""
        found: list[Operation] = []
        while isinstance(event := self.peek(), Operation) and event.turn <= turn:
            if event.turn < turn:
                raise DivergenceError(
                    f"the replay differs: {event.source!r} got {event.name!r} in turn {event.turn}, and now is {turn}"
                )
            found.append(event)
            self.take()
        return found

    def value(self, source: str) -> tuple[Plain, ...]:
        """See :class:`polyvisor.engine.outside.Script`. Raises DivergenceError."""
        event = self.peek()
        if event is None or (isinstance(event, End) and event.how == "cut"):
            raise OverError
        if not isinstance(event, Value) or event.source != source:
            raise DivergenceError(f"the replay differs: {source!r} is asked for something that was not recorded")
        self.take()
        return event.value
