"""Launches products of few rows, with what surrounds them in a decoder layer."""

import torch

from gpu_worker.kernels.arrivals import Arrivals
from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.launch_shapes import MatmulTile, matmul_tile, next_power_of_two
from gpu_worker.kernels.matmul import matmul_kernel
from gpu_worker.kernels.ops import Normed


class FewRowProducts:
    """Products by `matmul_kernel`, where there is a tile for them."""

    def __init__(self, traits: DeviceTraits) -> None:
        self._multiprocessors = traits.multiprocessors
        self._options = traits.launch_options
        self._arrivals = Arrivals()

    def tile_for(self, x: torch.Tensor, weight: torch.Tensor, *, gated: bool) -> MatmulTile | None:
        """How to multiply `x` by `weight`; None where that is better left to cuBLAS."""
        if x.itemsize != 2:
            return None
        outputs = weight.shape[0] // 2 if gated else weight.shape[0]
        return matmul_tile(
            x.shape[0], outputs, weight.shape[1], gated=gated, num_multiprocessors=self._multiprocessors
        )

    def multiply(
        self,
        out: torch.Tensor,
        x: Normed,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tile: MatmulTile,
        *,
        gated: bool = False,
    ) -> None:
        """`x @ weight.T + bias` into `out` [num_rows, outputs], through SwiGLU if `gated`."""
        self._launch(out, x, weight, bias, tile, None, gated=gated)

    def multiply_add(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
        tile: MatmulTile,
    ) -> Normed:
        """`residual += x @ weight.T + bias`, and the norm of that but for its scale."""
        values = torch.empty_like(residual)
        num_rows, outputs = residual.shape
        squares = torch.empty((outputs // tile.block_n, num_rows), dtype=torch.float32, device=x.device)
        self._launch(values, Normed(x, 0.0), weight, bias, tile, (residual, norm_weight, squares))
        return Normed(values, eps, squares)

    def _launch(
        self,
        out: torch.Tensor,
        x: Normed,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tile: MatmulTile,
        stream: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        *,
        gated: bool = False,
    ) -> None:
        """`stream`: the residual stream, the weights of its norm, and room for its squares."""
        num_rows, outputs = out.shape
        programs = outputs // tile.block_n
        parts, arrivals = out, out
        if tile.split > 1:
            shape = (tile.split, num_rows, outputs)
            parts = torch.empty(shape, dtype=torch.float32, device=out.device)
            arrivals = self._arrivals.on(out.device, programs)
        residual, norm_weight, next_squares = stream or (out, out, out)
        tiles = 1 if x.squares is None else x.squares.shape[0]
        matmul_kernel[(programs, tile.split)](
            out,
            x.values,
            weight,
            weight if bias is None else bias,
            out if x.squares is None else x.squares,
            residual,
            norm_weight,
            next_squares,
            parts,
            arrivals,
            num_rows,
            x.values.stride(0),
            x.eps,
            N=outputs,
            K=weight.shape[1],
            TILES=tiles,
            BLOCK_TILES=next_power_of_two(tiles),
            GATED=gated,
            BIAS=bias is not None,
            SCALED=x.squares is not None,
            ADD=stream is not None,
            **tile.options,
            **self._options,
        )
