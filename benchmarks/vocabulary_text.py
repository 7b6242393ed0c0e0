"""Text of trimmed data: the same sentences, no more unknown tokens, how much longer.

    python benchmarks/vocabulary_text.py data-bin/multi30k.de-en --text data-bin/multi30k.text

For every limit trim_vocabulary.py runs with an untrained model of width 256 and 3+3 layers;
then every sentence of all sets is decoded and compared with the text that the data were
made of. The folder of text is that of a script scripts/*_preprocess.sh: SPLIT.LANG and code.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, report

SIDES = "--{0}-embed-dim 256 --{0}-ffn-embed-dim 512 --{0}-layers 3 --{0}-attention-heads 4"
SPLITS = ("train", "valid", "test")


def run(*command) -> str:
    line = [sys.executable, *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def compare(data: str, text: Path, splits, languages) -> dict:
    """Sentences, those that decode to other text, tokens and unknown ones by language."""
    from fairseq.data import Dictionary, data_utils

    row = {"sentences": 0, "different": 0}
    for language in languages:
        words = Dictionary.load(f"{data}/dict.{language}.txt")
        row[f"{language} types"] = len(words)
        tokens = unknown = sentences = 0
        for split in splits:
            name = f"{data}/{split}.{'-'.join(languages)}.{language}"
            dataset = data_utils.load_indexed_dataset(name, words)
            lines = (text / f"{split}.{language}").read_text(encoding="utf-8").split("\n")[:-1]
            if len(lines) != len(dataset):
                raise SystemExit(f"{name}: {len(dataset)} sentences, {len(lines)} lines of text")
            for number, line in enumerate(lines):
                numbers = dataset[number]
                unknown += int((numbers == words.unk()).sum())
                tokens += len(numbers)
                plain = f"{line} ".replace("@@ ", "").strip()
                # an unknown token has lost its text before; the rest must be there
                expected = plain if words.unk() not in numbers else None
                found = words.string(numbers, "@@ ")
                row["different"] += expected is not None and found != expected
            sentences += len(lines)
        row["sentences"] += sentences
        row[f"{language} tokens"] = round(tokens / sentences, 2)
        row[f"{language} unknown"] = unknown
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--text", required=True, type=Path, help="what it was made of, and code")
    parser.add_argument("-s", "--source-lang", default="de", help="(default: %(default)s)")
    parser.add_argument("-t", "--target-lang", default="en", help="(default: %(default)s)")
    parser.add_argument(
        "--max-types",
        type=int,
        nargs="+",
        default=[2000, 1000, 500],
        help="of a dictionary, one table row each (default: %(default)s)",
    )
    parser.add_argument("--output", help="write the table to OUTPUT.md and OUTPUT.json")
    args = parser.parse_args()
    languages = args.source_lang, args.target_lang
    with tempfile.TemporaryDirectory() as folder:
        shape = " ".join(SIDES.format(side) for side in ("encoder", "decoder")).split()
        run(
            ROOT / "src/train.py", args.data, "--task", "SRPtranslation", "--arch", "srp", *shape,
            "--share-decoder-input-output-embed", "--criterion", "srp", "--optimizer", "srp_adam",
            "--lr", "1e-3", "--max-update", "1", "--max-tokens", "200", "--cpu",
            "--disable-validation", "--save-dir", folder, "--no-save-optimizer-state",
        )  # fmt: skip
        rows = [{"limit": "none", **compare(args.data, args.text, SPLITS, languages)}]
        for limit in args.max_types:
            new = f"{folder}/{limit}"
            run(
                ROOT / "src/trim_vocabulary.py", args.data,
                "--path", f"{folder}/checkpoint_last.pt", "--bpe-codes", args.text / "code",
                "--max-types", limit, "--output", new, "--output-checkpoint", f"{new}.pt",
            )  # fmt: skip
            rows.append({"limit": limit, **compare(new, args.text, SPLITS, languages)})
    report("Text of trimmed data", rows, args.output, data=Path(args.data).name)


if __name__ == "__main__":
    main()
