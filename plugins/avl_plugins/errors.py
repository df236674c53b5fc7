"""The one base of every error a user may meet."""

from __future__ import annotations


class AvlError(Exception):
    """An expected failure.

    Its message is one line: what was expected, what was found and what to do. Command lines print
    it without a traceback and exit with 1.
    """


class PolicyError(AvlError):
    """A policy's options are invalid or impossible together."""


class OpError(AvlError):
    """Arrays given to an op do not fit its schema."""
