"""Rotary tables against those of transformers, whose angles checkpoints were trained with."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gpu_worker.layers.rope import (
    LinearRope,
    Llama3Rope,
    Rope,
    YarnRope,
    cos_sin_table,
    yarn_attention_factor,
)

HEAD_DIM = 64
POSITIONS = 700
CPU = torch.device("cpu")

YARN = {
    "factor": 4.0,
    "original_max_positions": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
CASES = {
    "default": (Rope(10_000.0), {"rope_type": "default"}),
    "big theta": (Rope(1e6), {"rope_type": "default", "rope_theta": 1e6}),
    # Within the original length, 1,024 here, dynamic scaling does nothing.
    "dynamic": (Rope(10_000.0), {"rope_type": "dynamic", "factor": 2.0}),
    "linear": (LinearRope(10_000.0, factor=2.5), {"rope_type": "linear", "factor": 2.5}),
    "llama3": (
        Llama3Rope(5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=256),
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    "yarn": (
        YarnRope(10_000.0, cos_sin_factor=0.1 * math.log(4.0) + 1, **YARN),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "yarn, every parameter": (
        YarnRope(
            5e4,
            factor=3.0,
            original_max_positions=200,
            cos_sin_factor=0.7,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
        ),
        {
            "rope_type": "yarn",
            "rope_theta": 5e4,
            "factor": 3.0,
            "original_max_position_embeddings": 200,
            "attention_factor": 0.7,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ),
    "yarn, a ramp of no length": (
        YarnRope(10_000.0, cos_sin_factor=1.0, **{**YARN, "original_max_positions": 4}),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "attention_factor": 1.0,
        },
    ),
}


@pytest.mark.parametrize(("rope", "parameters"), CASES.values(), ids=CASES.keys())
def test_table_equals_that_of_transformers(rope, parameters):
    config = LlamaConfig(
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": 10_000.0, **parameters},
    )
    positions = torch.arange(POSITIONS).unsqueeze(0)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)

    table = cos_sin_table(rope, HEAD_DIM, POSITIONS, CPU)

    assert table.shape == (POSITIONS, HEAD_DIM)
    assert table.dtype == torch.float32
    half = HEAD_DIM // 2
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], rtol=0, atol=1e-6)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], rtol=0, atol=1e-6)


def test_yarn_attention_factor():
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(40.0) == pytest.approx(0.1 * math.log(40) + 1)
    assert yarn_attention_factor(40.0, mscale=1.0, mscale_all_dim=1.0) == 1.0
    assert yarn_attention_factor(40.0, mscale=2.0, mscale_all_dim=None) == yarn_attention_factor(40.0)


def test_max_context():
    assert Rope(10_000.0).max_context(4096) == 4096
    assert LinearRope(10_000.0, factor=4.0).max_context(4096) == 16_384
    stretched = YarnRope(10_000.0, cos_sin_factor=1.0, **{**YARN, "original_max_positions": 32_768})
    assert stretched.max_context(32_768) == 131_072
    assert stretched.max_context(131_072) == 131_072
