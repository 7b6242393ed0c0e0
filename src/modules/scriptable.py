"""The form in which TorchScript compiles modules: fairseq's own classes, with cut weights."""

from typing import Any, Dict, Optional

from fairseq.modules import LayerDropModuleList
from torch import nn

from ..connectivity.groups import ChannelGroup
from ..errors import UserError


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


def scriptable(module: nn.Module, known: Optional[Dict[int, nn.Module]] = None) -> nn.Module:
    """A module without channel groups that computes the same, of classes that TorchScript knows.

    Parameters are shared with ``module``, which stays as it is; updates of adapters are
    added to copies of their weights.

    Raises:
        UserError: channels are shrinking; their gates have no other form.
    """
    known = {} if known is None else known
    if id(module) not in known:
        if isinstance(module, ScriptForm):
            form = module.script_form()
        elif hasattr(module, "to_module"):  # an adapted layer
            form = scriptable(module.to_module())
        else:
            # all layers are there in inference
            dropping = isinstance(module, LayerDropModuleList)
            form = copy_as(module, nn.ModuleList if dropping else type(module))
        known[id(module)] = form
        for name, child in list(form._modules.items()):
            if isinstance(child, ChannelGroup):
                if child.gated:
                    raise UserError(
                        "torch.jit.script: a pruning stage is under way; give the model when "
                        "the stage is finished"
                    )
                del form._modules[name]
            elif child is not None:
                form._modules[name] = scriptable(child, known)
    return known[id(module)]
