"""Networks to prune, and their training."""

import importlib

import torch
from torch import nn

from src.sparsity.pruning.hooks import Pruning


def network(seed=0, width=10):
    """A convolution and two linear layers that no block divides."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 2), nn.Flatten(), nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 7)
    )


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 3, 3, generator=generator)
    return x, torch.randint(7, (6,), generator=generator)


def backward(model, seed):
    x, y = batch(seed)
    dtype = next(model.parameters()).dtype
    nn.functional.cross_entropy(model(x.to(dtype)), y).backward()


def start(model, seed=1, **settings):
    pruning = Pruning({"pruners": [settings]}, seed=seed)
    pruning.model = model
    pruning.on_train_begin()
    return pruning


def train(model, pruning, optimizer, steps, moments=True):
    for step in steps:
        pruning.on_step_begin(step)
        optimizer.zero_grad()
        backward(model, step)
        pruning.on_before_optimizer_step()
        optimizer.step()
        pruning.on_after_optimizer_step(optimizer if moments else None)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5, fused=True)


def removed(pruning):
    return {name: ~mask for name, mask in pruning.masks.items()}


def trained(steps, state=None, prune_type="snip_momentum", pattern="4x1", seed=1, **more):
    """Model, pruning and optimizer after ``steps``, going on from ``state``."""
    model = network()
    optimizer = adam(model)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    pruning = Pruning(
        {
            "pruners": [
                {"names": ["2"], "pattern": "1x1"},
                {"exclude_names": ["2"], "pattern": pattern},
            ],
            "prune_type": prune_type,
            "target_sparsity": 0.25,
            "start_step": 2,
            "end_step": 8,
            "update_frequency_on_step": 3,
            **more,
        },
        seed=seed,
    )
    pruning.model = model
    if state:
        pruning.load_state_dict(state["pruning"])
    pruning.on_train_begin()
    train(model, pruning, optimizer, steps)
    return model, pruning, optimizer


class Bert(nn.Module):
    """Named as BERT is, and as small as can be."""

    def __init__(self, width=16, layers=2):
        super().__init__()
        self.embeddings = nn.ModuleDict({"project": nn.Linear(width, width)})
        self.layer = nn.ModuleList()
        for _ in range(layers):
            names = ["query", "key", "value", "output"]
            block = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
            block["intermediate"] = nn.Linear(width, 2 * width)
            block["norm"] = nn.LayerNorm(2 * width)
            block["output_dense"] = nn.Linear(2 * width, width)
            self.layer.append(block)
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 3)

    def forward(self, x, labels):
        x = self.embeddings["project"](x)
        for block in self.layer:
            query, key, value = (block[n](x) for n in ("query", "key", "value"))
            mixed = (query @ key.transpose(1, 2) / 4).softmax(2) @ value
            x = x + block["output"](mixed)
            x = x + block["output_dense"](block["norm"](block["intermediate"](x)).relu())
        logits = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return nn.functional.cross_entropy(logits, labels)


def replicas(model, monkeypatch):
    """Two copies of a model as DataParallel makes them on two GPUs, here on the CPU."""

    def broadcast(tensors, devices, detach=False):
        tensors = [tensor.detach() if detach else tensor for tensor in tensors]
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    # the package's attribute of this name is the function
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", broadcast)
    return module.replicate(model, [0, 1], detach=not torch.is_grad_enabled())


def check_replicas(model, x, learning, monkeypatch):
    """Replicas compute what the model does, and its parameters learn from them."""
    with torch.set_grad_enabled(learning):
        expected = model(x)
        for replica in replicas(model, monkeypatch):
            result = replica(x)
            torch.testing.assert_close(result, expected)
            if learning:
                result.square().sum().backward(retain_graph=True)
    if learning:
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
