"""Every layout multiplies as F.linear does; the choice is never a slower one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.sparsity.errors import SparsityError
from src.sparsity.execution import layouts as module
from src.sparsity.execution import timing
from src.sparsity.execution.layouts import LAYOUTS, ByRows, fastest, prepare, why_not
from src.sparsity.execution.supports import order_by_support, plan_groups

CPU = tuple(name for name in LAYOUTS if name != "semi_structured")
PATTERNS = ["single", "4x4", "4x1", "64x1", "rows", "columns", "mixed", "shuffled"]


def pruned(pattern: str, outputs: int, inputs: int, density: float, dtype) -> Tensor:
    """A random weight ``[out, in]`` with zeros in a pattern."""
    heights = {"4x4": 4, "4x1": 4, "64x1": 64, "shuffled": 64, "columns": outputs or 1}
    high = heights.get(pattern, 1)
    wide = {"4x4": 4, "rows": inputs or 1}.get(pattern, 1)
    kept = torch.rand(-(-outputs // high), -(-inputs // wide)) < density
    kept = kept.repeat_interleave(high, 0).repeat_interleave(wide, 1)
    kept = kept[:outputs, :inputs].clone()
    if pattern == "shuffled":
        kept = kept[torch.randperm(outputs)]
    if pattern == "mixed":
        kept[torch.rand(outputs) < 0.5] = False
        kept[:, torch.rand(inputs) < 0.5] = False
    return torch.randn(outputs, inputs, dtype=dtype) * kept


def close(found: Tensor, x: Tensor, weight: Tensor, bias) -> None:
    bias = None if bias is None else bias.double()
    expected = F.linear(x.double(), weight.double(), bias)
    assert found.dtype == x.dtype and found.is_contiguous()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}[x.dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


@settings(max_examples=120, deadline=None)
@given(
    layout=st.sampled_from(CPU),
    pattern=st.sampled_from(PATTERNS),
    outputs=st.integers(1, 200),
    inputs=st.integers(1, 70),
    rows=st.sampled_from([0, 1, 2, 7, 33, 97]),
    density=st.sampled_from([0.0, 0.03, 0.2, 0.6, 1.0]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_layouts_are_exact(layout, pattern, outputs, inputs, rows, density, bias, dtype, seed):
    torch.manual_seed(seed)
    weight = pruned(pattern, outputs, inputs, density, dtype)
    bias = torch.randn(outputs, dtype=dtype) if bias else None
    x = torch.randn(rows, inputs, dtype=dtype)
    before = x.clone()
    close(prepare(weight, bias, layout)(x), x, weight, bias)
    assert torch.equal(x, before)


@pytest.mark.parametrize("layout", CPU)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_without_outputs_or_inputs(layout, shape):
    product = prepare(torch.zeros(shape), torch.ones(shape[0]), layout)
    assert torch.equal(product(torch.ones(2, shape[1])), torch.ones(2, shape[0]))
    choice = fastest(torch.zeros(shape), rows=4)
    assert choice.product(torch.ones(2, shape[1])).shape == (2, shape[0])


@pytest.mark.parametrize("layout", CPU)
def test_a_weight_without_values_gives_the_bias(layout):
    bias = torch.randn(5)
    y = prepare(torch.zeros(5, 9), bias, layout)(torch.randn(3, 9))
    assert torch.equal(y, bias.expand(3, 5))
    y.zero_()
    assert bias.any()


@pytest.mark.parametrize("layout", ["smaller", "gathered", "grouped", "dense"])
def test_layouts_of_dense_parts_take_other_types(layout):
    weight = pruned("rows", 70, 30, 0.3, torch.float32)
    x = torch.randn(5, 30)
    y = prepare(weight.bfloat16(), None, layout)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.linear(x, weight), atol=0.2, rtol=0.02)


@pytest.mark.parametrize("layout", ["smaller", "grouped", "dense"])
def test_dense_parts_are_made_by_the_callers_factory(layout):
    made = []

    def factory(weight, bias):
        made.append(weight.numel())
        return lambda x: F.linear(x, weight, bias)

    weight = torch.zeros(128, 40)
    weight[:64, :7] = 1
    x = torch.randn(3, 40)
    close(prepare(weight, None, layout, factory)(x), x, weight, None)
    whole = weight.numel()
    assert sum(made) == whole if layout == "dense" else 64 * 7 <= sum(made) < whole / 2


def test_rows_with_equal_supports_come_together():
    torch.manual_seed(1)
    weight = pruned("shuffled", 256, 96, 0.1, torch.float64)
    plan, _ = plan_groups(weight)
    assert plan.order is not None and plan.size == 64
    supports = (weight != 0)[plan.order].split(64)
    assert all((part == part[0]).all() for part in supports)
    together = sum(map(len, plan.columns))
    assert together == sum(int(part[0].sum()) for part in supports)


@pytest.mark.parametrize("layout", ["gathered", "grouped", "smaller"])
@pytest.mark.parametrize("kept", [1, 63, 64, 128])
def test_outputs_that_are_cut_away_are_the_bias(layout, kept):
    torch.manual_seed(1)
    weight = torch.zeros(200, 30)
    weight[torch.randperm(200)[:kept]] = torch.randn(30)
    bias, x = torch.randn(200), torch.randn(5, 30)
    product = prepare(weight, bias, layout)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        close(product(x), x, weight, bias)
    finally:
        torch.use_deterministic_algorithms(False)


def test_outputs_without_inputs_are_left_out_of_the_order():
    used = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]).bool()
    order = order_by_support(used).tolist()
    assert sorted(order) == [0, 2, 3] and abs(order.index(0) - order.index(3)) == 1


def test_a_slower_layout_is_never_chosen():
    torch.manual_seed(1)
    for rows in (1, 8, 64):
        for density in (0.03, 0.25, 0.5):
            for pattern in ("single", "64x1"):
                weight = pruned(pattern, 256, 256, density, torch.float32)
                choice = fastest(weight, rows=rows, budget=0.01)
                if choice.seconds:
                    assert choice.seconds[choice.name] <= choice.seconds["dense"]
                else:
                    assert choice.name == "dense"
                x = torch.randn(rows, 256)
                close(choice.product(x), x, weight, None)


@pytest.mark.parametrize(
    "dense, csr, chosen",
    [
        ([4.0, 4.0, 4.0], [2.0, 2.0, 2.0], "csr"),
        ([4.0, 4.0, 4.0], [3.9, 3.9, 3.9], "dense"),  # within the margin
        ([4.0, 4.0, 4.0], [5.0, 1.0, 5.0], "dense"),  # one lucky round
        ([9.0, 4.0, 9.0], [4.0, 4.0, 4.0], "dense"),  # dense was disturbed
    ],
)
def test_sparse_is_chosen_only_where_it_is_clearly_faster(dense, csr, chosen):
    assert timing._winner({"dense": dense, "csr": csr}, 1.05) == chosen


def test_hopeless_layouts_are_not_timed(monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(timing, "_measure", pytest.fail)
    weight = torch.randn(128, 128)
    assert fastest(weight).name == "dense"
    assert fastest(weight * (torch.rand(128, 128) < 0.5)).name == "dense"
    assert fastest(torch.zeros(128, 128)).name != "dense"
    assert fastest(torch.zeros(128, 128), candidates=("dense",)).name == "dense"


def test_a_layout_that_the_machine_lacks_is_passed_over(monkeypatch):
    def missing(*given):
        raise RuntimeError("not implemented for this processor")

    monkeypatch.setattr(module, "Csr", missing)
    weight = pruned("single", 128, 128, 0.05, torch.float32)
    assert "csr" not in fastest(weight).seconds
    with pytest.raises(RuntimeError, match="not implemented"):
        prepare(weight, None, "csr")


def test_one_candidate_is_taken_unmeasured(monkeypatch):
    monkeypatch.setattr(timing, "_measure", pytest.fail)
    choice = fastest(torch.eye(64), candidates=("csr",))
    assert choice.name == "csr" and choice.seconds == {}


def test_timing_draws_nothing_from_the_global_generator():
    weight = torch.eye(128)
    state = torch.get_rng_state()
    assert fastest(weight).seconds
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: prepare(torch.ones(2, 2), None, "coo"), "layout coo: is none of dense"),
        (lambda: fastest(torch.ones(2, 2), candidates=("csr", "x")), "layout x: is none"),
        (lambda: fastest(torch.ones(2, 2), candidates=()), r"layout \(none\): is none"),
        (lambda: prepare(torch.ones(2, 2), None, "semi_structured"), "CUDA only"),
        (lambda: prepare(torch.ones(2, 2).half(), None, "csr"), "torch.float16"),
        (lambda: prepare(torch.ones(2, 3))(torch.ones(1, 4)), "input: 4 numbers in a row"),
        (lambda: prepare([[1.0]]), "weight: must be a tensor, not a list"),
        (lambda: prepare(torch.ones(2, 2), [1.0]), "bias: must be a tensor, not a list"),
        (lambda: fastest(torch.ones(2, 2), rows="3"), "rows: '3' is not valid"),
        (lambda: prepare(torch.ones(2)), r"weight: must be .* of shape \(2,\)"),
        (lambda: prepare(torch.ones(2, 3), torch.ones(3)), r"bias: must be \[2\]"),
        (lambda: ByRows(torch.ones(2, 3), candidates=("bsr4",)), "layout bsr4"),
        (lambda: ByRows(torch.ones(2, 3).half(), candidates=("bsr",)), "torch.float16"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(SparsityError, match=message):
        call()


def test_semi_structured_weights_are_checked(monkeypatch):
    class OnGPU:
        """What is asked of a weight, as if on a GPU."""

        device = torch.device("cuda")

        def __init__(self, weight):
            self.weight, self.shape, self.dtype = weight, weight.shape, weight.dtype

        def unflatten(self, *sizes):
            return self.weight.unflatten(*sizes)

    kept = torch.tensor([1, 0, 1, 0]).repeat(64, 16)
    assert why_not(OnGPU(kept.half()), "semi_structured") is None
    assert "multiple of 64" in why_not(OnGPU(kept[:, :60].half()), "semi_structured")
    kept[3, 1] = 1
    assert "two zeros" in why_not(OnGPU(kept.half()), "semi_structured")
    assert "torch.float32" in why_not(OnGPU(kept.float()), "semi_structured")


def test_layouts_are_chosen_by_the_number_of_rows(monkeypatch):
    asked = []

    def choose(facts, rows, *rest):
        asked.append(rows)
        name = "csr" if rows > 1 else "gathered"
        return module.Choice(name, facts.product(name), {})

    monkeypatch.setattr(module, "_choose", choose)
    weight, bias = pruned("single", 40, 30, 0.3, torch.float64), torch.randn(40).double()
    product = ByRows(weight, bias)
    for rows in (0, 1, 5, 7, 1, 400, 33):
        x = torch.randn(rows, 30, dtype=torch.float64)
        close(product(x), x, weight, bias)
    assert len(asked) == len(set(asked)) == 4
    assert set(product.names.values()) == {"csr", "gathered"}
    again = ByRows(weight, bias, names=product.names)
    close(again(x), x, weight, bias)
    assert len(asked) == 4
    forced = ByRows(weight, bias, candidates=("bsr",))
    close(forced(x), x, weight, bias)
    assert set(forced.names.values()) == {"bsr"} and len(asked) == 4
