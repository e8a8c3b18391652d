"""The error that a user of a share sees."""

from __future__ import annotations


class ShareError(OSError):
    """A directory cannot be shared as asked; the message is one line for the user."""
