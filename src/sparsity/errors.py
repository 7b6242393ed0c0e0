"""The error that the library raises for a caller's mistake."""


class SparsityError(ValueError):
    """Raised for a bad configuration, layer, file or value; the message names it."""
