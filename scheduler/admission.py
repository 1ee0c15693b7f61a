"""What may enter: a request that can never run is refused at the door, with the reason."""

from collections.abc import Iterable

from batchyard.errors import InvalidRequest
from protos.packing import unpack_i32
from protos.scheduling_pb2 import Submit
from protos.step_pb2 import WorkerDescription


def check(submit: Submit, workers: Iterable[WorkerDescription]) -> None:
    """Raises InvalidRequest unless at least one of `workers` could run `submit` with nobody else on it."""
    tokens = unpack_i32(submit.tokens)
    if not len(tokens) or not 1 <= submit.prompt_len <= len(tokens):
        raise InvalidRequest("the prompt is empty", "prompt")
    if submit.max_tokens < 1 or submit.prompt_len + submit.max_tokens <= len(tokens):
        raise InvalidRequest(f"max_tokens is {submit.max_tokens}: nothing is left to generate", "max_tokens")
    reasons = [reason for worker in workers if (reason := _misfit(submit, worker))]
    if reasons and len(reasons) == len(list(workers)):
        raise InvalidRequest(reasons[0], "max_tokens")


def _misfit(submit: Submit, worker: WorkerDescription) -> str | None:
    """Why `submit` can never run on `worker`; None when it can."""
    wanted = submit.prompt_len + submit.max_tokens
    if wanted > worker.max_model_len:
        return (
            f"This model's maximum context length is {worker.max_model_len} tokens. However, you requested "
            f"{wanted} tokens ({submit.prompt_len} in the prompt, {submit.max_tokens} for the completion). "
            "Please reduce the length of either one."
        )
    blocks = -(-wanted // worker.block_size)
    if blocks > worker.num_blocks:
        return (
            f"The request needs {blocks} cache blocks ({wanted} tokens), the worker has {worker.num_blocks} "
            f"({worker.num_blocks * worker.block_size} tokens). Please reduce the prompt or max_tokens."
        )
    highest = int(unpack_i32(submit.tokens).max())
    lowest = int(unpack_i32(submit.tokens).min())
    if lowest < 0 or highest >= worker.vocab_size:
        return f"token ids must be between 0 and {worker.vocab_size - 1}"
    return None
