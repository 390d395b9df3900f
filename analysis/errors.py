"""The two ways in which an analysis ends early: wrong input, and a wish to stop."""

from __future__ import annotations


class InputError(ValueError):
    """The user's files or options are wrong; the message is one sentence: what, why, what next."""


class Cancelled(Exception):  # noqa: N818  a wish, not an error
    """Somebody asked a running analysis to stop; nothing was saved."""


class WorkError(RuntimeError):
    """Something failed while working, and it is not the user's input; one sentence again."""
