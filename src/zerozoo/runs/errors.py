"""Errors that are meant for the user: one clear sentence, exit code 2, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do."""


class DivergedError(UserError):
    """Training produced a number that is not finite; the newest valid checkpoint is kept."""


class InUseError(UserError):
    """Another process holds the run directory; it may be about to end."""
