"""Layer-wise relevance propagation as a modified gradient.

Inside :func:`relevance_rules` a model computes what it always does, but its backward
pass gives, at every activation a, a modified gradient δ̃ such that a·δ̃ is the relevance
of a for the value that is differentiated (AttnLRP: Achtibat et al., arXiv 2402.05602):

- linear layers and residual sums: the ε-rule, R_i = Σ_j x_i w_ji R_j / (z_j + ε sign z_j);
- layer normalization: its deviation σ counts as a constant;
- activation functions: relevance passes unchanged, δ̃ is multiplied by φ(x)/x;
- products of two activations (queries with keys, attention weights with values): half
  to each;
- softmax: its Jacobian, R_i = x_i (R_i - s_i Σ_j R_j).

Biases keep the relevance that is due to them, and softmax, which is not a sum of its
inputs' shares, keeps some as well. ``attention="values"`` gives all of it to the values
(Ali et al., arXiv 2202.07304): then nothing is kept but by biases, and queries and keys
have none.
"""

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer_norm import WeightedLayerNorm
from .multihead_attention import SRPMultiheadAttention
from .srp_layer import GatedActivation, SRPDecoderLayer, SRPEncoderLayer

EPSILON = 1e-6


class _WithSlope(torch.autograd.Function):
    """``value``, whose gradient by ``x`` is ``slope`` by definition."""

    @staticmethod
    def forward(ctx, x, value, slope):
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def _ratio(numerator: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """numerator / (x + ε sign x), 0 where that divides by 0."""
    below = torch.where(x < 0, x - epsilon, x + epsilon)
    return torch.where(below == 0, 0.0, numerator / torch.where(below == 0, 1.0, below))


def _stabilized(z: Tensor, epsilon: float) -> Tensor:
    """A sum z of contributions, from which ε absorbs a little relevance."""
    if not (epsilon and z.requires_grad):
        return z
    constant = z.detach()
    return _WithSlope.apply(z, constant, _ratio(constant, constant, epsilon))


class _Half(torch.autograd.Function):
    """x, with half of the gradient: a factor's share of a product's relevance."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(_Half.apply(a), _Half.apply(b))


def _softmax(scores: Tensor) -> Tensor:
    return F.softmax(scores, dim=-1)


def _attention_rule(module: SRPMultiheadAttention, attention: str) -> Callable:
    def attend(q, k, v, mask):
        if attention == "values":
            q, k = q.detach(), k.detach()
        scores = _product(q * module.scaling, k.transpose(-2, -1))
        weights = _softmax(scores if mask is None else scores + mask)
        if attention == "values":
            return torch.matmul(weights, v), weights
        return _product(weights, v), weights

    return attend


def _norm_rule(module: WeightedLayerNorm) -> Callable:
    def normalize(x):
        group = module.group
        count = group.width if module.weighted else group.original_width
        mean = x.sum(-1, keepdim=True) / count
        centred = x - mean
        squares = centred.square().sum(-1, keepdim=True)
        variance = (squares + mean.square() * (count - group.width)) / count
        scale = torch.rsqrt(variance + module.eps).detach()
        return centred * scale * module.weight + module.bias

    return normalize


def _activation_rule(function: Callable, epsilon: float) -> Callable:
    def activation(x):
        constant = x.detach()
        value = function(constant)
        return _WithSlope.apply(x, value, _ratio(value, constant, epsilon))

    return activation


@contextmanager
def _in_place_of(module: nn.Module, name: str, function: Callable):
    """``module.<name>`` is ``function`` for a while."""
    missing = object()
    before = module.__dict__.get(name, missing)
    module.__dict__[name] = function  # ahead of methods and submodules
    try:
        yield
    finally:
        if before is missing:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


def is_half(model: nn.Module) -> bool:
    """Whether weights are in half precision, in which relevance would be lost."""
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())


@contextmanager
def relevance_rules(model: nn.Module, epsilon: float = EPSILON, attention: str = "split"):
    """Let the forward passes within have relevance for a gradient.

    Args:
        model: an SRP model in evaluation mode, with open gates, in float32 or float64.
        epsilon: stabilises divisions; 0 absorbs nothing.
        attention: ``split`` between weights and values, or all to the ``values``.
    """
    with ExitStack() as swaps:

        def swap(module, name, function):
            swaps.enter_context(_in_place_of(module, name, function))

        for module in model.modules():
            if isinstance(module, WeightedLayerNorm):
                swap(module, "normalize", _norm_rule(module))
            elif isinstance(module, SRPMultiheadAttention):
                rule = _attention_rule(module, attention)
                swap(module, "_attention_with_weights", rule)
                swap(module, "_attention", lambda *a, rule=rule: rule(*a)[0])
            elif isinstance(module, (SRPEncoderLayer, SRPDecoderLayer)):
                rule = _activation_rule(module.activation_fn.function, epsilon)
                swap(module, "activation_fn", GatedActivation(rule, module.ffn))
            elif isinstance(module, nn.Linear):
                hook = module.register_forward_hook(
                    lambda _, inputs, output: _stabilized(output, epsilon)
                )
                swaps.callback(hook.remove)
            if hasattr(module, "residual_connection"):
                add = module.residual_connection
                swap(
                    module,
                    "residual_connection",
                    lambda *a, add=add: _stabilized(add(*a), epsilon),
                )
        yield


def gold_relevance(
    model: nn.Module, inputs: Mapping[str, Any], target: Tensor, padding_idx: int, **rules
) -> Tensor:
    """The gold tokens' logits, summed; differentiate it for relevance.

    Args:
        inputs: arguments of the model.
        target: gold tokens, ``[B, T]``; padding is left out.
        rules: options of :func:`relevance_rules`.
    """
    with relevance_rules(model, **rules):
        logits = model(**inputs)[0]
    gold = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return gold[target.ne(padding_idx)].sum()
