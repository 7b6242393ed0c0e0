"""The package ctranslate2, which not every installation has, and the files it writes."""

from ..errors import UserError

VERSION = "4.8.5"
# In a folder that export.py made.
MODEL, VOCABULARY_MAP = "model.bin", "vmap.txt"


def require_ctranslate2(option: str):
    """The module ``ctranslate2``.

    Args:
        option: what the user asked for, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ctranslate2
        import ctranslate2.specs
    except ImportError as error:
        raise UserError(
            f"{option}: needs the package ctranslate2 ({error}); run "
            f"pip install ctranslate2=={VERSION}"
        ) from None
    return ctranslate2
