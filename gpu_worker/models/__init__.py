"""Decoder models and their weights: `load_model` takes a folder in the Hugging Face format."""

from gpu_worker.models.config import ModelConfig, load_config
from gpu_worker.models.llama import LlamaModel
from gpu_worker.models.loader import load_model, resolve_dtype

__all__ = ["LlamaModel", "ModelConfig", "load_config", "load_model", "resolve_dtype"]
