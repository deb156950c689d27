"""What the labelling room refuses, beside the errors that the whole house has.

AccessError        a link or a session that is not good (any more)
LeaseError         an answer to a question that is no longer this annotator's to answer
AwayError          the database cannot be reached, or was busy for too long: try again
UnknownTaskError   there is no task of that name
"""

from __future__ import annotations

from prefopt.errors import PrefoptError, RecipeError


class AccessError(PrefoptError, PermissionError):
    """A link was used, has expired, was revoked, or never existed."""


class LeaseError(PrefoptError, RuntimeError):
    """The answer cannot be taken: the slot went to somebody else, or it was answered already."""

    exit_code = 1


class AwayError(PrefoptError, ConnectionError):
    """The database cannot be reached or did not answer in time; nothing is known to be wrong."""

    exit_code = 1


class UnknownTaskError(RecipeError, LookupError):
    """The database has no task of that name."""
