"""A pretended GPU: tensors that say they are on ``cuda:0`` and compute on the CPU.

Where there is no GPU this shows what a GPU would refuse: tensors of two devices in one
operator, and memory that Python can't reach. Values, gradients and precisions are real,
computed by the CPU's operators. What is CUDA's own it does not show: its kernels and their
rounding, streams, memory, NCCL.
"""

import contextlib
from typing import Any, Optional

import torch
from fairseq.logging import metrics
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data._utils import pin_memory

CUDA = torch.device("cuda", 0)
# CUDA's operators take these arguments from either device, too.
_COPIES = ("aten::copy_", "aten::set_")
_INDEXES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class OnDevice(Tensor):
    """A tensor of the pretended GPU, around one on the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        with torch.inference_mode(False):
            made = Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                layout=inner.layout,
                device="cpu",  # what autograd and autocast go by
            )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor):
        super().__init__()

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    def __format__(self, spec):
        return format(self.inner.item() if self.inner.dim() == 0 else repr(self), spec)

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __deepcopy__(self, memo):
        made = OnDevice(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made)

    def get_device(self):
        return 0

    def data_ptr(self):
        return self.inner.data_ptr()

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors, meta, size, stride):
        return OnDevice(tensors["inner"])

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in _COPIES:
            for tensor in tree_leaves((args, kwargs)):
                _check_device(name, tensor)
        out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if name == "aten::_local_scalar_dense":
            return out
        wrapped = tree_map(_wrap, out)
        aliases = any(r.alias_info is not None for r in func._schema.returns)
        if aliases and not torch.is_inference_mode_enabled():
            return return_and_correct_aliasing(func, args, kwargs, wrapped)
        return wrapped


def _check_device(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or isinstance(value, OnDevice) or value.dim() == 0:
        return
    if name in _INDEXES and value.dtype in (torch.int64, torch.bool):
        return
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"cuda:0 and cpu! ({name}, {tuple(value.shape)})"
    )


def unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _wrap(value: Any) -> Any:
    plain = isinstance(value, Tensor) and not isinstance(value, OnDevice)
    return OnDevice(value) if plain else value


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return OnDevice(x.clone())

    @staticmethod
    def backward(ctx, grad):
        return unwrap(grad)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return unwrap(x).clone()

    @staticmethod
    def backward(ctx, grad):
        return _wrap(grad)


def to_device(value: Any) -> Any:
    plain = isinstance(value, Tensor) and not isinstance(value, OnDevice)
    return _ToDevice.apply(value) if plain else value


def to_host(value: Any) -> Any:
    return _ToHost.apply(value) if isinstance(value, OnDevice) else value


def _device_of(value: Any) -> Optional[torch.device]:
    if type(value) is int:
        return CUDA
    if isinstance(value, (str, torch.device)):
        with contextlib.suppress(RuntimeError):  # a string may be something else
            return torch.device(value)
    return None


class _Calls(TorchFunctionMode):
    """Sends calls that name a device to where tensors of that device are made."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch._C._nn._parse_to or func is Tensor.pin_memory:
            return args[0] if func is Tensor.pin_memory else func(*args, **kwargs)
        if func is Tensor.cuda:
            return to_device(args[0])
        if func is Tensor.cpu:
            return to_host(args[0])
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.type_as:
            return self._to(*args)
        if func is Tensor.tolist:
            return func(unwrap(args[0]))
        if func is Tensor.numpy and isinstance(args[0], OnDevice):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.new and isinstance(args[0], OnDevice):
            return to_device(func(*map(unwrap, args), **kwargs))
        if func == Tensor.data.__set__:
            return self._set_data(*args)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        there = _device_of(kwargs["device"]).type == "cuda"
        kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if not there:
            return tree_map(to_host, func(*args, **kwargs))
        learned = kwargs.pop("requires_grad", False)
        made = tree_map(to_device, func(*args, **kwargs))
        return made.requires_grad_() if learned else made

    @staticmethod
    def _to(tensor, *args, **kwargs):
        kwargs.pop("non_blocking", None)
        rest = [a for a in args if a is not None and not isinstance(a, bool)]
        device = _device_of(kwargs.pop("device", None))
        if rest and isinstance(rest[0], Tensor):
            device, rest[0] = rest[0].device, rest[0].dtype
        elif rest and _device_of(rest[0]) is not None:
            device = _device_of(rest.pop(0))
        if device is not None:
            tensor = to_device(tensor) if device.type == "cuda" else to_host(tensor)
        return Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor

    @staticmethod
    def _set_data(tensor, value):
        if isinstance(tensor, OnDevice) != isinstance(value, OnDevice):
            other = OnDevice(value.inner) if isinstance(value, OnDevice) else value.detach()
            torch.utils.swap_tensors(tensor, other)
            return
        Tensor.data.__set__(tensor, value)
        if isinstance(tensor, OnDevice):
            tensor.inner = value.inner


class _Properties:
    """What fairseq asks a GPU about itself."""

    name, major, minor, total_memory = "pretended", 9, 0, 80 << 30
    multi_processor_count, warp_size = 1, 32


_STATE = torch.zeros(1, dtype=torch.uint8)
_CUDA_CALLS = {
    **{"is_available": True, "device_count": 1, "current_device": 0},
    **{"get_device_name": "pretended", "get_device_capability": (9, 0)},
    **{"is_bf16_supported": True, "get_device_properties": _Properties},
    **dict.fromkeys(("set_device", "synchronize", "empty_cache")),
    **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state")),
    **dict.fromkeys(("memory_allocated", "max_memory_allocated"), 0),
    **dict.fromkeys(("memory_reserved", "max_memory_reserved"), 0),
    **{"reset_peak_memory_stats": None, "get_rng_state": _STATE},
    **{"is_current_stream_capturing": False},
}


@contextlib.contextmanager
def pretended_gpu(monkeypatch):
    """While inside, ``torch.cuda`` has a GPU."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    autocast, save = torch.amp.autocast_mode.autocast, torch.save
    make, enabled = autocast.__init__, torch.is_autocast_enabled

    def make_on_cpu(self, device_type, dtype=None, *args, **kwargs):
        if device_type == "cuda" and dtype is None:
            dtype = torch.float16
        make(self, "cpu", dtype, *args, **kwargs)

    with monkeypatch.context() as patch:
        for name, answer in _CUDA_CALLS.items():
            patch.setattr(torch.cuda, name, lambda *a, answer=answer, **k: answer)
        # a torch that is built for CUDA asks the driver for its stream otherwise
        patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        patch.setattr(autocast, "__init__", make_on_cpu)
        # by a thread of fairseq's, where calls are not sent anywhere
        patch.setattr(pin_memory, "pin_memory", lambda data, device=None: data)
        patch.setattr(torch, "is_autocast_enabled", lambda device="cuda": enabled("cpu"))
        patch.setattr(torch, "save", lambda x, *a, **k: save(tree_map(unwrap, x), *a, **k))
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            with _Calls():
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
            metrics.reset()  # they hold tensors of it, which later checkpoints would hold too
