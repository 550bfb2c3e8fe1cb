"""The one exception whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """A problem its reader can mend: the text is one clear sentence that names the way out."""


class Diverged(UserError):
    """A training whose loss is no longer a number."""
