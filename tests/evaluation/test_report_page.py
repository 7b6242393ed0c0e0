"""The report as a page: its figures, what it says where some are missing, and in a browser."""

import hashlib
import html.parser
import json
import re
import shutil
import subprocess

import pytest
from sacrebleu.metrics import BLEU, CHRF

from src import report
from src.evaluation.charts import Series, chart, ticks
from src.evaluation.report_table import read_runs
from src.evaluation.samples import compare, marked, read_translations, spread
from tests.support.reports import RUNS, write_run
from tests.support.translation import quiet_logging

TARGETS = [f"The {word} man sees a dog on street no. {n} ." for n, word in enumerate("abcdefgh")]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def translate(folder, change, **facts):
    """A run with translations of eight sentences, and the BLEU that they have."""
    lines = [change(n, text.lower()) for n, text in enumerate(TARGETS)]  # BLEU is of lower case
    text = [line.replace(" .", ".") for line in lines]
    references = [line.replace(" .", ".") for line in TARGETS]
    run = folder / folder_name(facts)
    score = BLEU(lowercase=True).corpus_score(text, [references]).score
    digest = hashlib.sha256("\n".join(references).encode()).hexdigest()
    write_run(
        folder, facts.pop("name"), bleu=score, bleu_references_sha256=digest,
        bleu_signature="nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:2.6.0", **facts,
    )  # fmt: skip
    with open(run / "generate.txt", "w") as stream:
        for n in reversed(range(len(lines))):  # in batches, not in order
            stream.write(f"S-{n}\tQuelle <{n}>\nT-{n}\t{TARGETS[n]}\n")
            stream.write(f"H-{n}\t-0.5\t{lines[n]}\nD-{n}\t-0.5\t{lines[n]}\n")
            stream.write(f"D-{n}\t-0.9\tthe second best\n")
    return run


def folder_name(facts):
    return facts["name"]


@pytest.fixture
def runs(tmp_path):
    base = translate(tmp_path, lambda n, text: text, name="base")
    worse = translate(
        tmp_path, lambda n, text: text.replace("dog", "cat") if n % 2 else text, name="finetuned",
        command="python src/generate.py data --path <checkpoint>",
    )  # fmt: skip
    (worse / ".started").write_text("python ../src/pruning.py data --srp")
    return [base, worse]


def page_of(runs):
    with quiet_logging():
        report.main([str(run) for run in runs])
    return (runs[0].parent / "report.html").read_text(encoding="utf-8")


def test_scores_intervals_and_chance_are_those_of_the_translations(runs):
    read = read_runs(runs)
    bleu, chrf = compare(read, [read_translations(run) for run in runs])
    assert bleu.scores == pytest.approx((100.0, read[1]["bleu"]))
    references = [line.replace(" .", ".") for line in TARGETS]
    text = [t.replace("dog", "cat") if n % 2 else t for n, t in enumerate(references)]
    expected = CHRF(lowercase=True).corpus_score(text, [references]).score
    assert chrf.scores == pytest.approx((100.0, expected)) and "case:lc" in chrf.signature
    assert bleu.p_value < 0.05 and bleu.intervals[1] > 0
    assert "tok:13a" in bleu.signature and "nc:6" in chrf.signature


def test_scores_of_other_texts_are_not_compared(runs):
    def differences():
        return compare(read_runs(runs), [read_translations(run) for run in runs])

    translations = runs[1] / "generate.txt"
    whole = translations.read_text()
    translations.write_text(whole.replace("D-3\t", "X-3\t"))
    assert not differences()  # incomplete
    translations.write_text(whole.replace("man", "woman"))
    assert not differences()  # of another run than the report
    translations.write_text(whole)
    assert differences()
    facts = json.loads((runs[1] / "report.json").read_text())
    (runs[1] / "report.json").write_text(json.dumps({**facts, "bleu_references_sha256": "0"}))
    assert not differences()  # the references are gone


class Elements(html.parser.HTMLParser):
    """Names of what is open, and every address that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_holds_everything_and_fetches_nothing(runs):
    text = page_of(runs)
    elements = Elements(text)
    assert not elements.fetched and not elements.open and not elements.wrong
    assert "url(" not in text and "@import" not in text
    last = json.loads((runs[1] / "report.json").read_text())
    assert "2.50 ×" in text and "5.00 ×" in text  # faster, smaller
    assert f"{last['bleu']:.2f}" in text and "chrF" in text and "p = 0.0" in text
    assert "paired bootstrap" in text and "nrefs:1|case:lc" in text
    assert text.count('class="cell"') == len(last["widths"])
    assert '<mark class="out">dog</mark>' in text and "<mark>cat</mark>" in text
    assert "Quelle &lt;3&gt;" in text and "--path &lt;checkpoint&gt;" in text
    assert "src/pruning.py data --srp" in text
    assert text.count("<polyline") == 2 + 2  # two charts of BLEU, the loss of both runs


def test_a_page_without_translations_or_curves(tmp_path):
    runs = [write_run(tmp_path, name) for name in RUNS]
    for run in runs:
        (run / "results.csv").unlink()
    text = page_of(runs)
    assert "40.60" in text and "-0.80 against base" in text and "side by side" not in text
    assert "On the way" not in text
    single = page_of([write_run(tmp_path / "one", "base", bleu=None, widths={})])
    assert "BLEU</div>" not in single and "What is left" not in single


def test_a_removed_layer_is_said_to_be(tmp_path):
    run = write_run(tmp_path, "base")
    facts = json.loads((run / "report.json").read_text())
    gone = [name for name in facts["widths"] if name.startswith("decoder.layers.1.")]
    for name in gone:
        facts["widths"][name][0] = 0
    (run / "report.json").write_text(json.dumps(facts))
    assert page_of([run]).count("layer removed") == len(gone) > 0


def test_speeds_of_other_conditions_make_no_headline(tmp_path):
    runs = [write_run(tmp_path, "base"), write_run(tmp_path, "finetuned", threads=7)]
    text = page_of(runs)
    assert "as fast" not in text and "BLEU against speed" not in text
    assert "Speed is NOT comparable" in text


def test_words_that_differ_are_marked():
    assert marked("a b c d", "a x c d") == [("a", False), ("b", True), ("c d", False)]
    assert marked("a", "") == [("a", True)] and marked("", "a") == []
    assert spread([5, 1, 9, 3], 2) == [3, 9] and spread([], 3) == []


@pytest.mark.parametrize("low, high", [(0, 1), (3.25, 4.5), (1.2e6, 6e6), (0.001, 0.0011)])
def test_ticks_are_round_and_inside(low, high):
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 11 and all(low <= m <= high + 1e-12 for m in marks)
    steps = {f"{b - a:.9g}" for a, b in zip(marks, marks[1:])}
    assert len(steps) == 1 and re.fullmatch(r"[1250.e+-]+", steps.pop())


def test_a_chart_of_one_point_and_of_none():
    assert chart([Series("", [])], "x", "y") == ""
    assert "<circle" in chart([Series("", [(3.0, 2.0)], ["<one>"])], "x", "y")
    assert "&lt;one&gt;" in chart([Series("", [(3.0, 2.0)], ["<one>"])], "x", "y")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(runs, tmp_path, width):
    """A browser lays the page out; only tables may scroll, within themselves."""
    page = page_of(runs)
    probe = (
        "<script>addEventListener('load', () => document.title = ["
        "innerWidth, document.documentElement.scrollWidth,"
        "document.querySelectorAll('svg').length].join())</script>"
    )
    path = tmp_path / "probed.html"
    # an inner frame has any width; the window of a headless browser is at least 500 wide
    path.write_text(page.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f"<iframe id=f src=probed.html width={width} height=900 style='border:0'></iframe><script>"
        "f.onload = () => document.title = f.contentDocument.title</script>"
    )
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--no-first-run", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'user'}"),
            *("--window-size=1400,1000", "--virtual-time-budget=4000", "--dump-dom", outer.as_uri()),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    inner, scrolled, charts = map(
        int, re.search(r"<title>([\d,]+)</title>", done.stdout)[1].split(",")
    )
    assert inner == width and scrolled <= width and charts == 3
