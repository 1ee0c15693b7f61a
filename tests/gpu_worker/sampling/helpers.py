"""Sampling without a model: logits, parameters and tokens in, tokens out."""

import numpy as np
import torch

from gpu_worker.sampling.collect import collect
from gpu_worker.sampling.params import SamplingTable, parse_sampling
from gpu_worker.sampling.reference import pick
from gpu_worker.sampling.sampler import sample
from tests.gpu_worker.helpers import sampling


def ask(params, vocab_size, prompt_lens, known):
    """The SamplingBatch of rows with these parameters, one dict each."""
    table = SamplingTable(len(params))
    for row, changes in enumerate(params):
        table.set(row, parse_sampling(sampling(**changes), vocab_size))
    rows = np.arange(len(params))
    asked = collect(table, rows, np.asarray(prompt_lens), np.asarray(known), vocab_size)
    return asked.map(torch.from_numpy)


def sample_rows(logits, params, texts=None, prompt_lens=None):
    """Samples row i of `logits` [n, vocab] with params[i] behind the tokens texts[i]; `Sampled`."""
    texts = texts or [[0]] * len(params)
    known = [len(text) for text in texts]
    token_table = torch.full((len(texts), max(known) + 3), logits.shape[1] - 1, dtype=torch.int32)
    for row, text in enumerate(texts):
        token_table[row, : len(text)] = torch.tensor(text, dtype=torch.int32)
    asked = ask(params, logits.shape[1], known if prompt_lens is None else prompt_lens, known)
    places = torch.arange(len(texts)) * token_table.shape[1] + torch.tensor(known)
    sampled = sample(logits.clone(), asked, token_table, places, pick)
    assert torch.equal(token_table.view(-1)[places], sampled.tokens.clamp(min=0).int())
    return sampled


def tokens_of(*args, **kwargs):
    return sample_rows(*args, **kwargs).tokens.tolist()
