"""Folders of runs as generate.py --report and a training leave them."""

import json

RUNS = {
    "base": dict(bleu=41.4, parameters=6000, tokens_per_second=500.0, num_updates=40),
    "stage1": dict(bleu=40.9, parameters=2400, tokens_per_second=800.0, num_updates=10),
    "stage2": dict(bleu=39.4, parameters=1200, tokens_per_second=1100.0, num_updates=10),
    "finetuned": dict(bleu=40.6, parameters=1200, tokens_per_second=1250.0, num_updates=9),
}
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def widths(share):
    groups = {}
    for side, attentions in (
        ("encoder", ["self_attn"]),
        ("decoder", ["self_attn", "encoder_attn"]),
    ):
        groups[f"{side}.embedding"] = [int(100 * share), 100]
        for layer in range(2):
            for attention in attentions:
                for kind, width in (("qk", 40), ("vo", 60)):
                    name = f"{side}.layers.{layer}.{attention}.{kind}"
                    groups[name] = [int(width * share) + layer, 80]
            groups[f"{side}.layers.{layer}.ffn"] = [int(180 * share) + layer, 200]
    return groups


def write_run(folder, name, **changes):
    path = folder / name
    path.mkdir(parents=True)
    facts = {
        "bleu_signature": SIGNATURE, "uncut_parameters": 6000, "flops": 10**8,
        "flops_source_length": 12, "flops_target_length": 13,
        "checkpoint": f"somewhere/{name}/checkpoint_last.pt", "checkpoint_bytes": 72_000,
        "model_bytes": 24_000, "device": "cpu",
        "machine": "CPU", "threads": 2, "beam": 5, "batch_size": 128, "max_tokens": None,
        **RUNS.get(name, RUNS["base"]),
    }  # fmt: skip
    facts["widths"] = widths(facts["parameters"] / 6000)
    facts.update(changes)
    (path / "report.json").write_text(json.dumps(facts))
    with open(path / "results.csv", "w") as stream:
        stream.write("num_updates,valid_loss\n5,4.0\n9,3.5\n40,3.25\n")
    return path
