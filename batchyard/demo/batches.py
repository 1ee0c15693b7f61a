"""Training rows: the documents in a new random order each epoch, laid end to end and cut."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Rows of the corpus. All are `[rows, length]`.

    `tokens` are the inputs (int64); `targets` what follows each, or -100 where nothing is learned;
    `documents` numbers the document of each token (int32): attention stays within one.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor

    def to(self, device: torch.device) -> "Batch":
        moved = (part.to(device, non_blocking=True) for part in (self.tokens, self.targets, self.documents))
        return Batch(*moved)


class Corpus:
    """Token ids of many documents; see `tokenizer.pack`."""

    def __init__(self, arrays: dict[str, np.ndarray], pad: int) -> None:
        self._pad = pad
        self.tokens = arrays["tokens"]
        self.starts = arrays["starts"]
        self.kinds = arrays["kinds"]
        self.bytes = arrays["bytes"]
        self._said = np.unpackbits(arrays["said"], count=len(self.tokens)).astype(np.bool_)

    @classmethod
    def load(cls, path: Path, prefix: str, pad: int) -> "Corpus":
        """The training documents (prefix "") or the held-out ones ("held_out_") of a packed file."""
        with np.load(path) as file:
            names = ("tokens", "said", "starts", "kinds", "bytes")
            return cls({name: file[prefix + name] for name in names}, pad)

    def rows(self, order: IntArray, length: int) -> Batch:
        """The documents in this order, as rows of `length` tokens; the last row is padded."""
        sizes = np.diff(self.starts)[order]
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        count = -(-(total - 1) // length)
        where = np.arange(total) + np.repeat(self.starts[order] - (ends - sizes), sizes)
        tokens = np.full(count * length + 1, self._pad, dtype=np.int64)
        documents = np.full(count * length + 1, -1, dtype=np.int32)
        said = np.zeros(count * length + 1, dtype=np.bool_)
        tokens[:total] = self.tokens[where]
        documents[:total] = np.repeat(np.arange(len(order), dtype=np.int32), sizes)
        said[:total] = self._said[where]
        targets = np.where(said[1:] & (documents[1:] == documents[:-1]), tokens[1:], -100)
        shape = (count, length)
        return Batch(
            torch.from_numpy(tokens[:-1].reshape(shape)),
            torch.from_numpy(targets.reshape(shape)),
            torch.from_numpy(documents[:-1].reshape(shape)),
        )

    def epochs(self, rows: int, length: int, seed: int, text_share: float) -> Iterator[Batch]:
        """Batches of `rows` rows for ever; what is left over at the end of an epoch is dropped.

        An epoch has every conversation and a share of the other documents, drawn anew: conversations are
        to be learned by heart, a text read as often stops teaching and starts to be recited.
        """
        rng = np.random.default_rng(seed)
        with ThreadPoolExecutor(max_workers=1) as ahead:
            coming = ahead.submit(self.rows, self._draw(rng, text_share), length)
            while True:
                epoch = coming.result()
                coming = ahead.submit(self.rows, self._draw(rng, text_share), length)
                for at in range(0, len(epoch.tokens) - rows + 1, rows):
                    part = slice(at, at + rows)
                    yield Batch(epoch.tokens[part], epoch.targets[part], epoch.documents[part])

    def _draw(self, rng: np.random.Generator, text_share: float) -> IntArray:
        drawn = (self.kinds == "chat") | (rng.random(len(self.kinds)) < text_share)
        return rng.permutation(np.flatnonzero(drawn))

    def of_kind(self, kind: str) -> IntArray:
        """The documents of one kind."""
        return np.flatnonzero(self.kinds == kind)
