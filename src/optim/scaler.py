"""The loss scale of --amp."""

import torch
from fairseq.optim.amp_optimizer import AMPOptimizer


class _Scaler(torch.amp.GradScaler):
    """A scaler that knows an optimizer under fairseq's name and under torch's.

    fairseq unscales the gradients of torch's optimizer before it clips them and then
    steps its own wrapper of that optimizer: to torch these are two, and it would divide
    the gradients by the scale a second time.
    """

    def __init__(self, wrapper, **options):
        super().__init__(**options)
        self._wrapper = wrapper

    def unscale_(self, optimizer):
        same = optimizer is self._wrapper.optimizer
        super().unscale_(self._wrapper if same else optimizer)


def unscale_once(optimizer: AMPOptimizer, common, device: str) -> None:
    """Give fairseq's optimizer of --amp a scaler that unscales gradients once.

    Args:
        common: fairseq's common options, of which --fp16-init-scale and
            --amp-scale-window say how the scale begins and grows.
        device: type of the device that trains.
    """
    window = {} if common.amp_scale_window is None else {"growth_interval": common.amp_scale_window}
    optimizer._grad_scaler = _Scaler(
        optimizer.fp32_optimizer, device=device, init_scale=common.fp16_init_scale, **window
    )
