"""What a caller did wrong."""


class SparsityError(ValueError):
    """A configuration, a layer, a file or a value that doesn't fit; the message names it."""
