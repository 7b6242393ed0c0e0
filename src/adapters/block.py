"""SPLoPA: an update made of blocks, each a sum of low-rank prototypes.

Hedegaard et al., *Structured Pruning Adapters* (arXiv 2211.10155), section 3.2.

Legend: blocks of ``p x q``, a grid of ``R x C`` blocks, ``N`` prototypes of rank
``r``. Where ``p`` or ``q`` don't divide the weight, the last blocks are ragged.
"""

import math
from typing import Dict, List, Mapping, Optional, Tuple, cast

import torch
from torch import Tensor, nn

from .errors import AdapterError
from .layer import AdaptedLinear
from .masks import check_mask, expect_shape, mask_size, pack, unpack
from .prototypes import BlockSettings, PositionWeights, Prototypes, position_weights
from .reading import ConfigurableRead
from .update import WeightUpdate, no_autocast, recording


class Block(WeightUpdate):
    """Position weights ``[N, R, C]`` of a layer's blocks, and which blocks it keeps.

    Buffers:
        block_mask: bool ``[R, C]``. Where it is False the whole weight is zero.
        row_ids, column_ids: int32 ``[n]`` and ``[m]``, the positions of the
            present outputs and inputs in the layer as it was adapted.
        layout: int32 ``[4]``, the outputs and inputs then, and the block size.

    ``adapter_slices`` says which of them is cut when a dimension of the weight is cut.
    """

    adapter_names = ("pos_weights",)
    adapter_slices = {0: ("row_ids", 0), 1: ("column_ids", 0)}
    buffer_names = ("block_mask", "row_ids", "column_ids", "layout")
    mask_names = ("mask",)
    pos_weights: Optional[nn.Parameter]
    block_mask: Tensor
    row_ids: Tensor
    column_ids: Tensor
    layout: Tensor

    def start(
        self,
        weight: Tensor,
        settings: BlockSettings,
        prototypes: Prototypes,
        positions: Optional[PositionWeights] = None,
        original: Optional[Tuple[int, int]] = None,
    ) -> None:
        """Register fresh parameters for ``weight [n, m]``.

        Args:
            original: outputs and inputs before the layer was cut, where its
                ``row_ids`` and ``column_ids`` are going to be loaded.
        """
        if original is None:
            n, m = weight.shape
            original = n, m
        grid = settings.grid(original)
        own = None
        if positions is None:
            own = position_weights(settings, grid, weight)
        self.register_parameter("pos_weights", own)
        # in tuples, so that they aren't registered here: they are saved where they belong
        self._prototypes: Tuple[Prototypes] = (prototypes,)
        self._positions: Tuple[Optional[PositionWeights]] = (positions,)
        device = weight.device
        buffers = (
            torch.ones(grid, dtype=torch.bool, device=device),
            torch.arange(weight.shape[0], dtype=torch.int32, device=device),
            torch.arange(weight.shape[1], dtype=torch.int32, device=device),
            torch.tensor([*original, *settings.block_size], dtype=torch.int32),
        )
        for name, buffer in zip(self.buffer_names, buffers):
            self.register_buffer(name, buffer.to(device))

    def share(self, other: "Block") -> None:
        self.register_parameter("pos_weights", other.pos_weights)
        self._prototypes, self._positions = other._prototypes, other._positions
        for name in self.buffer_names:
            self.register_buffer(name, getattr(other, name))

    def remove(self) -> None:
        del self.pos_weights, self._prototypes, self._positions
        for name in self.buffer_names:
            delattr(self, name)

    def _apply(self, fn, recurse=True):
        before = {name: self._buffers[name] for name in self.buffer_names}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            assert buffer is not None and moved is not None
            if moved is not buffer and moved.is_meta == buffer.is_meta:
                buffer.data = moved  # tied layers hold one and the same buffer
                self._buffers[name] = buffer
        return self

    @property
    def shared_prototypes(self) -> Prototypes:
        return self._prototypes[0]

    @property
    def positions(self) -> nn.Parameter:
        """``[N, R, C]``, the layer's own or the shared ones."""
        shared = self._positions[0]
        positions = self.pos_weights if shared is None else shared.weights
        assert positions is not None  # a layer has its own or shared ones
        return positions

    @torch.no_grad()
    def set_block_mask(self, mask: Tensor) -> None:
        """Keep the blocks where ``mask [R, C]`` is True; the others become zero.

        Raises:
            AdapterError: a mask of the wrong type or shape.
        """
        check_mask({"mask": mask}, {"mask": self.block_mask.shape}, "")
        self.block_mask.copy_(mask)

    def shared_modules(self) -> List[nn.Module]:
        return [m for m in (*self._prototypes, *self._positions) if m is not None]

    def sources(self) -> List[Tensor]:
        shared, own = self._prototypes[0]._parameters, self._buffers
        sources: List[Optional[Tensor]] = [shared["rows"], shared["cols"]]
        sources += [own["block_mask"], own["row_ids"], own["column_ids"]]
        return [self.positions, *cast(List[Tensor], sources)]

    def merge(self, weight: Tensor) -> Tensor:
        """``weight [n, m]`` plus the update, masked, cast once."""
        with no_autocast(weight.device):
            merged = self._add_blocks(weight).to(weight.dtype)
            mask = self.weight_mask()
        return merged if mask is None else torch.where(mask, merged, 0)

    def _add_blocks(self, weight: Tensor) -> Tensor:
        """All blocks come from one product ``[R*C, N] @ [N, p*q]``."""
        positions = self.positions.to(weight.device)  # shared ones may be on another
        grid = positions.shape[1:]
        p, q = self.shared_prototypes.block_size
        flat = self.shared_prototypes.flat().to(positions.device, positions.dtype)
        blocks = positions.flatten(1).t() @ flat
        blocks = blocks.view(*grid, p, q).permute(0, 2, 1, 3)  # [R, p, C, q]
        if weight.numel() == blocks.numel():
            return (weight.reshape(blocks.shape) + blocks).reshape(weight.shape)
        update = blocks.reshape(grid[0] * p, grid[1] * q)
        for dim, name in enumerate(("row_ids", "column_ids")):
            ids = self._selection(name)
            if ids is None:
                update = update.narrow(dim, 0, weight.shape[dim])
            else:
                update = update.index_select(dim, ids)
        return weight + update

    def _selection(self, name: str) -> Optional[Tensor]:
        """Positions to select, or None if nothing was cut out."""
        ids = getattr(self, name)

        def compute():
            whole = torch.arange(ids.numel(), dtype=ids.dtype, device=ids.device)
            return None if not recording() and torch.equal(ids, whole) else ids.long()

        return self.remember(name, [ids], compute)

    def weight_mask(self) -> Optional[Tensor]:
        """``block_mask`` for every weight, bool ``[n, m]``, or None if all True."""
        sources = [self.block_mask, self.row_ids, self.column_ids]
        p, q = self.shared_prototypes.block_size

        def compute():
            if not recording() and self.block_mask.all():
                return None
            return self.block_mask[(self.row_ids.long() // p)[:, None], self.column_ids.long() // q]

        return self.remember("mask", sources, compute)

    def read(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """The learned parameters of the kept blocks, ``[N, |M|]``."""
        if self.pos_weights is None:
            return {}
        kept = self._kept(mask)
        whole = bool(kept.all())
        return {"pos_weights": self.pos_weights if whole else self.pos_weights[:, kept]}

    def _kept(self, mask: Mapping[str, Tensor]) -> Tensor:
        kept = mask.get("mask")
        return self.block_mask if kept is None else kept.to(self.block_mask.device)

    def read_weight(self, weight: Tensor, mask: Mapping[str, Tensor]) -> Tensor:
        p, q = self.shared_prototypes.block_size
        rows, columns = self.row_ids.long() // p, self.column_ids.long() // q
        return torch.where(self._kept(mask)[rows[:, None], columns], weight, 0)

    def check_masks(self, mask: Mapping[str, Tensor], where: str) -> None:
        check_mask(mask, {"mask": self.block_mask.shape}, where)

    def mask_bits(self) -> int:
        return self.block_mask.numel()

    def packed_masks(self, mask: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        packed = {"layout": self.layout.clone()}
        kept = self._kept(mask)
        if not kept.all():
            packed["block_mask"] = pack(kept)
        for name, size in zip(("row_ids", "column_ids"), self.layout.tolist()):
            ids = getattr(self, name)
            if ids.numel() != size:
                present = torch.zeros(size, dtype=torch.bool, device=ids.device)
                packed[name] = pack(present.index_fill_(0, ids.long(), True))
        return packed

    @staticmethod
    def out_mask(mask: Mapping[str, Tensor]) -> Optional[Tensor]:
        return None

    @classmethod
    def recognise(
        cls,
        entries: Mapping[str, Tensor],
        weight: Tensor,
        where: str,
        prototypes: Tuple[int, int],
        shared_prototypes: bool,
    ) -> Tuple[BlockSettings, Tuple[int, int]]:
        """Settings of an update, read off its saved entries.

        Args:
            entries: of a full state dict, or bit-packed ones.
            weight: ``[n, m]``.
            where: the layer's name.
            prototypes: their number and rank.
            shared_prototypes: whether the layer owns none itself.

        Returns:
            The settings, and outputs and inputs of the layer when it was adapted.

        Raises:
            AdapterError: an entry is missing or doesn't fit ``weight``.
        """
        expect_shape(entries["layout"], (4,), f"{where}.layout")
        *original, p, q = entries["layout"].tolist()
        count, rank = prototypes
        settings = BlockSettings(
            (p, q), count, rank, shared_prototypes, "pos_weights" not in entries
        )
        grid = settings.grid(original)
        kept = None
        mask = entries.get("block_mask")
        if mask is not None and mask.dtype == torch.bool:
            expect_shape(mask, grid, f"{where}.block_mask")
        elif mask is not None:
            kept = mask_size(mask, math.prod(grid), f"{where}.block_mask")
        if "pos_weights" in entries:
            positions = entries["pos_weights"]
            shape = (count, *grid) if kept is None else (count, kept)
            expect_shape(positions, shape, f"{where}.pos_weights")
        for dim, name in enumerate(("row_ids", "column_ids")):
            ids, size = entries.get(name), weight.shape[dim]
            if ids is not None and ids.dtype == torch.uint8:
                found = mask_size(ids, original[dim], f"{where}.{name}")
            else:
                found = original[dim] if ids is None else ids.numel()
            if found != size:
                raise AdapterError(
                    f"{where}.{name}: found {found} present, expected "
                    f"{size}, the size of the layer's weight"
                )
        n, m = original
        return settings, (n, m)

    def fits(self, settings: BlockSettings, original: Tuple[int, int]) -> bool:
        return (
            tuple(self.layout.tolist()) == (*original, *settings.block_size)
            and self.shared_prototypes.fits(settings)
            and (self.pos_weights is None) == settings.shared_pos_weights
        )

    @classmethod
    def restore(cls, entries: Mapping[str, Tensor], weight: Tensor):
        *original, p, q = entries["layout"].tolist()
        grid = tuple(-(-s // b) for s, b in zip(original, (p, q)))
        device = entries["layout"].device
        mask = entries.get("block_mask")
        if mask is None:
            mask = torch.ones(grid, dtype=torch.bool, device=device)
        elif mask.dtype == torch.uint8:
            mask = unpack(mask, math.prod(grid)).view(grid)
        values = {"layout": entries["layout"], "block_mask": mask}
        for name, size in zip(("row_ids", "column_ids"), original):
            ids = entries.get(name)
            if ids is None:
                ids = torch.arange(size, device=device)
            elif ids.dtype == torch.uint8:
                ids = unpack(ids, size).nonzero()[:, 0]
            values[name] = ids.to(torch.int32)
        positions = entries.get("pos_weights")
        if positions is not None and positions.dim() == 2:
            full = positions.new_zeros(positions.shape[0], *grid)
            full[:, mask] = positions
            positions = full
        if positions is not None:
            values["pos_weights"] = positions
        return values, {"mask": mask}


class SPLoPALinear(ConfigurableRead, Block, AdaptedLinear):
    """``x (mask * (W + update))ᵀ + b``; fused in inference."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.current_weights()["weight"], self.bias)

    def extra_repr(self) -> str:
        count = self.positions.shape[0]
        p, q = self.shared_prototypes.block_size
        return f"{super().extra_repr()}, prototypes={count}, block_size=({p}, {q})"
