"""What an environment has and lacks, compared with ``requirements/*.txt``.

``scripts/setup.sh`` runs this with the environment's own Python, before anything is
installed; so it uses the standard library only.

    check_env.py key              one line that changes when a set-up must be looked at again
    check_env.py missing FILE     pip arguments that complete FILE, one a line
    check_env.py constraints      pins for what an existing environment has and keeps
    check_env.py refuse           exit status 2 and one line if the environment cannot serve
    check_env.py usable           the same, also if fairseq is not there
    check_env.py imports          import everything once, as a last check
"""

import hashlib
import re
import sys
from importlib import import_module, metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
PYTHONS = ((3, 11), (3, 13))
MIN_TORCH = (2, 10)


def pins(path):
    """``{name: version}`` of one requirements file, in its order."""
    found = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        line = line.split("#", 1)[0].strip()
        if line:
            name, version = line.split("==")
            found[name] = version
    return found


def installed(name):
    """Version of a distribution, or ``None``; a half-removed one counts as absent."""
    try:
        return metadata.version(name) or None
    except metadata.PackageNotFoundError:
        return None


def release(version):
    """``(2, 13)`` of ``2.13.0+cpu``."""
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def missing(path, own):
    """Requirements of ``path`` to install.

    An environment that the set-up created (``own``) gets the exact pins. One that was
    there before keeps what it has, except fairseq-fixed, whose version decides whether
    the plug-in works at all.
    """
    for name, version in pins(path).items():
        have = installed(name)
        exact = own or name == "fairseq-fixed"
        if have is None or (exact and have.split("+")[0] != version):
            yield f"{name}=={version}"


def refusal():
    """Why this environment cannot serve, or ``None``."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return (
            f"Python {sys.version.split()[0]} found in {sys.prefix}, "
            "but 3.11, 3.12 or 3.13 is needed: choose another environment with VENV=DIR"
        )
    official = installed("fairseq")
    if official:
        return (
            f"the official fairseq {official} is installed in {sys.prefix}, but "
            "fairseq-fixed is needed: the official one neither imports on Python 3.11 nor "
            "generates with this torch, and pruning would "
            "be bypassed by its duplicated encoder weights; "
            "remove it (pip uninstall fairseq) or choose another environment with VENV=DIR"
        )
    torch = installed("torch")
    if torch and release(torch) < MIN_TORCH:
        return (
            f"torch {torch} found in {sys.prefix}, but 2.10 or later is needed (safe loading of "
            "checkpoints): upgrade it there or choose another environment with VENV=DIR"
        )
    return None


def key():
    """Changes with the pins, this Python, and the versions that are installed.

    The installed versions are part of it so that a package taken out by hand is noticed.
    """
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(path.read_bytes())
        for name in pins(path):
            digest.update(f"{name}={installed(name)}".encode())
    official = installed("fairseq")
    if official:
        digest.update(f"fairseq={official}".encode())
    return digest.hexdigest()


def main(argv):
    command, *rest = argv
    if command == "key":
        print(key())
    elif command == "missing":
        print(*missing(rest[0], own="--own" in rest), sep="\n")
    elif command == "constraints":
        # only torch: pip may move anything else to make its own requirements fit
        torch = installed("torch")
        print(f"torch=={torch}" if torch else "")
    elif command in ("refuse", "usable"):
        why = refusal()
        if not why and command == "usable" and not installed("fairseq-fixed"):
            why = (
                f"fairseq-fixed is missing in {sys.prefix}: run 'make setup' first, or name "
                "another Python with PYTHON=PATH"
            )
        if why:
            print(f"environment: {why}", file=sys.stderr)
            return 2
    elif command == "imports":
        import logging

        logging.basicConfig(level=logging.ERROR)  # fairseq would set it to DEBUG
        for name in (
            "torch",
            "numpy",
            "sacrebleu",
            "sacremoses",
            "subword_nmt",
            "safetensors",
            "isal",
            "yaml",
            "pandas",
            "matplotlib",
            "tabulate",
            "pytest",
            "xdist",
            "hypothesis",
            "psutil",
            "ctranslate2",
        ):
            import_module(name)
        from fairseq.data import data_utils_fast  # noqa: F401  compiled part
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["help"]))
