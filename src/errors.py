"""What a user did wrong, said in one line."""

import sys


class UserError(SystemExit):
    """A mistake in an option or a file, reported without a traceback.

    It derives from ``SystemExit`` so that any fairseq tool that runs this
    plug-in stops with exit status 2 instead of printing a traceback.

    Args:
        message: one line that names the option or file, the value found, what
            would be valid and what to do.
    """

    STATUS = 2

    def __init__(self, message: str):
        super().__init__(self.STATUS)
        self.message = message
        print(f"error: {message}", file=sys.stderr, flush=True)

    def __str__(self):
        return self.message
