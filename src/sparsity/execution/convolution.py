"""A two-dimensional convolution that stores only its nonzero weights."""

from typing import Any, Callable, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SparsityError
from .products import compressed
from .stored import StoredWeight, recording, zero_held
from .timing import choose_among

CONVOLUTIONS = ("dense", "smaller", "csr")
# Shares of weights above which a layout cannot win.
_MOST = {"smaller": 0.95, "csr": 0.15}


class _Geometry:
    """Strides, padding, dilation and groups of a convolution."""

    def __init__(self, conv: nn.Conv2d):
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.kernel_size, self.mode = conv.kernel_size, conv.padding_mode
        self.sides = list(conv._reversed_padding_repeated_twice)
        left, right, top, bottom = self.sides
        # what the product itself pads; otherwise the input is padded ahead
        self.even = self.mode == "zeros" and left == right and top == bottom
        self.padding = (top, left) if self.even else (0, 0)

    def padded(self, x: Tensor) -> Tensor:
        if self.even:
            return x
        mode = "constant" if self.mode == "zeros" else self.mode
        return F.pad(x, self.sides, mode=mode)

    def dense(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        given = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(self.padded(x), weight, bias, *given)

    def unfolded(self, x: Tensor) -> Tensor:
        """Unfold a padded input ``[C, H, W]`` to ``[C*kh*kw, places]``."""
        if self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):
            return x.flatten(1)
        rest = self.dilation, self.padding, self.stride
        return F.unfold(x.unsqueeze(0), self.kernel_size, *rest)[0]

    def size(self, x: Tensor) -> Sequence[int]:
        """Height and width of the output for a padded input ``[..., H, W]``."""
        parts = x.shape[-2:], self.padding, self.dilation, self.kernel_size, self.stride
        return [
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, padding, dilation, kernel, stride in zip(*parts)
        ]


def _smaller(geometry: _Geometry, weight: Tensor, bias: Optional[Tensor]) -> Callable:
    """The convolution without output and input channels whose weights are all zero."""
    used = (weight != 0).any(3).any(2)
    kept, inputs = (used.any(d).nonzero().squeeze(1) for d in (1, 0))
    small = F.pad(weight[kept][:, inputs], (0, 0, 0, 0, 0, 0, 0, 1))
    inverse = kept.new_full((len(weight),), len(kept))
    inverse[kept] = torch.arange(len(kept), device=kept.device)
    all_inputs, all_outputs = len(inputs) == weight.shape[1], len(kept) == len(weight)
    if all_outputs:
        small = small[:-1].contiguous()
    shape = (1, -1, 1, 1)

    def product(x):
        x = x if all_inputs else x.index_select(1, inputs)
        if all_outputs:
            return geometry.dense(x, small, bias)
        y = geometry.dense(x, small, None).index_select(1, inverse)
        return y if bias is None else y.add_(bias.view(shape))

    return product


def _csr(geometry: _Geometry, weight: Tensor, bias: Optional[Tensor]) -> Callable:
    """The stored weights in CSR, times the unfolded input."""
    matrix = compressed(weight.flatten(1))
    beta = 0 if bias is None else 1
    bias = (weight.new_zeros(len(weight)) if bias is None else bias).unsqueeze(1)

    def product(x):
        x = geometry.padded(x)
        y = x.new_empty(len(x), len(weight), *geometry.size(x))
        for image, place in zip(x, y.flatten(2)):
            columns = geometry.unfolded(image)
            torch.addmm(bias, matrix, columns, beta=beta, out=place)
        return y

    return product


class _Products:
    """The layouts of one weight, and the choice for inputs of about one size."""

    def __init__(self, geometry, weight, bias, candidates, names: Dict[int, str]):
        self.given = geometry, weight, bias
        self.outputs = len(weight)
        self.candidates, self.names = candidates, names
        self.made: Dict[str, Callable] = {}
        channels = (weight != 0).any(3).any(2)
        kept = channels.any(1).float().mean() * channels.any(0).float().mean()
        density = float(torch.count_nonzero(weight)) / max(1, weight.numel())
        self.shares = {"smaller": float(kept), "csr": density}

    def make(self, name: str) -> Callable:
        if name not in self.made:
            geometry, weight, bias = self.given
            if name == "dense":
                self.made[name] = lambda x: geometry.dense(x, weight, bias)
            else:
                self.made[name] = (_smaller if name == "smaller" else _csr)(*self.given)
        return self.made[name]

    def usable(self, name: str) -> bool:
        geometry, weight, _ = self.given
        if name == "dense":
            return True
        if geometry.groups > 1 or self.shares["csr"] == 0:
            return False
        return name == "smaller" or (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.float64)
            and torch.backends.mkl.is_available()
        )

    def choose(self, x: Tensor) -> str:
        """The layout for inputs as large as ``x [B, C, H, W]``."""
        key = x[:, 0].numel().bit_length() // 2
        if key not in self.names:
            self.names[key] = self._chosen(x)
            self.made = {k: v for k, v in self.made.items() if k in self.names.values()}
        return self.names[key]

    def _chosen(self, x: Tensor) -> str:
        if len(self.candidates) == 1:
            name = self.candidates[0]
            return name if self.usable(name) else "dense"
        names = [
            name
            for name in CONVOLUTIONS
            if name in (*self.candidates, "dense")
            and self.usable(name)
            and self.shares.get(name, 0) <= _MOST.get(name, 1)
        ]
        return choose_among({name: self.make(name) for name in names}, x.detach()).name

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return self.make("dense")(x)
        return self.make(self.choose(x))(x)


class SparseConv2d(StoredWeight):
    """``nn.Conv2d`` that stores and trains only the nonzero weights.

    In evaluation without gradients the fastest of some layouts is used (dense, channels
    cut away, compressed rows), chosen by a short measurement at the first input of about
    that size. Training multiplies with the dense weight, made anew each time.
    Convolutions with groups are dense ones.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
        padding_mode, device, dtype: as of ``nn.Conv2d``. No weight is stored to begin
            with: load a state dict, or use :meth:`from_dense`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device=None,
        dtype=None,
    ):
        given = in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        conv = nn.Conv2d(*given, False, padding_mode, device="meta")
        super().__init__(conv.weight.shape, bias, device, dtype)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding"):
            setattr(self, name, getattr(conv, name))
        self.dilation, self.groups = conv.dilation, conv.groups
        self.padding_mode = padding_mode
        self._geometry = _Geometry(conv)
        self._candidates: Sequence[str] = CONVOLUTIONS

    @classmethod
    def from_dense(cls, conv: nn.Conv2d) -> "SparseConv2d":
        """Store the nonzero weights of ``conv``, which is left unchanged."""
        zero_held(conv)
        new = cls(**_arguments(conv), device=conv.weight.device, dtype=conv.weight.dtype)
        new.store(conv.weight, conv.bias)
        return new.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """An ``nn.Conv2d`` with exactly these weights."""
        given = {"device": self.values.device, "dtype": self.values.dtype}
        conv = nn.utils.skip_init(nn.Conv2d, **_arguments(self), **given)  # draws nothing
        return self.give(conv)

    def force(self, layout: Optional[str]) -> None:
        """Use this layout in evaluation without timing; None: time them again.

        A convolution with groups, or without weights, stays dense.

        Raises:
            SparsityError: none of :data:`CONVOLUTIONS`.
        """
        if layout is not None and layout not in CONVOLUTIONS:
            raise SparsityError(f"layout {layout}: is none of {', '.join(CONVOLUTIONS)}")
        self._candidates = CONVOLUTIONS if layout is None else (layout,)
        self._names, self._product = {}, None

    def optimize(self, x: Tensor) -> str:
        """Choose the layout for inputs as large as ``x [B, C, H, W]``; its name."""
        with torch.no_grad():
            return self.constant_product(self._make).choose(x)

    def _make(self) -> _Products:
        with torch.no_grad():
            bias = None if self.bias is None else self.bias.detach()
            return _Products(self._geometry, self.weight, bias, self._candidates, self._names)

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]`` or ``[C, H, W]``, as of ``nn.Conv2d``."""
        if recording():
            return self._geometry.dense(input, self.weight, self.bias)
        if torch.compiler.is_compiling():  # no graph holds layouts and what chooses them
            return torch.compiler.disable(self.forward)(input)
        if not self.is_constant(input) or torch.is_autocast_enabled(input.device.type):
            return self._geometry.dense(input, self.weight, self.bias)
        product = self.constant_product(self._make)
        return product(input) if input.dim() == 4 else product(input.unsqueeze(0))[0]

    def extra_repr(self) -> str:
        text = nn.Conv2d.extra_repr(self)  # type: ignore[arg-type]  # it has what that asks for
        return text if self.bias is None else f"{text}, bias=True"

    @property
    def output_padding(self) -> tuple:
        return (0, 0)  # what nn.Conv2d's text asks for


def _arguments(conv) -> dict:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {
        **{name: getattr(conv, name) for name in names},
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
    }
