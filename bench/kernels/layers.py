"""The rest of a decoder layer and sampling, beside cuBLAS and PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional as F

from bench.kernels.cases import EPS, Bench, Case, Launch, Topic
from bench.kernels.work import norm_bytes, product_bytes, sampling_bytes, swiglu_bytes
from gpu_worker.kernels.ops import Normed
from gpu_worker.kernels.sample import pick
from gpu_worker.kernels.triton_ops import TritonOps
from gpu_worker.sampling.batch import Picks

_CUBLAS, _PYTORCH = "cuBLAS", "PyTorch"
_TEMPERATURE, _TOP_P = 0.7, 0.95
# So that a few tokens have most of the probability, as a model's.
_LOGIT_DEVIATION = 4.0
# Outputs that leave one sum of squares each, as products of few rows do.
_SQUARES_TILE = 64


def _normed(bench: Bench, rows: int) -> Normed:
    """What a product is given after another one that ends in the residual stream."""
    hidden = bench.model.hidden
    values = bench.normal(rows, hidden)
    squares = torch.full((hidden // _SQUARES_TILE, rows), float(_SQUARES_TILE), device=bench.device)
    return Normed(values, EPS, squares)


def _then_swiglu(ops: TritonOps, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = x.new_empty((x.shape[0], weight.shape[0] // 2))
    ops._swiglu(out, F.linear(x, weight))
    return out


def _then_norm(
    ops: TritonOps,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
) -> torch.Tensor:
    return ops.add_rms_norm(F.linear(x, weight), residual, norm_weight, EPS)


def _product(bench: Bench, matrix: str, rows: int, weight: torch.Tensor) -> tuple[Launch, Launch]:
    """Ours, and by cuBLAS with kernels of ours for what surrounds it."""
    ops, hidden = bench.ops, bench.model.hidden
    if matrix in ("o", "down"):
        x, residual = bench.normal(rows, weight.shape[1]), bench.normal(rows, hidden)
        norm_weight = bench.normal(hidden)
        ours = partial(ops.linear_add_norm, x, weight, None, residual, norm_weight, EPS)
        return ours, partial(_then_norm, ops, x, weight, residual, norm_weight)
    normed = _normed(bench, rows)
    if matrix == "gate_up":
        return partial(ops.gated_linear, normed, weight, None), partial(
            _then_swiglu, ops, normed.values, weight
        )
    theirs = partial(F.linear, normed.values, weight)
    if matrix == "lm_head":
        return partial(ops.logits, normed.values, weight), theirs
    return partial(ops.linear, normed, weight, None), theirs


def product_cases(bench: Bench) -> Iterator[Case]:
    """The matrices of a layer and the last one, each with what a step does around it.

    qkv and gate_up scale their rows for the norm ahead; gate_up goes through SwiGLU; o and down end in the
    residual stream and its norm. cuBLAS has a kernel more for each of these but the first.
    """
    model = bench.model
    matrices = {
        "qkv": (model.packed, model.hidden),
        "o": (model.hidden, model.mixed),
        "gate_up": (2 * model.intermediate, model.hidden),
        "down": (model.hidden, model.intermediate),
        "lm_head": (model.vocab, model.hidden),
    }
    for matrix, (outputs, inputs) in matrices.items():
        copies = bench.copies(product_bytes(1, outputs, inputs))
        weights = [bench.normal(outputs, inputs, deviation=inputs**-0.5) for _ in range(copies)]
        for rows in bench.sweep.product_rows:
            ours, theirs = zip(*(_product(bench, matrix, rows, weight) for weight in weights), strict=True)
            labels = (matrix, f"[{outputs}, {inputs}]", f"{rows}")
            yield Case(labels, product_bytes(rows, outputs, inputs), ours, {_CUBLAS: theirs})


def _add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    residual += x
    return F.rms_norm(residual, weight.shape, weight, EPS)


def norm_cases(bench: Bench) -> Iterator[Case]:
    """RMSNorm, alone and after adding to the residual stream."""
    hidden, ops = bench.model.hidden, bench.ops
    weight = bench.normal(hidden)
    for add in (False, True):
        for rows in bench.sweep.rows:
            work = norm_bytes(rows, hidden, add=add)
            ours: list[Launch] = []
            theirs: list[Launch] = []
            for _ in range(bench.copies(work)):
                x = bench.normal(rows, hidden)
                if add:
                    residual = bench.normal(rows, hidden)
                    ours.append(partial(ops.add_rms_norm, x, residual, weight, EPS))
                    theirs.append(partial(_add_norm, x, residual, weight))
                else:
                    ours.append(partial(ops.rms_norm, x, weight, EPS))
                    theirs.append(partial(F.rms_norm, x, weight.shape, weight, EPS))
            labels = ("add_rms_norm" if add else "rms_norm", f"{rows}")
            yield Case(labels, work, ours, {_PYTORCH: theirs})


def _swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_cases(bench: Bench) -> Iterator[Case]:
    """SwiGLU of a product that stands alone, which those of many rows do."""
    intermediate = bench.model.intermediate
    for rows in bench.sweep.tokens:
        work = swiglu_bytes(rows, intermediate)
        gate_ups = [bench.normal(rows, 2 * intermediate) for _ in range(bench.copies(work))]
        ours = [
            partial(bench.ops._swiglu, gate_up.new_empty((rows, intermediate)), gate_up)
            for gate_up in gate_ups
        ]
        yield Case((f"{rows}",), work, ours, {_PYTORCH: [partial(_swiglu, x) for x in gate_ups]})


def _by_sorting(logits: torch.Tensor) -> torch.Tensor:
    """Top-p as it is usually written; drawn as torch.multinomial does, whose checks wait for the device."""
    probabilities, tokens = torch.softmax(logits / _TEMPERATURE, dim=-1).sort(dim=-1, descending=True)
    probabilities.masked_fill_(probabilities.cumsum(dim=-1) - probabilities >= _TOP_P, 0.0)
    races = probabilities / torch.empty_like(probabilities).exponential_()
    return tokens.gather(-1, races.argmax(dim=-1, keepdim=True))


def _top_p_picks(bench: Bench, rows: int) -> Picks[torch.Tensor]:
    def filled(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=bench.device)

    keys = torch.randint(1 << 62, (rows,), device=bench.device)
    return Picks(
        temperature=filled(_TEMPERATURE),
        keys=keys,
        log_min_p=filled(float("-inf")),
        top_k=filled(0, torch.int32),
        top_p=filled(_TOP_P),
        filtered=True,
    )


def sampling_cases(bench: Bench) -> Iterator[Case]:
    """Greedy beside argmax; temperature and top-p beside softmax, sort, cumulative sum and draw."""
    vocab = bench.model.vocab
    for rows in bench.sweep.sampling_rows:
        work = sampling_bytes(rows, vocab)
        all_logits = [
            bench.normal(rows, vocab, deviation=_LOGIT_DEVIATION, dtype=torch.float32)
            for _ in range(bench.copies(work))
        ]
        greedy = [partial(pick, logits, None) for logits in all_logits]
        argmax = [partial(torch.argmax, logits, dim=-1) for logits in all_logits]
        yield Case(("greedy", f"{rows}"), work, greedy, {_PYTORCH: argmax})
        filtered = [partial(pick, logits, _top_p_picks(bench, rows)) for logits in all_logits]
        sorting = [partial(_by_sorting, logits) for logits in all_logits]
        yield Case((f"top-p {_TOP_P}", f"{rows}"), work, filtered, {_PYTORCH: sorting})


TOPICS = {
    "products": Topic(
        "Products of few rows", "TB/s", ("matrix", "[outputs, inputs]", "rows"), (_CUBLAS,), product_cases
    ),
    "norms": Topic("RMSNorm", "TB/s", ("kernel", "rows"), (_PYTORCH,), norm_cases),
    "swiglu": Topic("SwiGLU", "TB/s", ("rows",), (_PYTORCH,), swiglu_cases),
    "sampling": Topic("Sampling", "TB/s", ("how", "rows"), (_PYTORCH,), sampling_cases),
}
