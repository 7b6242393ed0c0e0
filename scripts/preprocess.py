"""Raw parallel text to BPE tokens, and to fairseq's binarized data.

Moses tokens (with ``&apos;`` escapes), the filter of Moses' clean-corpus-n on the training
data, lower case (unless ``--cased``), then byte-pair encoding learnt on both languages together:

    preprocess.py --source-lang fr --target-lang en --train RAW/train --valid RAW/val \\
        --test RAW/test --bpe 6000 --out TEXT --data-bin DATA

For a model that is there already, its own code and dictionaries take the place of new ones:

    preprocess.py ... --bpe-codes OLD/code --cased --out TEXT --data-bin DATA \\
        -- --srcdict OLD/dict.fr.txt --tgtdict OLD/dict.en.txt

``--sentencepiece-model`` splits the text as it is, without Moses. ``--dash-splits`` and
``--tokenized`` are for models whose text was tokenized otherwise.

``TEXT`` gets ``{train,valid,test}.LANG``, the ``code``, and ``raw.{valid,test}.LANG``, the same
sentences before tokenization, for BLEU against the true reference. ``DATA`` gets the binarized
data, the raw references and the code. Both are finished by a file that is written last: with it
there and the same inputs, nothing is done again. Arguments after ``--`` go to fairseq-preprocess.
"""

import argparse
import functools
import glob
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from multiprocessing import Pool
from pathlib import Path

# no progress bars from sacremoses and subword-nmt; tqdm reads this when it is imported
os.environ.setdefault("TQDM_DISABLE", "1")

SPLITS = ("train", "valid", "test")
# Every 23rd training pair is validation data: the split of fairseq's prepare-iwslt14.sh,
# and so of the published results.
IWSLT_VALID_EVERY = 23
IWSLT_LANGS = ("de", "en")
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
        text = raw.decode("utf-8-sig")  # without a byte order mark
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path if path.exists() else packed} cannot be read as UTF-8 text: {error}"
        ) from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [" ".join(line.split()) for line in lines]


def read_pair(prefix, langs):
    """``{lang: lines}`` of ``prefix.LANG``, which must be parallel."""
    return parallel(prefix, {lang: read_lines(f"{prefix}.{lang}") for lang in langs})


def parallel(name, pair):
    """``pair`` itself, once its languages are known to have the same number of lines."""
    counts = {lang: len(lines) for lang, lines in pair.items()}
    if len(set(counts.values())) != 1:
        raise UserError(
            f"{name} is not parallel: "
            + ", ".join(f"{n} lines in {lang}" for lang, n in counts.items())
        )
    if not all(counts.values()):
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
        lang: strip_train_tags(read_lines(folder / f"train.tags.de-en.{lang}"))
        for lang in IWSLT_LANGS
    }
    test = {lang: [] for lang in IWSLT_LANGS}
    for name in IWSLT_TEST:
        part = {
            lang: segments(read_lines(folder / f"IWSLT14.{name}.de-en.{lang}.xml"))
            for lang in IWSLT_LANGS
        }
        parallel(f"IWSLT14.{name}", part)
        for lang in IWSLT_LANGS:
            test[lang] += part[lang]
    return parallel("train.tags.de-en", train), test


def every(pairs, n):
    """Split off every ``n``-th element: ``(the others, the n-th ones)``."""
    return [p for i, p in enumerate(pairs, 1) if i % n], [
        p for i, p in enumerate(pairs, 1) if i % n == 0
    ]


# --- tokens ------------------------------------------------------------------------------

_tokenizers = {}


def tokenize(lang, line, dashes=False):
    """Moses tokens of one sentence, escaped (``&apos;``), case kept.

    Args:
        dashes: split words at dashes, too, as fairseq's ``--tokenizer moses`` does.
    """
    if lang not in _tokenizers:
        from sacremoses import MosesTokenizer

        _tokenizers[lang] = MosesTokenizer(lang)
    tokens = _tokenizers[lang].tokenize(line, dashes, return_str=True, escape=True)
    return " ".join(tokens.split())


def _tokenize_pair(langs, dashes, pair):
    return tuple(tokenize(lang, line, dashes) for lang, line in zip(langs, pair))


def tokenize_pairs(pairs, langs, workers, dashes=False):
    """``[(source, target), …]`` tokenized, in order."""
    one = functools.partial(_tokenize_pair, langs, dashes)
    if workers > 1 and len(pairs) > 5000:
        with Pool(workers) as pool:
            return pool.map(one, pairs, chunksize=1000)
    return [one(pair) for pair in pairs]


def keep(pair, ratio, max_tokens):
    """Moses' clean-corpus-n: neither side empty or too long, nor far longer than the other.

    Args:
        pair: two tokenized sentences.
        ratio: the longer may have at most this many times the tokens of the shorter; 0 is no limit.
        max_tokens: longest sentence, in tokens.
    """
    short, long = sorted(len(side.split()) for side in pair)
    return 1 <= short and long <= max_tokens and (not ratio or long / short <= ratio)


def splitter(args, text):
    """What splits the words of a line, and the code that it does so by, a file's content.

    Args:
        text: calls for the training data's lines, to learn a code from.
    """
    if args.sentencepiece_model:
        from sentencepiece import SentencePieceProcessor

        code = read_code(args.sentencepiece_model, "--sentencepiece-model")
        try:
            model = SentencePieceProcessor(model_proto=code)
        except RuntimeError:
            raise UserError(
                f"--sentencepiece-model {args.sentencepiece_model}: not a SentencePiece model"
            ) from None
        return (lambda line: " ".join(model.encode(line, out_type=str))), code
    from subword_nmt.apply_bpe import BPE

    origin = f"--bpe-codes {args.bpe_codes}"
    code = read_code(args.bpe_codes) if args.bpe_codes else learn_code(text(), args.bpe).encode()
    try:
        return BPE(io.StringIO(code.decode())).segment, code
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} cannot be read: {error}") from None
    except (ValueError, IndexError, SystemExit):
        raise UserError(f"{origin}: not a BPE code of subword-nmt") from None


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
    with open(part, "wb") as handle:
        handle.write(text if isinstance(text, bytes) else text.encode("utf-8"))
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def write_lines(path, lines):
    write_atomically(path, "".join(line + "\n" for line in lines))


def fingerprint(args):
    """Hash of the inputs and of the settings that change the output."""
    digest = hashlib.sha256(
        json.dumps(
            [
                *(args.source_lang, args.target_lang, args.bpe, args.cased, args.ratio),
                *(args.max_tokens, args.dash_splits, args.tokenized),
                Path(__file__).read_text(encoding="utf-8"),
            ]
        ).encode()
    )
    if args.bpe_codes:
        digest.update(read_code(args.bpe_codes))
    if args.sentencepiece_model:
        digest.update(read_code(args.sentencepiece_model, "--sentencepiece-model"))
    if args.iwslt:
        files = sorted(glob.glob(f"{args.iwslt}/**/*de-en*", recursive=True))
    else:
        prefixes = (args.train, args.valid, args.test)
        files = [
            f
            for p in prefixes
            for lang in args.langs
            for f in (f"{p}.{lang}", f"{p}.{lang}.gz")
            if os.path.exists(f)
        ]
    for file in files:
        if os.path.isfile(file):
            digest.update(os.path.basename(file).encode())
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def read_code(path, option="--bpe-codes"):
    """Bytes of what splits words; their form is for its library to check."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from None


# --- fairseq's binary form -----------------------------------------------------------------


def binarize(text, dest, langs, arguments, workers):
    """fairseq's binary form of a folder that :func:`run` wrote, with raw references and code.

    Args:
        arguments: further ones of fairseq-preprocess.

    Raises:
        UserError: ``dest`` was made with other arguments, or fairseq refuses these.
    """
    text, dest = Path(text), Path(dest)
    done, key = dest / ".done", " ".join(arguments)
    if done.exists() and not done.stat().st_mtime < (text / "preprocess.json").stat().st_mtime:
        if arguments and done.read_text().strip() != key:
            raise UserError(
                f"{dest} was made with other arguments than {key}; move it away to make it again"
            )
        print(f"{dest} is up to date")
        return
    if dest.exists() and any(dest.iterdir()) and not done.exists():
        raise UserError(f"--data-bin {dest} holds other files; give a new folder")
    print(f"writing {dest}", flush=True)
    part = dest.with_name(f"{dest.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, "-m", "fairseq_cli.preprocess"]
    command += ["--source-lang", langs[0], "--target-lang", langs[1]]
    command += [f"--{split}pref={text / split}" for split in SPLITS]
    command += ["--destdir", str(part), "--workers", str(min(8, workers)), *arguments]
    with open(text / "binarize.log", "w", encoding="utf-8") as log:
        status = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT)
    if status:
        said = (text / "binarize.log").read_text(encoding="utf-8").strip().splitlines()
        raise UserError(f"fairseq-preprocess: {said[-1] if said else f'status {status}'}")
    for name in (*(f"raw.{split}.{lang}" for split in SPLITS[1:] for lang in langs), "code"):
        shutil.copyfile(text / name, part / name)
    # src/ compares them when it reads the data, `sha256sum -c SHA256SUMS` anywhere
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(part.iterdir())}
    write_lines(part / "SHA256SUMS", (f"{digest}  {name}" for name, digest in digests.items()))
    (part / ".done").write_text(f"{key}\n")
    shutil.rmtree(dest, ignore_errors=True)
    os.replace(part, dest)


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
            help=f"raw {split} data: PREFIX.LANG[.gz] of both languages",
        )
    parser.add_argument("--source-lang", default="de", metavar="LANG", help="default: de")
    parser.add_argument("--target-lang", default="en", metavar="LANG", help="default: en")
    code = parser.add_mutually_exclusive_group(required=True)
    code.add_argument("--bpe", type=int, help="BPE merges to learn, both languages together")
    code.add_argument("--bpe-codes", metavar="FILE", help="a code that is there, of another model")
    code.add_argument(
        "--sentencepiece-model", metavar="FILE", help="a SentencePiece model, for text as it is"
    )
    code.add_argument(
        "--binarize-only", action="store_true", help="--out holds the text already; see --data-bin"
    )
    parser.add_argument(
        "--dash-splits",
        action="store_true",
        help="split words at dashes, as fairseq's --tokenizer moses does without "
        "--moses-no-dash-splits",
    )
    parser.add_argument(
        "--tokenized",
        action="store_true",
        help="the text is tokenized; leave its tokens as they are",
    )
    parser.add_argument("--cased", action="store_true", help="do not make the text lower case")
    parser.add_argument(
        "--data-bin",
        metavar="DIR",
        help="also write fairseq's binarized data; arguments after -- are of fairseq-preprocess",
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
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.binarizing = argv[end + 1 :]
    args.langs = args.source_lang, args.target_lang
    if args.source_lang == args.target_lang:
        parser.error(f"--source-lang and --target-lang are both {args.source_lang}")
    if args.iwslt and args.langs != IWSLT_LANGS:
        parser.error("--iwslt is German-English: leave --source-lang and --target-lang out")
    if args.binarizing and not args.data_bin:
        parser.error("arguments after -- are of fairseq-preprocess, which needs --data-bin")
    if args.binarize_only:
        if not args.data_bin:
            parser.error("--binarize-only needs --data-bin")
        if not os.path.exists(f"{args.out}/preprocess.json"):
            parser.error(f"--out {args.out}: no finished text of this program is there")
        return args
    if not args.iwslt and not (args.train and args.valid and args.test):
        parser.error("give --iwslt, or --train, --valid and --test")
    if args.dash_splits and (args.tokenized or args.sentencepiece_model):
        other = "--tokenized" if args.tokenized else "--sentencepiece-model"
        parser.error(f"--dash-splits: {other} leaves Moses' tokens out; give one of them")
    if args.bpe is not None and args.bpe < 1:
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
        raw = {split: read_pair(getattr(args, split), args.langs) for split in SPLITS}

    out.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    # each item: (raw pair, tokenized pair), together so that the filter takes both
    data = {}
    for split, languages in raw.items():
        pairs = list(zip(*(languages[lang] for lang in args.langs)))
        tokenized = pairs
        if not (args.tokenized or args.sentencepiece_model):
            tokenized = tokenize_pairs(pairs, args.langs, args.workers, args.dash_splits)
        data[split] = list(zip(pairs, tokenized))
    before = len(data["train"])
    data["train"] = [item for item in data["train"] if keep(item[1], args.ratio, args.max_tokens)]
    if not data["train"]:
        raise UserError("no training pair is left after the length filter")
    print(f"train: {before} pairs, {len(data['train'])} of usable length")
    if args.iwslt:
        data["train"], data["valid"] = every(data["train"], IWSLT_VALID_EVERY)

    case = str if args.cased else str.lower
    tokens = {
        split: [[case(item[1][side]) for item in data[split]] for side in range(2)]
        for split in SPLITS
    }
    split_words, code = splitter(args, lambda: [x for side in tokens["train"] for x in side])
    write_atomically(out / "code", code)
    for split in SPLITS:
        for side, lang in enumerate(args.langs):
            write_lines(
                out / f"{split}.{lang}", (split_words(line) for line in tokens[split][side])
            )
            if split != "train":
                write_lines(out / f"raw.{split}.{lang}", (item[0][side] for item in data[split]))
    counts = {split: len(data[split]) for split in SPLITS}
    write_atomically(manifest, json.dumps({"key": key, "pairs": counts}) + "\n")
    print(f"{out}: " + ", ".join(f"{split} {n} pairs" for split, n in counts.items()))
    return counts


def main(argv=None):
    args = parse(argv)
    try:
        if not args.binarize_only:
            run(args)
        if args.data_bin:
            binarize(args.out, args.data_bin, args.langs, args.binarizing, args.workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
