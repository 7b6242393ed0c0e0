"""The README's commands are understood and its files exist."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from fairseq import options

from src import (
    average_checkpoints,
    distill_data,
    export,
    export_adapters,
    export_sparse,
    generate,
    plan,
    sparsity_report,
)
from src.commandline import parsing as cli
from src.commandline.help import show_help
from src.pipeline import options as compress_options
from src.sparsity import PrunerSettings, load_config
from tests.support.training import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SPARSITY = (ROOT / "docs" / "sparsity.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
TEXTS = [
    README,
    (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8"),
    SPARSITY,
    COMMANDS_PAGE,
]
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", "\n".join(TEXTS), re.S | re.M)
BLOCKS = [text for language, text in FENCES if not language]
PARSERS = {
    f"src/{module.__name__.rsplit('.')[-1]}.py": module.get_parser
    for module in (
        average_checkpoints,
        export,
        export_adapters,
        export_sparse,
        plan,
        sparsity_report,
    )  # fmt: skip
}
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python src/") and "[options]" not in line
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.split()[1])
def test_commands_parse(command):
    script, *arguments = shlex.split(command)[1:]
    assert (ROOT / script).is_file()
    if script == "src/report.py":
        return
    if script == "src/compress.py":
        compress_options.check(compress_options.parse(arguments))
    elif script in PARSERS:
        PARSERS[script]().parse_args(arguments)
    elif script in ("src/generate.py", "src/distill_data.py"):
        tool = generate if script == "src/generate.py" else distill_data
        cli.parse(tool.get_parser(), arguments)
    else:
        parser = options.get_training_parser(default_task="SRPtranslation")
        assert cli.parse(parser, arguments).task == "SRPtranslation"


def test_there_are_commands_for_every_step():
    assert {c.split()[1] for c in COMMANDS} >= {
        f"src/{name}.py"
        for name in (
            "train",
            "pruning",
            "finetuning",
            "distill_data",
            "generate",
            "report",
            "export",
        )
    }


def headings(path):
    """What the headings of a page are called in links."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not heading or heading in headings(path), target


def test_scripts_exist():
    for script in re.findall(r"`(?:bash )?(?:scripts/)?(\w+\.sh)", README):
        assert (ROOT / "scripts" / script).is_file(), script


def test_options_in_the_table_are_in_the_help(capsys):
    parser = options.get_training_parser(default_task="SRPtranslation")
    show_help(parser, training=True)
    text = capsys.readouterr().out
    table = COMMANDS_PAGE.split("## Key arguments")[1].split("##")[0]
    named = re.findall(r"`(--[a-z-]+|--T)`", table)
    assert len(named) > 12
    for option in named:
        assert re.search(rf"{option}\b", text), option


def test_the_help_says_defaults(capsys):
    show_help(options.get_training_parser(default_task="SRPtranslation"), training=True)
    text = " ".join(capsys.readouterr().out.split())
    for option, default in {
        "--compression-rate": "1.0", "--pruning-stage": "0", "--pruning-period": "1",
        "--decreasing": "sa", "--scoring-batches": "150",
        "--importance": "'ablation' for layers, 'fisher' for widths",
        "--scoring-tokens": "256", "--warming-up": "0", "--prob-kd": "0.0", "--T": "1.0",
    }.items():  # fmt: skip
        told = re.split(rf" {option} (?=[A-Z{{])", text, maxsplit=1)[1]
        assert re.search(r"\(default: ([^)]*)\)", told)[1] == default, option


def test_the_adapters_example_runs():
    code = re.findall(r"```python\n(.*?)```", TEXTS[1], re.S)
    assert len(code) == 3
    namespace = {}
    for part in code:
        exec(part, namespace)
    shapes = [tuple(p.shape) for p in namespace["layer"].parameters()]
    kept = int(namespace["keep_in"].sum()), int(namespace["keep_out"].sum())
    assert sorted(shapes) == sorted([(32, kept[0]), (kept[1], 32), (kept[1],)])


def test_adapters_need_no_fairseq():
    code = "import adapters, sys; assert 'fairseq' not in sys.modules; adapters.SPLoRA"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_examples_in_python_print_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    variables = {}
    for block in re.findall(r"```python\n(.*?)```", SPARSITY, re.S):
        exec(block, variables)
    printed = capsys.readouterr().out
    assert printed.startswith("0.80\n")
    assert "Layer name: 0. remaining/all: 23820/235500" in printed
    assert "(0): SparseLinear(in_features=784, out_features=300, bias=True)" in printed


def test_example_configuration_is_read(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", SPARSITY, re.S)
    (tmp_path / "sparsity.yaml").write_text(text)
    (pruner,) = load_config(tmp_path / "sparsity.yaml").pruners
    assert (pruner.pattern, pruner.schedule.last) == ("4x1", 2000)
    (epochs,) = re.findall(r"--max-epoch (\d+)", SPARSITY)
    assert pruner.schedule.last < int(epochs) * 130  # updates in an epoch of Multi30k


def test_keys_of_the_configuration_are_documented():
    table = SPARSITY.split("## The configuration")[1].split("##")[0]
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?`) \|", table, re.M)))
    assert set(documented) == {f.name for f in dataclasses.fields(PrunerSettings)}
