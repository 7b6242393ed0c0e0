"""Raw parallel text to BPE tokens, as fairseq-preprocess wants them.

Moses tokens (with ``&apos;`` escapes), the filter of Moses' clean-corpus-n on the training
data, lower case, then byte-pair encoding learnt on both languages together:

    preprocess.py --out DIR --bpe 10000 --ratio 1.5 --iwslt FOLDER
    preprocess.py --out DIR --bpe 6000 --train RAW/train --valid RAW/val --test RAW/test

``DIR`` gets ``{train,valid,test}.{de,en}``, the learnt ``code``, and ``raw.{valid,test}.{de,en}``,
the same sentences before tokenization, for BLEU against the true reference.
``preprocess.json`` is written last: with it there and the same inputs, nothing is done again.
"""

import argparse
import glob
import gzip
import hashlib
import io
import json
import os
import re
import sys
from multiprocessing import Pool
from pathlib import Path

# no progress bars from sacremoses and subword-nmt; tqdm reads this when it is imported
os.environ.setdefault("TQDM_DISABLE", "1")

LANGS = ("de", "en")
SPLITS = ("train", "valid", "test")
# Every 23rd training pair is validation data: the split of fairseq's prepare-iwslt14.sh,
# and so of the published results.
IWSLT_VALID_EVERY = 23
IWSLT_TEST = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
DROPPED_TAGS = ("<url>", "<talkid>", "<keywords>")
STRIPPED_TAGS = re.compile(r"</?(?:title|description)>")
SEGMENT = re.compile(r'<seg id="[0-9]*">\s*(.*?)\s*</seg>')


class UserError(Exception):
    """Wrong input; shown as one line, exit status 2."""


# --- reading -----------------------------------------------------------------------------


def read_lines(path):
    """Lines of ``path`` or ``path.gz``, white space normalised.

    Only ``\\n`` ends a line: sentences do contain other line separators of Unicode, and
    counting those would shift one language against the other.
    """
    path = Path(path)
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise UserError(f"{path} (or {packed.name}) does not exist")
    try:
        raw = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        text = raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path if path.exists() else packed} cannot be read as UTF-8 text: {error}"
        ) from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [" ".join(line.split()) for line in lines]


def read_pair(prefix):
    """``{lang: lines}`` of ``prefix.de`` and ``prefix.en``, which must be parallel."""
    return parallel(prefix, {lang: read_lines(f"{prefix}.{lang}") for lang in LANGS})


def parallel(name, pair):
    """``pair`` itself, once its languages are known to have the same number of lines."""
    counts = {lang: len(pair[lang]) for lang in LANGS}
    if len(set(counts.values())) != 1:
        raise UserError(
            f"{name} is not parallel: "
            + ", ".join(f"{n} lines in {lang}" for lang, n in counts.items())
        )
    if not counts[LANGS[0]]:
        raise UserError(f"{name} is empty")
    return pair


def strip_train_tags(lines):
    """Sentences of a ``train.tags`` file: title and description stay, addresses and keywords go."""
    return [
        " ".join(STRIPPED_TAGS.sub("", line).split())
        for line in lines
        if not any(tag in line for tag in DROPPED_TAGS)
    ]


def segments(lines):
    """Sentences of an IWSLT ``.xml`` file, with its typographic apostrophes made plain."""
    found = (SEGMENT.search(line) for line in lines)
    return [
        match.group(1).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for match in found if match
    ]


def read_iwslt(folder):
    """Training pairs (validation still among them) and test pairs of an extracted ``de-en.tgz``."""
    inner = Path(folder) / "de-en"
    folder = inner if inner.is_dir() else Path(folder)
    train = {
        lang: strip_train_tags(read_lines(folder / f"train.tags.de-en.{lang}")) for lang in LANGS
    }
    test = {lang: [] for lang in LANGS}
    for name in IWSLT_TEST:
        part = {
            lang: segments(read_lines(folder / f"IWSLT14.{name}.de-en.{lang}.xml"))
            for lang in LANGS
        }
        parallel(f"IWSLT14.{name}", part)
        for lang in LANGS:
            test[lang] += part[lang]
    return parallel("train.tags.de-en", train), test


def every(pairs, n):
    """Split off every ``n``-th element: ``(the others, the n-th ones)``."""
    return [p for i, p in enumerate(pairs, 1) if i % n], [
        p for i, p in enumerate(pairs, 1) if i % n == 0
    ]


# --- tokens ------------------------------------------------------------------------------

_tokenizers = {}


def tokenize(lang, line):
    """Moses tokens of one sentence, escaped (``&apos;``), case kept."""
    if lang not in _tokenizers:
        from sacremoses import MosesTokenizer

        _tokenizers[lang] = MosesTokenizer(lang)
    return " ".join(_tokenizers[lang].tokenize(line, return_str=True, escape=True).split())


def _tokenize_pair(pair):
    return tuple(tokenize(lang, line) for lang, line in zip(LANGS, pair))


def tokenize_pairs(pairs, workers):
    """``[(de, en), …]`` tokenized, in order."""
    if workers > 1 and len(pairs) > 5000:
        with Pool(workers) as pool:
            return pool.map(_tokenize_pair, pairs, chunksize=1000)
    return [_tokenize_pair(pair) for pair in pairs]


def keep(pair, ratio, max_tokens):
    """Moses' clean-corpus-n: neither side empty or too long, nor far longer than the other.

    Args:
        pair: two tokenized sentences.
        ratio: the longer may have at most this many times the tokens of the shorter; 0 is no limit.
        max_tokens: longest sentence, in tokens.
    """
    short, long = sorted(len(side.split()) for side in pair)
    return 1 <= short and long <= max_tokens and (not ratio or long / short <= ratio)


def learn_code(lines, merges):
    """Text of the BPE code learnt on ``lines``."""
    from subword_nmt.learn_bpe import learn_bpe

    out = io.StringIO()
    learn_bpe(lines, out, merges)
    return out.getvalue()


# --- files -------------------------------------------------------------------------------


def write_atomically(path, text):
    """The file appears under its name complete or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def write_lines(path, lines):
    write_atomically(path, "".join(line + "\n" for line in lines))


def fingerprint(args):
    """Hash of the inputs and of the settings that change the output."""
    digest = hashlib.sha256(
        json.dumps(
            [args.bpe, args.ratio, args.max_tokens, Path(__file__).read_text(encoding="utf-8")]
        ).encode()
    )
    if args.iwslt:
        files = sorted(glob.glob(f"{args.iwslt}/**/*de-en*", recursive=True))
    else:
        prefixes = (args.train, args.valid, args.test)
        files = [
            f
            for p in prefixes
            for lang in LANGS
            for f in (f"{p}.{lang}", f"{p}.{lang}.gz")
            if os.path.exists(f)
        ]
    for file in files:
        if os.path.isfile(file):
            digest.update(os.path.basename(file).encode())
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


# --- command line ------------------------------------------------------------------------


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the result")
    parser.add_argument(
        "--iwslt", metavar="DIR", help="extracted IWSLT'14 folder de-en, instead of the next three"
    )
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            metavar="PREFIX",
            help=f"raw {split} data: PREFIX.de[.gz] and PREFIX.en[.gz]",
        )
    parser.add_argument(
        "--bpe", type=int, required=True, help="BPE merges, both languages together"
    )
    parser.add_argument(
        "--ratio", type=float, default=0.0, help="length-ratio filter on training data; 0: none"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=175, help="longest training sentence (default 175)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)"
    )
    args = parser.parse_args(argv)
    if not args.iwslt and not (args.train and args.valid and args.test):
        parser.error("give --iwslt, or --train, --valid and --test")
    if args.bpe < 1:
        parser.error(f"--bpe {args.bpe}: at least one merge is needed")
    if args.ratio and args.ratio < 1:
        parser.error(f"--ratio {args.ratio}: 0 for no filter, otherwise 1 or more")
    return args


def run(args):
    """Write everything; returns the number of pairs of each split."""
    out = Path(args.out)
    manifest = out / "preprocess.json"
    key = fingerprint(args)
    if manifest.exists() and json.loads(manifest.read_text())["key"] == key:
        print(f"{out} is up to date")
        return json.loads(manifest.read_text())["pairs"]
    if args.iwslt:
        train, test = read_iwslt(args.iwslt)
        raw = {"train": train, "test": test}
    else:
        raw = {split: read_pair(getattr(args, split)) for split in SPLITS}

    out.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    # each item: (raw pair, tokenized pair), together so that the filter takes both
    data = {}
    for split, languages in raw.items():
        pairs = list(zip(*(languages[lang] for lang in LANGS)))
        data[split] = list(zip(pairs, tokenize_pairs(pairs, args.workers)))
    before = len(data["train"])
    data["train"] = [item for item in data["train"] if keep(item[1], args.ratio, args.max_tokens)]
    if not data["train"]:
        raise UserError("no training pair is left after the length filter")
    print(f"train: {before} pairs, {len(data['train'])} of usable length")
    if args.iwslt:
        data["train"], data["valid"] = every(data["train"], IWSLT_VALID_EVERY)

    tokens = {
        split: [[item[1][side].lower() for item in data[split]] for side in range(len(LANGS))]
        for split in SPLITS
    }
    code = learn_code([line for side in tokens["train"] for line in side], args.bpe)
    write_atomically(out / "code", code)
    with open(out / "code", encoding="utf-8") as handle:
        from subword_nmt.apply_bpe import BPE

        bpe = BPE(handle)
    for split in SPLITS:
        for side, lang in enumerate(LANGS):
            write_lines(
                out / f"{split}.{lang}", (bpe.segment(line) for line in tokens[split][side])
            )
            if split != "train":
                write_lines(out / f"raw.{split}.{lang}", (item[0][side] for item in data[split]))
    counts = {split: len(data[split]) for split in SPLITS}
    write_atomically(manifest, json.dumps({"key": key, "pairs": counts}) + "\n")
    print(f"{out}: " + ", ".join(f"{split} {n} pairs" for split, n in counts.items()))
    return counts


def main(argv=None):
    try:
        run(parse(argv))
    except UserError as error:
        print(f"preprocess: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
