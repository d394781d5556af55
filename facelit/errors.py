"""The exception for user errors: a wrong path, option or file."""

_WORKER_TRACEBACK = "Original Traceback"


class FacelitError(Exception):
    """A mistake the user can mend: its message names the file or option and the way out, in a line or two.

    The command line prints the message without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # torch re-raises a data worker's exception with the worker's traceback as its message: keep our own words.
        if _WORKER_TRACEBACK in message:
            message = message.rpartition(f"{type(self).__name__}: ")[2].strip()
        super().__init__(message)
