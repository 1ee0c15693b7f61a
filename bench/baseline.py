"""`transformers` generating the same answers: one after another, or in static batches."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


class Transformers:
    """A model as `from_pretrained` gives it, and `generate` as most people call it."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self._device = device
        self._model = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
        )
        # Every answer gets the length that was asked for.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, batch_size: int
    ) -> tuple[list[list[int]], float]:
        """Greedy answers to `batch_size` prompts at a time, as token ids, and the seconds for all of them."""
        answers: list[list[int]] = []
        started = time.perf_counter()
        for start in range(0, len(prompts), batch_size):
            answers += self._batch(prompts[start : start + batch_size], output_tokens)
        return answers, time.perf_counter() - started

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = self._model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=output_tokens,
            do_sample=False,
        )
        answers: list[list[int]] = output[:, longest:].tolist()
        return answers
