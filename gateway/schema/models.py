"""`GET /v1/models`, and the answers of the probes."""

from typing import Literal

from pydantic import Field

from gateway.schema.common import Strict


class ModelCard(Strict):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970")
    owned_by: str = "batchyard"
    max_model_len: int = Field(description="tokens of prompt and answer together")


class ModelList(Strict):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class State(Strict):
    """How a process is."""

    status: Literal["ok", "ready"]
