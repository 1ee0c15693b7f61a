"""The demo model that ships with Batchyard, and everything needed to make it again."""

from pathlib import Path

_HERE = Path(__file__).parent

MODEL_DIR = _HERE / "model"
"""The demo model: a Llama of under 8 million parameters, loadable by `transformers`."""

DRAFT_DIR = _HERE / "draft"
"""A Llama of about one million parameters with the same tokenizer, to draft for the demo model."""

HELD_OUT = _HERE / "held_out.json"
"""The text neither model was trained on: a list of `{"kind", "topic", "text" or "messages"}`."""
