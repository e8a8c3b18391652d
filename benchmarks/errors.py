"""The one error of the suite."""

from __future__ import annotations


class SuiteError(Exception):
    """The suite, or one run, cannot go on; ``str(error)`` says in one line why, and what to do where that is known."""
