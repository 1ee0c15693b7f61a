"""Trains the demo model and its draft: `python -m batchyard.demo.train --help`.

The draft learns from the demo model's probabilities beside the text, so that it proposes what
that one would say.
The learning rate follows the clock, so that a run fits the time it is given on whatever device it gets.
"""

import argparse
import copy
import json
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AutoTokenizer

from batchyard.demo import export
from batchyard.demo.batches import Batch, Corpus
from batchyard.demo.network import Llama, Shape, masked_attention
from batchyard.demo.tokenizer import MAX_POSITIONS, VOCABULARY

MODEL = Shape(VOCABULARY, 256, 768, 8, 8, 4, 32, MAX_POSITIONS)
DRAFT = Shape(VOCABULARY, 128, 256, 2, 4, 2, 32, MAX_POSITIONS)

WARM_UP = 0.02
"""The share of the time in which the learning rate rises."""
UNTIMED_STEPS = 3
"""Steps before the clock starts: they compile."""
EVALUATIONS = 20

Losses = Callable[[Tensor, Tensor, Any], Tensor]
"""(tokens, targets, mask) to the loss of each token, 0 where there is no target. All `[rows, length]`."""


@dataclass(frozen=True)
class Settings:
    """How a model is trained. `rate` is the highest learning rate; a row has `length` tokens."""

    rate: float
    seconds: float
    rows: int
    length: int
    device: torch.device
    text_share: float
    seed: int = 1


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """Attention that skips the blocks of other documents; `mask` is a `BlockMask`."""
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)


def mask_of(documents: Tensor) -> Any:
    """What each token sees: itself and what precedes it in its document."""
    rows, length = documents.shape
    if documents.device.type == "cpu":
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return (documents[:, :, None] == documents[:, None, :])[:, None] & causal

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    return create_block_mask(sees, rows, None, length, length, device=documents.device)


def losses_of(model: Llama, teacher: Llama | None, device: torch.device) -> Losses:
    """The loss of each token; with a teacher, half of it is the divergence from the teacher."""

    def losses(tokens: Tensor, targets: Tensor, mask: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(tokens, mask)
            told = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            if teacher is None:
                return told.view(targets.shape)
            with torch.no_grad():
                wanted = teacher(tokens, mask).float().log_softmax(-1)
            divergence = F.kl_div(
                logits.float().log_softmax(-1), wanted, reduction="none", log_target=True
            ).sum(-1)
            return 0.5 * told.view(targets.shape) + 0.5 * divergence * (targets != -100)

    return torch.compile(losses, dynamic=False) if device.type == "cuda" else losses


@dataclass(frozen=True)
class Evaluation:
    """Nats and bytes of the held-out text, by kind of document."""

    nats: dict[str, float]
    tokens: dict[str, int]
    bytes: dict[str, int]

    @property
    def text_loss(self) -> float:
        """Nats per token of sources and documentation: what overfitting is judged by."""
        kinds = [kind for kind in self.nats if kind != "chat"]
        return sum(self.nats[kind] for kind in kinds) / sum(self.tokens[kind] for kind in kinds)

    def report(self) -> dict[str, dict[str, float]]:
        """Perplexity per token and bits per byte, by kind and in all."""
        shown = {}
        for kind in (*self.nats, "all"):
            picked = list(self.nats) if kind == "all" else [kind]
            nats, tokens = sum(self.nats[k] for k in picked), sum(self.tokens[k] for k in picked)
            size = sum(self.bytes[k] for k in picked)
            shown[kind] = {
                "perplexity": round(math.exp(nats / tokens), 3),
                "bits_per_byte": round(nats / math.log(2) / size, 4),
                "tokens": tokens,
            }
        return shown


@torch.no_grad()
def evaluate(losses: Losses, held_out: Corpus, settings: Settings) -> Evaluation:
    """The held-out documents in their order, packed into rows; attention stays within a document."""
    order = torch.arange(len(held_out.starts) - 1).numpy()
    every = held_out.rows(order, settings.length)
    kinds = sorted(set(held_out.kinds.tolist()))
    number = torch.tensor([kinds.index(kind) for kind in held_out.kinds.tolist()] + [len(kinds)])
    nats, tokens = (
        torch.zeros(len(kinds) + 1, dtype=torch.float64),
        torch.zeros(len(kinds) + 1, dtype=torch.int64),
    )
    for at in range(0, len(every.tokens), settings.rows):
        part = _padded(Batch(*(x[at : at + settings.rows] for x in vars(every).values())), settings.rows)
        on_device = part.to(settings.device)
        loss = losses(on_device.tokens, on_device.targets, mask_of(on_device.documents)).double().cpu()
        of_kind = number[part.documents.long()].flatten()
        nats.index_add_(0, of_kind, loss.flatten())
        tokens.index_add_(0, of_kind, (part.targets != -100).long().flatten())
    sizes = {kind: int(held_out.bytes[held_out.of_kind(kind)].sum()) for kind in kinds}
    return Evaluation(
        dict(zip(kinds, nats.tolist(), strict=False)), dict(zip(kinds, tokens.tolist(), strict=False)), sizes
    )


def _padded(batch: Batch, rows: int) -> Batch:
    lacking = rows - len(batch.tokens)
    fills = (0, -100, -1)
    parts = (
        F.pad(part, (0, 0, 0, lacking), value=fill)
        for part, fill in zip(vars(batch).values(), fills, strict=True)
    )
    return Batch(*parts)


def rate_at(share: float, highest: float) -> float:
    """The learning rate when `share` of the time is gone: a rise, then half a cosine down to 1%."""
    if share < WARM_UP:
        return highest * max(share / WARM_UP, 0.01)
    fallen = 0.5 * (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1.0)))
    return highest * (0.01 + 0.99 * fallen)


def optimizer_of(model: Llama, settings: Settings) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=settings.rate, betas=(0.9, 0.95), fused=settings.device.type == "cuda"
    )


class Clock:
    """How much of its time a run has used; compiling is not counted."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._started: float | None = None

    def start(self) -> None:
        self._started = time.monotonic()

    @property
    def share(self) -> float:
        return 0.0 if self._started is None else (time.monotonic() - self._started) / self._seconds


def fit(
    model: Llama, training: Corpus, held_out: Corpus, settings: Settings, plain: Losses, teacher: Llama | None
) -> dict[str, Any]:
    """Trains the model in place for `settings.seconds`; `plain` is its loss without a teacher, to evaluate.

    Returns the record of it.
    """
    losses = losses_of(model, teacher, settings.device) if teacher is not None else plain
    optimizer = optimizer_of(model, settings)
    clock, curve = Clock(settings.seconds), list[dict[str, float]]()
    evaluate(plain, held_out, settings)
    step = 0
    for batch in training.epochs(settings.rows, settings.length, settings.seed, settings.text_share):
        on_device = batch.to(settings.device)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(clock.share, settings.rate)
        summed = losses(on_device.tokens, on_device.targets, mask_of(on_device.documents)).sum()
        loss = summed / (on_device.targets != -100).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == UNTIMED_STEPS:
            loss.item()
            clock.start()
        if step % 20 == 0:
            loss.item()  # waits for the device, so that the clock sees the work and not the queue
        if clock.share >= (len(curve) + 1) / EVALUATIONS:
            curve.append(_point(step, loss.item(), evaluate(plain, held_out, settings), settings, clock))
        if clock.share >= 1:
            break
    best = min(curve, key=lambda point: point["held_out_text_loss"])
    tokens = step * settings.rows * settings.length
    return {"seconds": settings.seconds, "steps": step, "tokens": tokens, "curve": curve, "best": best}


def _point(
    step: int, loss: float, evaluation: Evaluation, settings: Settings, clock: Clock
) -> dict[str, float]:
    tokens = step * settings.rows * settings.length
    point = {
        "step": step,
        "million_tokens": round(tokens / 1e6, 1),
        "tokens_per_second": round(tokens / (clock.share * settings.seconds)),
        "train_loss": round(loss, 4),
        "held_out_text_loss": round(evaluation.text_loss, 4),
        "held_out_chat_loss": round(evaluation.nats["chat"] / evaluation.tokens["chat"], 4),
    }
    print(" ".join(f"{name} {value}" for name, value in point.items()), flush=True)
    return point


def export_to_bfloat16(name: str, model: Llama, options: argparse.Namespace) -> None:
    """Rounds the weights in place to what bfloat16 holds, and writes the folder."""
    weights = export.as_bfloat16(dict(model.named_parameters()))
    model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    export.save(options.out / name, model.shape, weights, options.tokenizer)


def measure(
    name: str, model: Llama, evaluation: Evaluation, held_out: Corpus, options: argparse.Namespace
) -> dict[str, Any]:
    """What the report says of the folder that was written; prints it, with answers to some questions."""
    folder = options.out / name
    difference = export.check(folder, model.shape, held_out.tokens[:200].tolist())
    shown = evaluation.report()
    print(
        name, json.dumps(shown, indent=1), f"largest difference to transformers: {difference:.2g}", flush=True
    )
    said = export.speak(folder)
    for pair in said:
        print(*(f"[{key}] {text}" for key, text in pair.items()), sep="\n", end="\n\n", flush=True)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "held_out": shown,
        "difference_to_transformers": difference,
        "samples": said,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="the .npz file from tokenizer.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the tokenizer's folder")
    parser.add_argument("--out", type=Path, required=True, help="gets model/, draft/ and report.json")
    parser.add_argument("--model-seconds", type=float, default=75, help="training time of the demo model")
    parser.add_argument("--draft-seconds", type=float, default=40, help="training time of the draft")
    parser.add_argument("--rows", type=int, default=64, help="rows in a batch")
    parser.add_argument("--length", type=int, default=MAX_POSITIONS, help="tokens in a row")
    parser.add_argument(
        "--text-share", type=float, default=0.35, help="share of sources and documentation in an epoch"
    )
    return parser.parse_args()


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attention = fused_attention if device.type == "cuda" else masked_attention
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    pad = AutoTokenizer.from_pretrained(options.tokenizer).pad_token_id
    training, held_out = (Corpus.load(options.corpus, prefix, pad) for prefix in ("", "held_out_"))
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "batchyard.demo.train", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "training_tokens": len(training.tokens),
    }
    teacher: Llama | None = None
    for name, shape, rate, seconds in (
        ("model", MODEL, 3e-3, options.model_seconds),
        ("draft", DRAFT, 4e-3, options.draft_seconds),
    ):
        model = Llama(shape, attention).to(device)
        settings = Settings(rate, seconds, options.rows, options.length, device, options.text_share)
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        plain = losses_of(model, None, device)
        record = fit(model, training, held_out, settings, plain, teacher)
        export_to_bfloat16(name, model, options)
        report[name] = record | measure(name, model, evaluate(plain, held_out, settings), held_out, options)
        teacher = copy.deepcopy(model).requires_grad_(False)
    (options.out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
