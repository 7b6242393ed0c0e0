"""What is timed beside the candidates: the uncut model, the given one, fairseq's own."""

import pytest
import torch

from src.connectivity.stage import StagePlan
from src.planning.candidates import candidates, cut_to
from src.planning.measure import Planner
from src.planning.rows import Candidate
from src.planning.sentences import STOCK, Sentence, Translation, Work
from tests.support.training import DictionaryTask, batch, build

PLAN = StagePlan(1.0, decreasing=None)
VARIANTS = [
    {},
    {"encoder_normalize_before": True, "decoder_normalize_before": True},
    {"encoder_learned_pos": True, "layernorm_embedding": True},
    {"share_all_embeddings": True, "shared": True},
    {"share_decoder_input_output_embed": True, "decoder_layers": 3, "activation_fn": "gelu"},
]


def planner_of(model, shared=False, **options):
    """A planner that times nothing, and what it made of models, by engine."""
    task, made = DictionaryTask(shared), {}
    sentences = [Sentence(torch.tensor([5, 6, 2]), 4)]
    work = Work(sentences, (task.source_dictionary, task.target_dictionary), beam=2)

    def make(engine, found):
        made.setdefault(engine, []).append(found)
        return Translation(lambda: None, 4)

    return Planner(model, PLAN, work, make, ["clock"], rounds=2, **options), made


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v) or "plain")
def test_stock_fairseq_has_the_function_of_the_uncut_model(variant):
    model = build(**variant).float()
    _, made = planner_of(model, variant.get("shared", False))
    (stock,) = made[STOCK]
    assert type(stock).__module__.startswith("fairseq.") and made["clock"] == [model]
    torch.testing.assert_close(stock(*batch())[0], model(*batch())[0])


def test_a_cut_model_is_compared_with_the_uncut_one_and_shown_itself():
    uncut = build(decoder_layers=3).float()
    model = cut_to(Candidate(2, 2, 0.5), uncut, PLAN)
    planner, made = planner_of(model, stock=False)
    found = planner(candidates([(2, 2), (2, 1)], [0.5, 0.3]))
    sizes = [sum(p.numel() for p in x.parameters()) for x in made["clock"]]
    whole = sum(p.numel() for p in uncut.parameters())
    assert sizes[0] == whole and len(made["clock"][0].decoder.layers) == 3
    assert made["clock"][1] is model
    # what the model is already, or more than it has, is no candidate
    assert [(r.candidate, r.as_given) for r in found] == [
        (Candidate(2, 3, 1.0), True),
        (Candidate(2, 2, round(sizes[1] / whole, 4)), True),
        (Candidate(2, 2, 0.3), False),
        (Candidate(2, 1, 1.0), False),
        (Candidate(2, 1, 0.3), False),
    ]
    assert [r.parameters for r in found] == sizes
    assert all(r.share == r.parameters / whole and r.times_fairseq is None for r in found)
