"""Every family against transformers: logits, and greedy text from a paged cache, in float32."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama": (LlamaConfig, {}),
    "llama, tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, one head per kv head": (LlamaConfig, {"num_key_value_heads": 4}),
    "llama, wide heads": (LlamaConfig, {"head_dim": 32}),
    "llama, llama3 rope": (LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama, linear rope": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "llama, yarn rope": (LlamaConfig, {"rope_parameters": YARN}),
    # Far smaller than the longest sequence here.
    "mistral, window": (MistralConfig, {"sliding_window": 7}),
    "mistral, no window": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2, window in later layers": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "qwen3, biases, tied": (
        Qwen3Config,
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ),
}
NUM_TOKENS = 40


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model_and_reference(request, make_model, load):
    config_class, changes = request.param
    folder, reference = make_model(config_class, **changes)
    return load(folder), reference


def prompts_of(*lengths: int) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(3, 300, (length,)).tolist() for length in lengths]


def greedy(reference, prompt: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    ids = torch.tensor([prompt])
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
    )
    return out[0, len(prompt) :].tolist()


def test_logits_and_greedy_text_equal_those_of_transformers(model_and_reference, paged):
    model, reference = model_and_reference
    prompts = prompts_of(23, 1, 40, 6)

    whole = paged(model, prompts, max_tokens=0)
    hidden = whole.hidden({0: 23, 1: 1, 2: 40, 3: 6})
    start = 0
    for prompt in prompts:
        rows = model.logits(hidden[start : start + len(prompt)])
        start += len(prompt)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0]
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4)

    expected_texts = [greedy(reference, prompt) for prompt in prompts]
    assert len({tuple(text) for text in expected_texts}) == len(prompts), "the reference model says one thing"
    batched = paged(model, prompts, NUM_TOKENS)
    assert batched.generate(chunk_sizes=[5, 3, 9, 1]) == expected_texts


def test_one_at_a_time_says_the_same(saved_llama, load, paged):
    folder, reference = saved_llama
    model = load(folder)
    for prompt in prompts_of(17, 9):
        alone = paged(model, [prompt], NUM_TOKENS, block_size=16)
        assert alone.generate(chunk_sizes=[100]) == [greedy(reference, prompt)]


def test_int32_token_ids_and_no_gradients(saved_llama, load, paged):
    model = load(saved_llama[0])
    sequence = paged(model, prompts_of(5), max_tokens=0)
    ids = torch.tensor(sequence.prompts[0], dtype=torch.int32)
    metadata = sequence.metadata({0: 5})
    hidden = model.forward(ids, metadata, sequence.caches)
    assert hidden.shape == (5, 64)
    assert not hidden.requires_grad
    torch.testing.assert_close(hidden, model.forward(ids.long(), metadata, sequence.caches))


def test_bfloat16_is_close(saved_llama, load, paged):
    folder, reference = saved_llama
    model = load(folder, dtype=torch.bfloat16)
    prompt = prompts_of(12)[0]
    sequence = paged(model, [prompt], max_tokens=0)
    logits = model.logits(sequence.hidden({0: 12}))
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    assert model.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits, expected).min() > 0.98
