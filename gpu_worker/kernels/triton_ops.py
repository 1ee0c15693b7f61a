"""The operations as Triton kernels, for GPUs. Nothing here waits for the device."""

import torch
from torch.nn import functional as F

from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.few_row_products import FewRowProducts
from gpu_worker.kernels.heads import AttentionHeads
from gpu_worker.kernels.launch_shapes import SWIGLU_BLOCK, row_tile
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import KVCache, Normed, as_normed
from gpu_worker.kernels.paged_attention import PagedAttention
from gpu_worker.kernels.rms_norm import rms_norm_kernel
from gpu_worker.kernels.swiglu import swiglu_kernel


class TritonOps:
    """`Ops` in Triton, and in cuBLAS where that is faster. Caches must be contiguous."""

    def __init__(self, traits: DeviceTraits) -> None:
        self._options = traits.launch_options
        self._attention = PagedAttention(traits)
        self._products = FewRowProducts(traits)

    @classmethod
    def for_device(cls, device: torch.device) -> "TritonOps":
        return cls(DeviceTraits.of(device))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self._norm(x, None, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return self._norm(x, residual, weight, eps)

    def linear(
        self, x: torch.Tensor | Normed, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        normed = as_normed(x)
        tile = self._products.tile_for(normed.values, weight, gated=False)
        if tile is None:
            return F.linear(normed.scaled(), weight, bias)
        out = weight.new_empty((normed.values.shape[0], weight.shape[0]))
        self._products.multiply(out, normed, weight, bias, tile)
        return out

    def linear_add_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
    ) -> Normed:
        tile = self._products.tile_for(x, weight, gated=False)
        if tile is None:
            product = F.linear(x, weight, bias)
            return Normed(self._norm(product, residual, norm_weight, eps), eps)
        return self._products.multiply_add(x, weight, bias, residual, norm_weight, eps, tile)

    def gated_linear(
        self, x: torch.Tensor | Normed, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        normed = as_normed(x)
        out = weight.new_empty((normed.values.shape[0], weight.shape[0] // 2))
        tile = self._products.tile_for(normed.values, weight, gated=True)
        if tile is None:
            self._swiglu(out, F.linear(normed.scaled(), weight, bias))
        else:
            self._products.multiply(out, normed, weight, bias, tile, gated=True)
        return out

    def logits(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            out = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
        tile = self._products.tile_for(x, weight, gated=False)
        if tile is not None:
            self._products.multiply(out, as_normed(x), weight, None, tile)
        elif x.is_cuda and x.dtype != torch.float32:
            torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
        else:
            out.copy_(F.linear(x, weight))
        return out

    def attend(
        self,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        return self._attention(packed, heads, cos_sin, kv_cache, metadata)

    def _swiglu(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        num_tokens, intermediate = out.shape
        swiglu_kernel[(num_tokens, -(-intermediate // SWIGLU_BLOCK))](
            out,
            gate_up,
            gate_up.stride(0),
            INTERMEDIATE=intermediate,
            BLOCK=SWIGLU_BLOCK,
            num_warps=4,
            **self._options,
        )

    def _norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        num_rows, hidden = x.shape
        tile = row_tile(hidden)
        out = x.new_empty(x.shape)
        rms_norm_kernel[(-(-num_rows // tile.rows),)](
            out,
            x,
            x if residual is None else residual,
            weight,
            num_rows,
            x.stride(0),
            x.stride(0) if residual is None else residual.stride(0),
            eps,
            ADD=residual is not None,
            HIDDEN=hidden,
            BLOCK_ROWS=tile.rows,
            BLOCK_HIDDEN=tile.columns,
            num_warps=tile.num_warps,
            **self._options,
        )
        return out
