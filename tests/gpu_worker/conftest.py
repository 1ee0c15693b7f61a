"""A tiny random Llama, saved as transformers save it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.gpu_worker.helpers import VOCAB, load_tiny, make_runner


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """(its folder, the transformers model)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # So large that the logits are far apart: greedy choices must not hang on the last bit.
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    reference = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tiny-llama")
    reference.save_pretrained(folder)
    return folder, reference


@pytest.fixture(scope="session")
def tiny_model(tiny_llama):
    return load_tiny(tiny_llama[0])


@pytest.fixture
def runner(tiny_model):
    """4 rows of up to 128 tokens, 32 blocks of 8, steps of 64 tokens."""
    return make_runner(tiny_model)
