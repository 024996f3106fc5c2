"""The one exception that a person's own input can cause."""


class UserError(ValueError):
    """Something a person gave is wrong: the message says what, with its value, and how to mend it.

    Commands print it as a single line and exit with code 2; everything else is a defect and keeps
    its traceback.
    """
