"""From settings to a runner that is ready: device, weights, cache, warm kernels."""

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog
import torch

from batchyard.config import WorkerSettings
from batchyard.errors import ConfigError
from batchyard.hub import resolve_model
from gpu_worker.dummy_steps import largest_step, warm_up, warm_up_briefly
from gpu_worker.fingerprint import model_fingerprint
from gpu_worker.host_cache import STAGING_BYTES, HostCache, host_cache_for
from gpu_worker.kernels.ops import Ops
from gpu_worker.kv_cache import CacheShape, by_layer, count_blocks
from gpu_worker.models import LlamaModel, ModelConfig, load_config, load_model, resolve_dtype
from gpu_worker.rows import RowLimits, RowTable
from gpu_worker.runner import Runner
from protos.step_pb2 import WorkerDescription

log = structlog.get_logger()

_GIB = 1 << 30
_REPORT_INTERVAL = 1.0  # seconds between reports of loading
SHRINK = 0.9  # of the blocks stay when there was too little memory besides the cache


class Started(NamedTuple):
    """A worker that is ready, and its host tier, if it was asked for."""

    runner: Runner
    description: WorkerDescription
    host_cache: HostCache | None


def start_runner(settings: WorkerSettings, stop: Callable[[], None]) -> Started:
    """Loads the model, sizes the cache, warms up. Takes as long as it takes: `stop`, called often, may raise.

    Raises ConfigError and ModelError.
    """
    folder = resolve_model(settings.model)
    config = load_config(folder)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(config, settings.dtype, device)
    max_model_len = _max_model_len(settings, config)
    model = load_model(
        folder,
        load_format=settings.load_format,
        dtype=dtype,
        device=device,
        ops=_ops_for(device),
        max_model_len=max_model_len,
        seed=settings.seed,
        progress=_Progress(stop),
    )
    fingerprint = model_fingerprint(folder, settings.load_format, settings.seed, model.dtype)
    return _start_on(settings, model, max_model_len, fingerprint, stop)


def start_smaller(
    settings: WorkerSettings, model: LlamaModel, before: WorkerDescription, stop: Callable[[], None]
) -> Started:
    """Builds all but the model anew, with a smaller cache than that of the worker `before`.

    Nobody may refer to the runner of before. Raises ConfigError where not even that fits.
    """
    fewer = max(1, int(SHRINK * before.num_blocks))
    if fewer * before.block_size < before.max_model_len:
        raise ConfigError("out of memory, and the cache cannot shrink: it would not hold one whole sequence")
    log.warning("cache_shrinks", blocks=before.num_blocks, then=fewer)
    smaller = settings.model_copy(update={"num_gpu_blocks": fewer})
    return _start_on(smaller, model, before.max_model_len, before.model, stop)


def _start_on(
    settings: WorkerSettings,
    model: LlamaModel,
    max_model_len: int,
    fingerprint: str,
    stop: Callable[[], None],
) -> Started:
    device = model.device
    runner, host_cache = _build_runner(settings, model, max_model_len)
    if device.type == "cuda":
        warm_up(runner, stop)
        if not settings.enforce_eager:
            runner.capture_graphs(stop)
    else:
        warm_up_briefly(runner)
    return Started(runner, _describe(settings, runner, fingerprint), host_cache)


def resolve_device(requested: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`. Raises ConfigError where there is no such device."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device is visible; use --device cpu or auto")
    return torch.device(requested)


def _max_model_len(settings: WorkerSettings, config: ModelConfig) -> int:
    asked = settings.max_model_len
    if asked is not None and asked > config.max_context:
        raise ConfigError(
            f"--max-model-len {asked} is more than the {config.max_context} tokens the model was made for"
        )
    return asked or config.max_context


def _ops_for(device: torch.device) -> Ops:
    if device.type == "cuda":
        # Imported here: Triton takes a while, and not every machine has it.
        from gpu_worker.kernels.triton_ops import TritonOps

        return TritonOps.for_device(device)
    from gpu_worker.kernels.reference import TorchOps

    return TorchOps()


class _Progress:
    """Logs how far loading has come, about once a second and at the end."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._next_report = 0.0

    def __call__(self, done: int, total: int) -> None:
        self._stop()
        if done == total or time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + _REPORT_INTERVAL
            log.info("loading_weights", done=done, total=total)


def _build_runner(
    settings: WorkerSettings, model: LlamaModel, max_model_len: int
) -> tuple[Runner, HostCache | None]:
    shape = CacheShape.of(model.config, settings.block_size, model.dtype)
    if model.device.type == "cuda":
        flag = "--gpu-memory-utilization"
        available = _free_memory_on_gpu(settings, model, shape, max_model_len)
        if settings.host_cache_gb:
            available -= 2 * STAGING_BYTES
    else:
        flag = "--cpu-kv-cache-gb"
        available = int(settings.cpu_kv_cache_gb * _GIB)
    num_blocks = count_blocks(shape, settings, max_model_len, available, flag)
    num_host_blocks = int(settings.host_cache_gb * _GIB) // shape.block_bytes
    memory = shape.allocate(num_blocks, model.device)
    host_cache = host_cache_for(memory, num_host_blocks) if num_host_blocks else None
    return _runner_on(settings, model, max_model_len, memory, num_host_blocks), host_cache


def _runner_on(
    settings: WorkerSettings,
    model: LlamaModel,
    max_model_len: int,
    memory: torch.Tensor,
    num_host_blocks: int = 0,
) -> Runner:
    limits = RowLimits(
        max_rows=settings.max_num_seqs,
        max_model_len=max_model_len,
        max_batched_tokens=settings.max_num_batched_tokens,
        num_blocks=memory.shape[2],
        block_size=settings.block_size,
        num_host_blocks=num_host_blocks,
    )
    rows = RowTable(limits, model.config.vocab_size, model.device)
    return Runner(model, rows, by_layer(memory))


def _free_memory_on_gpu(
    settings: WorkerSettings, model: LlamaModel, shape: CacheShape, max_model_len: int
) -> int:
    """Bytes for the cache: our share of the device, less what the largest step takes at its peak."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # A cache of one block will do: all rows write over one another.
    runner = _runner_on(settings, model, max_model_len, shape.allocate(1, model.device))
    try:
        runner.execute(largest_step(runner.rows.limits), time.perf_counter_ns()).result()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"a step of --max-num-batched-tokens {settings.max_num_batched_tokens} with --max-num-seqs "
            f"{settings.max_num_seqs} does not fit in the GPU's memory: lower them"
        ) from error
    peak = torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    elsewhere = total - free - torch.cuda.memory_reserved()
    del runner
    torch.cuda.empty_cache()
    return int(settings.gpu_memory_utilization * total) - elsewhere - peak


def _describe(settings: WorkerSettings, runner: Runner, fingerprint: str) -> WorkerDescription:
    model, limits = runner.model, runner.rows.limits
    is_gpu = model.device.type == "cuda"
    return WorkerDescription(
        worker_id=settings.name,
        epoch=secrets.randbits(64),
        model=fingerprint,
        num_blocks=limits.num_blocks,
        num_host_blocks=limits.num_host_blocks,
        block_size=limits.block_size,
        max_rows=limits.max_rows,
        max_model_len=limits.max_model_len,
        max_batched_tokens=limits.max_batched_tokens,
        vocab_size=model.config.vocab_size,
        device=torch.cuda.get_device_name(model.device) if is_gpu else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
        weight=settings.weight,
    )
