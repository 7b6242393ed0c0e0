"""Blocks of a weight, and which of them go: against loops that are plain to see."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.sparsity.errors import SparsityError
from src.sparsity.pruning import allocation
from src.sparsity.pruning.allocation import allocate, check_reachable, lowest
from src.sparsity.pruning.patterns import parse_pattern

FEW = settings(max_examples=60, deadline=None)
BLOCKS = ["1x1", "4x1", "1x4", "2x3", "5x5", "16x1", "channelx1", "1xchannel"]
GROUPS = ["2:4", "1:4", "3:4", "1:2", "4:8", "5:7", "1:70"]
patterns = st.sampled_from(BLOCKS + GROUPS)
shapes = st.tuples(st.integers(1, 13), st.integers(1, 17))


def tied(shape, seed, levels=5, dtype=torch.float64):
    """Scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, shape, generator=generator).to(dtype)


def plain_blocks(text, shape):
    """Element positions of each block, by loops."""
    rows, columns = shape
    if ":" in text:
        width = int(text.split(":")[1])
        return [
            [(r, c) for c in range(start, min(start + width, columns))]
            for r in range(rows)
            for start in range(0, columns, width)
        ]
    high, wide = text.split("x")
    high = rows if high == "channel" else int(high)
    wide = columns if wide == "channel" else int(wide)
    return [
        [
            (r, c)
            for r in range(top, min(top + high, rows))
            for c in range(left, min(left + wide, columns))
        ]
        for top in range(0, rows, high)
        for left in range(0, columns, wide)
    ]


def plain_removed(text, block, scores):
    """The elements that go when ``block`` goes."""
    if ":" not in text:
        return block
    n, m = map(int, text.split(":"))
    return sorted(block, key=lambda at: (float(scores[at]), at))[: n * len(block) // m]


@FEW
@given(patterns, shapes, st.integers(0, 999), st.sampled_from(["mean", "sum", "max"]))
@example("3:70", (2, 150), 1, "sum")  # the first of many equal ones
def test_scores_and_sizes_equal_plain_loops(text, shape, seed, reduce):
    pattern, scores = parse_pattern(text), tied(shape, seed)
    blocks = plain_blocks(text, shape)
    found, sizes = pattern.block_scores(scores, reduce), pattern.block_sizes(shape)
    assert len(found) == len(sizes) == len(blocks)
    for block, score, size in zip(blocks, found, sizes):
        removed = [float(scores[at]) for at in plain_removed(text, block, scores)]
        assert int(size) == len(removed)
        if removed:
            plain = max(removed) if reduce == "max" else sum(removed)
            plain /= len(removed) if reduce == "mean" else 1
            assert float(score) == pytest.approx(plain, abs=1e-12)
    assert pattern.max_sparsity(shape) == int(sizes.sum()) / (shape[0] * shape[1])


@FEW
@given(patterns, shapes, st.integers(0, 999))
@example("3:70", (2, 150), 1)
def test_expanding_removes_what_plain_loops_remove(text, shape, seed):
    pattern, scores = parse_pattern(text), tied(shape, seed)
    blocks = plain_blocks(text, shape)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(blocks), generator=generator) < 0.5
    plain = torch.ones(shape, dtype=torch.bool)
    for block, gone in zip(blocks, chosen):
        for at in plain_removed(text, block, scores) if gone else []:
            plain[at] = False
    mask = pattern.expand(chosen, scores)
    assert torch.equal(mask, plain)
    sizes = pattern.block_sizes(shape)
    assert int((~mask).sum()) == int(sizes[chosen].sum())
    assert torch.equal(pattern.removed_blocks(mask), chosen & (sizes > 0))


@pytest.mark.parametrize("text", ["4x1", "3:4"])
def test_the_largest_of_a_smaller_block_may_be_below_zero(text):
    scores = -1 - tied((5, 5), 1)
    found = parse_pattern(text).block_scores(scores, "max")
    for block, score in zip(plain_blocks(text, (5, 5)), found):
        removed = plain_removed(text, block, scores)
        assert not removed or float(score) == max(float(scores[at]) for at in removed)


def test_a_convolution_is_seen_as_outputs_by_positions_by_channels():
    pattern = parse_pattern("4x1")
    weight = torch.arange(2 * 3 * 2 * 5).view(2, 3, 2, 5)
    matrix = pattern.matrix(weight)
    for i, h, w, c in [(0, 0, 0, 1), (1, 1, 4, 2), (0, 1, 2, 0)]:
        assert matrix[i, (h * 5 + w) * 3 + c] == weight[i, c, h, w]
    for shape in [(4, 6), (4, 6, 3), (4, 6, 3, 2), (4, 6, 3, 2, 2)]:
        weight = torch.randn(shape)
        matrix = pattern.matrix(weight)
        assert matrix.shape == (4, weight[0].numel())
        assert torch.equal(pattern.tensor(matrix, shape), weight)
    with pytest.raises(SparsityError, match="two dimensions"):
        pattern.matrix(torch.zeros(3))


@pytest.mark.parametrize(
    "text",
    ["", "4", "4x", "0x1", "4x0", "4:4", "4:2", "0:4", "axb", "channelx4", "4xchannel", 124],
)
def test_unknown_patterns_are_refused(text):
    with pytest.raises(SparsityError, match=f"pattern: '{text}'"):
        parse_pattern(text)


@FEW
@given(patterns, st.lists(shapes, min_size=1, max_size=4), st.data())
def test_allocation_reaches_the_target_to_one_block_under_caps(text, sizes_of, data):
    """In two prunes and in one; what is gone stays gone."""
    pattern = parse_pattern(text)
    seed = data.draw(st.integers(0, 999))
    cap = data.draw(st.floats(0.05, 0.99))
    domain = data.draw(st.sampled_from(["global", "local"]))
    target = data.draw(st.floats(0, 0.99))
    scores = [pattern.block_scores(tied(s, seed + i)) for i, s in enumerate(sizes_of)]
    sizes = [pattern.block_sizes(s) for s in sizes_of]
    elements = [rows * columns for rows, columns in sizes_of]
    none = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    limit = min(cap, pattern.limit)
    try:
        check_reachable(pattern, sizes_of, target, cap, domain)
    except SparsityError as error:
        assert f"target_sparsity: {target}" in str(error)
        return
    if target == pattern.limit:  # N/M of ragged rows: the last test
        return
    first = allocate(scores, sizes, none, elements, target / 2, cap, domain)
    second = allocate(scores, sizes, first, elements, target, cap, domain)
    assert not any(bool((a & b).any()) for a, b in zip(first, second))
    at_once = allocate(scores, sizes, none, elements, target, cap, domain)
    together = [a | b for a, b in zip(first, second)]
    for gone in (together, at_once):
        removed = [int(size[g].sum()) for size, g in zip(sizes, gone)]
        largest = max(int(size.max()) for size in sizes)
        for count, size, number in zip(removed, sizes, elements):
            assert count < limit * number + max(1, int(size.max()))
        if domain == "global":
            removed, elements_of = [sum(removed)], [sum(elements)]
            blocks = [largest]
        else:
            elements_of, blocks = elements, [int(size.max()) for size in sizes]
        for count, number, block in zip(removed, elements_of, blocks):
            assert abs(count - target * number) < max(1, block)
    whole = sum(int(cap * number) for number in elements)
    if text == "1x1" and target * sum(elements) < whole and domain == "global":
        assert all(torch.equal(a, b) for a, b in zip(together, at_once))


@FEW
@given(st.lists(shapes, min_size=1, max_size=4), st.data())
def test_what_passes_a_cap_goes_to_other_layers(sizes_of, data):
    """Single weights: exactly the greedy choice under whole caps, ties included."""
    seed = data.draw(st.integers(0, 999))
    cap = data.draw(st.floats(0.1, 0.9))
    scores = [tied(s, seed + i).flatten() / (i + 1) for i, s in enumerate(sizes_of)]
    elements = [len(s) for s in scores]
    caps = [int(cap * number + 1e-6) for number in elements]
    goal = data.draw(st.integers(0, sum(caps)))
    target = goal / sum(elements)
    order = sorted(
        (float(value), layer, position)
        for layer, layer_scores in enumerate(scores)
        for position, value in enumerate(layer_scores)
    )
    plain = [torch.zeros(number, dtype=torch.bool) for number in elements]
    for _, layer, position in order:
        if sum(int(p.sum()) for p in plain) == goal:
            break
        if int(plain[layer].sum()) < caps[layer]:
            plain[layer][position] = True
    sizes = [torch.ones(number, dtype=torch.int64) for number in elements]
    none = [torch.zeros(number, dtype=torch.bool) for number in elements]
    found = allocate(scores, sizes, none, elements, target, cap, "global")
    assert all(torch.equal(a, b) for a, b in zip(found, plain))


@pytest.mark.parametrize("levels", [1, 3, 1000, None])
@pytest.mark.parametrize("ragged", [False, True])
def test_many_blocks_are_chosen_as_by_sorting(levels, ragged):
    generator = torch.Generator().manual_seed(3)
    number = allocation.SORTED + 12345
    if levels:
        scores = tied((number,), 0, levels, torch.float32)
    else:
        scores = torch.randn(number, generator=generator).exp()
    sizes = torch.randint(1, 5, (number,), generator=generator) if ragged else 4
    total = int(sizes.sum()) if ragged else 4 * number
    order = scores.argsort(stable=True)
    each = sizes[order] if ragged else torch.full((number,), sizes)
    used = each.cumsum(0)
    for share in (0, 1e-5, 0.1, 0.5, 0.97, 0.99999, 1):
        budget = int(share * total)
        found = {r: lowest(scores, sizes, budget, r) for r in ("down", "nearest", "up")}
        for rounding, chosen in found.items():
            count = int(chosen.sum())
            assert bool(chosen[order[:count]].all())
            taken = int(used[count - 1]) if count else 0
            after = int(each[count]) if count < number else 0
            if rounding == "down":
                assert taken <= budget and (not after or taken + after > budget)
            elif rounding == "up":
                assert taken >= budget and (not count or taken - each[count - 1] < budget)
            else:
                assert abs(taken - budget) <= 2


def test_a_target_above_the_caps_is_refused_with_the_largest_possible():
    with pytest.raises(SparsityError, match=r"0\.9 is more than 0\.5, the largest"):
        check_reachable(parse_pattern("2:4"), [(4, 8)], 0.9, 0.98)
    # 10 inputs are two groups of four and a rest, of two of which none may go
    with pytest.raises(SparsityError, match=r"0\.22 is more than 0\.2, the largest"):
        check_reachable(parse_pattern("1:4"), [(40, 10)], 0.22, 0.98)
    # two blocks a layer, of which one stays
    with pytest.raises(SparsityError, match=r"0\.9 is more than 0\.5, the largest"):
        check_reachable(parse_pattern("4x1"), [(8, 1)] * 50, 0.9, 0.98)
    check_reachable(parse_pattern("4x1"), [(8, 1)] * 50, 0.5, 0.98)
    # equal to the caps, which no layer can fill with whole blocks
    check_reachable(parse_pattern("4x1"), [(64, 33)] * 50, 0.9, 0.9)


@pytest.mark.parametrize("text", ["1x1", "4x1", "3x7"])
def test_a_target_equal_to_the_caps_is_reached_to_one_block(text):
    pattern, shape = parse_pattern(text), (64, 33)
    scores = [pattern.block_scores(tied(shape, i, 1000)) for i in range(50)]
    sizes = [pattern.block_sizes(shape)] * 50
    none = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    check_reachable(pattern, [shape] * 50, 0.9, 0.9)
    found = allocate(scores, sizes, none, [64 * 33] * 50, 0.9, 0.9)
    counts = [int(size[block].sum()) for size, block in zip(sizes, found)]
    block = int(sizes[0].max())
    assert abs(sum(counts) - 0.9 * 50 * 64 * 33) < block
    assert max(counts) < 0.9 * 64 * 33 + block


def test_caps_that_no_layer_can_fill_are_passed_by_the_last_weight():
    scores = [torch.tensor([1.0, 2.0, 3.0])] * 2
    sizes, none = [torch.ones(3, dtype=torch.int64)] * 2, [torch.zeros(3) > 0] * 2
    found = allocate(scores, sizes, none, [3, 3], 0.5, 0.5)
    assert sum(int(block.sum()) for block in found) == 3


def test_a_layer_beyond_a_lower_cap_gives_nothing_more():
    scores = [torch.arange(10.0), torch.arange(20.0, 30.0)]
    sizes = [torch.ones(10, dtype=torch.int64)] * 2
    past = [torch.arange(10) < 6, torch.arange(10) < 0]
    first, second = allocate(scores, sizes, past, [10, 10], 0.4, 0.4)
    assert not first.any() and second.tolist() == [True] * 2 + [False] * 8


def test_a_layer_never_goes_whole():
    """Even where the target asks for more than all layers can give."""
    scores = [torch.tensor([1.0, 2.0])] * 3 + [torch.arange(3.0, 40.0)]
    sizes = [torch.tensor([4, 4])] * 3 + [torch.ones(37, dtype=torch.int64)]
    none = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    *small, large = allocate(scores, sizes, none, [8, 8, 8, 37], 0.95, 0.96)
    assert [block.tolist() for block in small] == [[True, False]] * 3
    assert large.tolist() == [True] * 36 + [False]  # 0.96 of 37, to one block


@FEW
@given(st.sampled_from(GROUPS), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2))
def test_every_group_is_full_at_n_of_m(text, rows, groups, levels):
    """All weights equal, zeros included."""
    n, m = map(int, text.split(":"))
    pattern, shape = parse_pattern(text), (rows, groups * m)
    scores = tied(shape, 1, max(levels, 1)) + (levels == 0)
    sizes = pattern.block_sizes(shape)
    none = torch.zeros(len(sizes), dtype=torch.bool)
    number = rows * groups * m
    check_reachable(pattern, [shape], n / m, 0.98 if n / m < 0.98 else 0.99)
    (blocks,) = allocate([pattern.block_scores(scores)], [sizes], [none], [number], n / m, 0.99)
    mask = pattern.expand(blocks, scores)
    assert ((~mask).view(-1, m).sum(1) == n).all()


@FEW
@given(st.sampled_from(GROUPS), shapes)
def test_at_n_of_m_a_ragged_row_gives_all_it_may(text, shape):
    n, m = map(int, text.split(":"))
    pattern, scores = parse_pattern(text), tied(shape, 1)
    sizes = pattern.block_sizes(shape)
    none = torch.zeros(len(sizes), dtype=torch.bool)
    number = shape[0] * shape[1]
    if not sizes.any() and number * n >= m:
        with pytest.raises(SparsityError, match="more than 0, the largest"):
            check_reachable(pattern, [shape], n / m, 0.99)
        return
    check_reachable(pattern, [shape], n / m, 0.99)
    (blocks,) = allocate([pattern.block_scores(scores)], [sizes], [none], [number], n / m, 0.99)
    gone = ~pattern.expand(blocks, scores)
    full, rest = divmod(shape[1], m)
    assert (gone.sum(1) == full * n + n * rest // m).all()


def test_what_n_of_m_misses_in_ragged_rows_is_told(caplog):
    pattern = parse_pattern("2:4")
    check_reachable(pattern, [(8, 8)], 0.5, 0.98)
    assert not caplog.text
    check_reachable(pattern, [(8, 5)], 0.5, 0.98)
    assert "target_sparsity: 0.5: pattern 2:4 removes no more than 0.4 of 40" in caplog.text
    narrow, wide = [(8, 3)], [(8, 3), (8, 8)]
    for target in (0.2, 0.25):
        with pytest.raises(SparsityError, match=f"{target} is more than 0, the largest"):
            check_reachable(parse_pattern("1:4"), narrow, target, 0.98)
    with pytest.raises(SparsityError, match="0.25 is more than 0, the largest"):
        check_reachable(parse_pattern("1:4"), wide, 0.25, 0.98, "local")
    check_reachable(parse_pattern("1:4"), wide, 0.25, 0.98)
    assert "no more than 0.181818 of 88" in caplog.text
