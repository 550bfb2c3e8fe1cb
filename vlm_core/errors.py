"""Errors whose text is meant for the user."""


class UserError(Exception):
    """A problem that the user can fix: its text is one sentence that says how."""


class Diverged(UserError):
    """A training whose loss is not finite any more."""
