"""The one exception that a person's own input can cause, and what is told of others."""


class UserError(ValueError):
    """Something a person gave is wrong: the message says what, with its value, and how to mend it.

    Commands print it as a single line and exit with code 2; everything else is a defect and keeps
    its traceback.
    """


def first_line(error: BaseException) -> str:
    """What an exception says first, or its kind if it says nothing: many go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
