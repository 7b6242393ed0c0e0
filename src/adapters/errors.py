"""What a caller did wrong."""


class AdapterError(ValueError):
    """A layer, an option or a state that doesn't fit; the message names it."""
