"""The same tokens as transformers, and the same however requests are batched, stepped or preempted."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from batchyard.demo import HELD_OUT, MODEL_DIR
from gateway.tokenizing import Tokenizer
from tests.end_to_end.chain import chain

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(MODEL_DIR)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """50 pieces of held-out texts, 3 to 400 tokens."""
    texts = [d["text"] for d in json.loads(HELD_OUT.read_text()) if d["kind"] != "chat"]
    pieces = [text[start : start + 3000] for text in texts for start in range(0, len(text), 3000)]
    encoded = [ids for ids in map(tokenizer.encode, pieces) if len(ids) > 400]
    return [ids[: 3 + (n * n * 7) % 398] for n, ids in enumerate(encoded[:50])]


@torch.inference_mode()
def by_transformers(folder, prompts, max_tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


@pytest.fixture(scope="module")
def expected(prompts):
    return by_transformers(MODEL_DIR, prompts, NEW_TOKENS)


async def test_50_held_out_prompts_at_once_equal_transformers(tmp_path, tokenizer, prompts, expected):
    assert len(prompts) == 50
    async with chain("demo", tmp_path, tokenizer, max_num_batched_tokens=512) as asked:
        assert await asked.together(prompts, NEW_TOKENS) == expected


@pytest.mark.parametrize(
    "how",
    [
        {"steps_in_flight": 1},
        {"steps_in_flight": 4},
        {"caching": False},
        {"max_num_seqs": 3, "max_num_batched_tokens": 64, "block_size": 8},
    ],
    ids=str,
)
async def test_however_it_is_stepped(tmp_path, tokenizer, prompts, expected, how):
    async with chain("demo", tmp_path, tokenizer, **how) as asked:
        assert await asked.together(prompts[:20], NEW_TOKENS) == expected[:20]


async def test_one_at_a_time(tmp_path, tokenizer, prompts, expected):
    async with chain("demo", tmp_path, tokenizer) as asked:
        assert await asked.in_turn(prompts[:12], NEW_TOKENS) == expected[:12]


SAMPLED = {"temperature": 0.9, "top_p": 0.9, "seed": 11, "presence_penalty": 0.4, "repetition_penalty": 1.1}


@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
async def test_a_pool_so_small_that_it_preempts(tmp_path, tokenizer, prompts, params):
    short = [prompt[:60] for prompt in prompts[:16]]
    async with chain("demo", tmp_path, tokenizer) as asked:
        calm = await asked.in_turn(short, 60, **params)
        assert asked.scheduler.preemptions == 0
    async with chain("demo", tmp_path, tokenizer, max_model_len=160, num_gpu_blocks=20) as asked:
        for _ in range(400):  # so that these take it by surprise
            asked.scheduler.answers.observe(1)
        assert await asked.together(short, 60, **params) == calm
        assert asked.scheduler.preemptions > 0
        pool = asked.scheduler.lanes[0].batcher.pool
        pool.check()


async def test_a_pool_so_small_that_blocks_move_to_the_host_and_back(tmp_path, tokenizer, prompts, expected):
    longest = sorted(range(50), key=lambda n: -len(prompts[n]))[:12]
    chosen, wanted = [prompts[n] for n in longest], [expected[n] for n in longest]
    small = {"max_model_len": 448, "num_gpu_blocks": 60, "host_cache_gb": 0.05}
    async with chain("demo", tmp_path, tokenizer, **small) as asked:
        for _ in range(2):
            assert await asked.together(chosen, NEW_TOKENS) == wanted
        assert await asked.in_turn(chosen[:4], NEW_TOKENS) == wanted[:4]
        batcher = asked.scheduler.lanes[0].batcher
        assert asked.scheduler.hits.host > 1000
        assert batcher.tiers.loaded_blocks * 16 >= asked.scheduler.hits.host
        batcher.pool.check()
        batcher.tiers.host.check()


TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "eos_token_id": None,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": LlamaConfig(**TINY),
    "llama-3": LlamaConfig(**TINY, rope_parameters=LLAMA_3, tie_word_embeddings=True),
    "mistral": MistralConfig(**TINY, sliding_window=24),
    "qwen2": Qwen2Config(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=32),
}


@pytest.mark.parametrize("family", FAMILIES)
async def test_random_models_of_every_family_equal_transformers(tmp_path, tokenizer, family):
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=torch.float32)
    reference.save_pretrained(tmp_path / "model")
    random = torch.Generator().manual_seed(2)
    prompts = [torch.randint(2, 300, (n,), generator=random).tolist() for n in (1, 7, 33, 64, 90)]
    wanted = by_transformers(tmp_path / "model", prompts, 40)
    async with chain(tmp_path / "model", tmp_path, tokenizer, max_num_batched_tokens=256) as asked:
        assert await asked.together(prompts, 40) == wanted
