"""The form in which TorchScript compiles modules: fairseq's own classes, with cut weights."""

from typing import Any, Dict, Optional

from fairseq.modules import LayerDropModuleList
from torch import nn


class ScriptForm:
    """Mixin of modules that ``torch.jit.script`` compiles in another form.

    Attributes:
        script_class: the class of that form, which TorchScript understands.
    """

    script_class: type

    def script_form(self) -> nn.Module:
        """The same module as a :attr:`script_class`; children are converted later."""
        return copy_as(self, self.script_class)

    def __prepare_scriptable__(self) -> nn.Module:  # asked for by torch.jit.script
        return scriptable(self)


def copy_as(module: nn.Module, kind: type, **attributes: Any) -> nn.Module:
    """A module of another class with the same parameters, buffers, children and attributes."""
    copied = kind.__new__(kind)
    for name, value in module.__dict__.items():
        copied.__dict__[name] = dict(value) if isinstance(value, dict) else value
    copied.__dict__.update(attributes)
    return copied


def scriptable(module: nn.Module) -> nn.Module:
    """A module without channel groups that computes the same, of classes that TorchScript knows.

    Parameters are shared with ``module``, which stays as it is; updates of adapters are
    added to copies of their weights. A module whose ``script_form()`` is None, as of channel
    groups, is left out.

    Raises:
        PruningError: channels are shrinking; their gates have no other form.
    """
    return _convert(module, {})


def _convert(module: nn.Module, known: Dict[int, tuple]) -> Optional[nn.Module]:
    """The form of a module and of all within; ``known`` keeps modules alive beside theirs."""
    if id(module) not in known:
        if hasattr(module, "script_form"):
            form = module.script_form()
        elif hasattr(module, "to_module"):  # an adapted layer
            form = scriptable(module.to_module())
        else:
            # all layers are there in inference
            dropping = isinstance(module, LayerDropModuleList)
            form = copy_as(module, nn.ModuleList if dropping else type(module))
        known[id(module)] = module, form
        children = {} if form is None else form._modules
        for name, child in list(children.items()):
            if child is not None:
                children[name] = _convert(child, known)
                if children[name] is None:
                    del children[name]
    return known[id(module)][1]
