"""The launcher's one error."""

from musiclm import errors


class JobError(errors.UserError):
    """A job's description can't be used: the message names the field, its value and the mend."""
