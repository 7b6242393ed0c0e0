"""fairseq's optimizers of --amp, --fp16 and --bf16, once they are made."""

import torch
from fairseq.optim import FairseqOptimizer
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer

from ..modules.torch_private import foreach_copy_, foreach_zero_


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


class _CopiesAtOnce(FP16Optimizer):
    """fairseq's optimizer of float32 copies, which copies all weights in one operator.

    fairseq copies every gradient and every weight on its own: a quarter of a training
    step on a GPU, which waits for every operator to be called.
    """

    def prepare(self) -> None:
        """Find what of the float32 copies and of their gradients is whose."""
        if self.has_flat_params:
            (flat,) = self.fp32_params.values()
            sizes = [p.numel() for p in self.fp16_params]
            self._copies, self._gradients = (
                [part.view_as(p) for part, p in zip(x.split(sizes), self.fp16_params)]
                for x in (flat.detach(), flat.grad)
            )
        else:
            self._copies = [copy.detach() for copy in self.fp32_params]
            self._gradients = [copy.grad for copy in self.fp32_params]

    @torch.no_grad()
    def _sync_fp16_grads_to_fp32(self):
        if not self._needs_sync:
            return
        self._needs_sync = False
        pairs = list(zip(self._gradients, (p.grad for p in self.fp16_params)))
        present = [pair for pair in pairs if pair[1] is not None]
        if len(present) < len(pairs):
            foreach_zero_([own for own, grad in pairs if grad is None])
        if present:
            foreach_copy_(*map(list, zip(*present)))

    @torch.no_grad()
    def _sync_fp32_params_to_fp16(self):
        foreach_copy_([p.detach() for p in self.fp16_params], self._copies)


# fairseq writes the name into checkpoints, and refuses to go on with another
_CopiesAtOnce.__name__ = FP16Optimizer.__name__


def prepare(optimizer: FairseqOptimizer, common, device: str) -> None:
    """Mend the scale of an optimizer of --amp, speed up one of --fp16 or --bf16.

    Args:
        common: fairseq's common options.
        device: type of the device that trains.
    """
    if isinstance(optimizer, AMPOptimizer):
        unscale_once(optimizer, common, device)
    elif type(optimizer) is FP16Optimizer:
        optimizer.__class__ = _CopiesAtOnce
        optimizer.prepare()


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
