"""Every setting there is: typed, frozen, with its help text. The command line is derived from these classes.

    Settings
    ├── WorkerSettings      batchyard worker
    ├── SchedulerSettings   batchyard scheduler
    ├── GatewaySettings     batchyard gateway
    └── ServeSettings       batchyard serve: all of the above, and how many of each

Names and meanings follow vLLM's flags where it has them.
"""

import socket
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from batchyard.redis_url import check_redis_url

SECRETS = frozenset({"api_key", "api_keys", "redis"})
"""Settings whose values are, or may hold, a key or a password: no error, log or help shows them."""


def _check_trace_url(url: str) -> str:
    # It becomes a link, so nothing like `javascript:` may begin it.
    if not url.startswith(("http://", "https://")) or "{trace_id}" not in url:
        raise ValueError("should begin with http:// or https://, and have {trace_id} where a trace's id goes")
    return url


Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]
RedisUrl = Annotated[str, AfterValidator(check_redis_url)]
TraceUrl = Annotated[str, AfterValidator(_check_trace_url)]


class Settings(BaseModel):
    """What every process has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    otlp: str | None = Field(None, description="OTLP gRPC endpoint, e.g. http://127.0.0.1:4317")
    otlp_metrics_interval: float = Field(
        0.0, ge=0, description="seconds from one export of metrics to --otlp to the next; 0: none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line logged"
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, else JSON"
    )
    metrics_port: Port = Field(
        0, description="port for /metrics of the scheduler or a worker, 0 for none (the gateway has its own)"
    )
    internal_ssl_certfile: str | None = Field(
        None, description="certificate (PEM) by which our processes know each other; default: no TLS"
    )
    internal_ssl_keyfile: str | None = Field(None, description="key of --internal-ssl-certfile")
    internal_ssl_ca_certs: str | None = Field(
        None, description="authorities (PEM) that the certificates of our other processes come from"
    )
    internal_ssl_name: str | None = Field(
        None, description="name that those certificates are for; default: the address connected to"
    )

    @model_validator(mode="after")
    def _mutual_tls_is_whole(self) -> Self:
        files = (self.internal_ssl_certfile, self.internal_ssl_keyfile, self.internal_ssl_ca_certs)
        if None in files and any((*files, self.internal_ssl_name)):
            raise ValueError(
                "internal_ssl_certfile, internal_ssl_keyfile and internal_ssl_ca_certs go together: "
                "each process shows a certificate and asks for one"
            )
        return self


class ModelSettings(Settings):
    """Which model: the gateway needs its tokenizer, the worker its weights."""

    model: str = Field("demo", description="local folder, Hugging Face id, or `demo` (bundled)")


class WorkerSettings(ModelSettings):
    """One process that owns one device."""

    listen: str = Field("127.0.0.1:50052", description="gRPC address to serve: host:port or unix:/path")
    worker_id: str | None = Field(
        None,
        description="name of this worker in logs, traces and metrics; default: the machine's, and the port",
    )
    scheduler_address: tuple[str, ...] = Field(
        ("127.0.0.1:50051",),
        description="gRPC addresses of the schedulers to register with, separated by commas",
    )
    advertise_address: str | None = Field(
        None,
        description="where schedulers reach this worker; default: --listen, for 0.0.0.0 the host they see",
    )
    weight: float = Field(
        1.0, gt=0, description="how fast this worker is beside the others: one of 2 gets twice the work"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="weights and cache; auto: the checkpoint's on CUDA, float32 on the CPU"
    )
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights, for speed")
    seed: int = Field(0, ge=0, description="of dummy weights")
    max_model_len: Positive | None = Field(
        None, description="tokens of prompt and answer together; default: what the model was made for"
    )
    max_num_seqs: Positive = Field(256, description="requests that run at once on a worker")
    max_num_batched_tokens: Positive = Field(8192, description="tokens computed in one step")
    block_size: Literal[8, 16, 32, 64, 128] = Field(16, description="tokens in a block of the KV cache")
    num_gpu_blocks: Positive | None = Field(
        None, description="blocks of the KV cache; default: what free memory gives"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs for decode steps")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the device's memory for weights and KV cache"
    )
    host_cache_gb: float = Field(
        0.0,
        ge=0,
        description="GiB of host memory, for each worker, for blocks that the KV cache has no room for",
    )
    cpu_kv_cache_gb: float = Field(1.0, gt=0, description="GiB of KV cache where the device is the CPU")

    @property
    def name(self) -> str:
        """Of this worker: its id, or what should be nobody else's."""
        return self.worker_id or f"{socket.gethostname()}:{self.listen.rpartition(':')[2]}"

    @model_validator(mode="after")
    def _budget_covers_rows(self) -> "WorkerSettings":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every running request adds a token to each step"
            )
        return self


class RedisSettings(Settings):
    """What schedulers and gateways share. Nothing depends on Redis."""

    redis: RedisUrl | None = Field(
        None,
        description="Redis URL: mirror of the prefix index, the schedulers' lease, limits of all gateways",
    )
    served_model_name: str | None = Field(
        None, description="name in the API, and in metrics that have vLLM's names; default: as --model"
    )


class SchedulerSettings(RedisSettings):
    """The process that steps every worker. Capacities are the workers' own; it asks them."""

    scheduler_listen: str = Field("127.0.0.1:50051", description="gRPC address to serve gateways on")
    worker_addresses: tuple[str, ...] = Field(
        (),
        description="gRPC addresses of workers that do not register themselves, separated by commas",
    )
    steps_in_flight: int = Field(2, ge=1, le=16, description="steps sent ahead, at least; 1 is synchronous")
    step_timeout: float = Field(
        300.0,
        gt=0,
        description="seconds until an unanswered step means a lost worker, at most: workers set the pace",
    )
    enable_prefix_caching: bool = Field(True, description="reuse the cache of equal prompt beginnings")
    calm_chunk_tokens: int = Field(
        384,
        ge=0,
        description="prompt tokens in a step where others decode, while few wait; 0: no such limit",
    )
    max_queue_requests: Positive = Field(2048, description="requests that may wait; more are refused at once")
    max_queue_tokens: Positive = Field(2_097_152, description="prompt tokens that may wait, all together")
    ttft_objective: float = Field(
        1.0, gt=0, description="seconds to a first token that the wanted number of workers is to keep"
    )
    lease_ttl: float = Field(
        1.0,
        gt=0,
        description="with --redis: seconds without word from the active scheduler until a standby takes over",
    )


class GatewaySettings(ModelSettings, RedisSettings):
    """The process that speaks to clients."""

    host: str = Field("127.0.0.1", description="address to serve REST and gRPC on")
    port: Port = Field(8000, description="port of the REST API")
    grpc_port: Port = Field(8001, description="port of the gRPC API, 0 for none")
    share_port: bool = Field(False, description="let several gateways listen on the same ports")
    ssl_certfile: str | None = Field(
        None, description="certificate (PEM) to serve REST and gRPC over TLS with; default: no TLS"
    )
    ssl_keyfile: str | None = Field(None, description="key of --ssl-certfile")
    ssl_ca_certs: str | None = Field(
        None, description="authorities (PEM) that clients need a certificate of; default: they need none"
    )
    api_key: str | None = Field(None, description="clients must send it as a bearer token; default: open")
    api_keys: str | None = Field(
        None,
        description="file or Redis URL of the keys that `batchyard keys` gives out, with their limits",
    )
    gateway_count: Positive = Field(
        1,
        description="gateways: without Redis each grants its share of a key's limits",
    )
    default_max_tokens: Positive | None = Field(
        None,
        description="tokens of an answer that has no max_tokens; default: what the context has left",
    )
    max_answer_tokens: Positive | None = Field(None, description="tokens an answer may have, whoever asks")
    max_prompt_tokens: Positive | None = Field(None, description="tokens a prompt may have, whoever asks")
    client_timeout: float = Field(
        60.0, gt=0, description="seconds in which a client must send its request, and read on"
    )
    scheduler_address: tuple[str, ...] = Field(
        ("127.0.0.1:50051",),
        description="gRPC addresses of the scheduler and its standbys, separated by commas",
    )
    trace_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of traces that --otlp gets, 0 to 1; of failed and slow requests it gets all",
    )
    trace_slow_ms: float = Field(
        2000.0,
        gt=0,
        description="a request is slow that has no news for its client for so many milliseconds",
    )
    trace_content: bool = Field(False, description="have prompts and answers in traces")
    scheduler_wait: float = Field(
        30.0, ge=0, description="seconds that a request waits while there is no scheduler"
    )
    trace_url: TraceUrl | None = Field(
        None,
        description="the console's links to traces, e.g. http://127.0.0.1:16686/trace/{trace_id}",
    )
    gateway_folder: str | None = Field(
        None, description="folder in which gateways that share a port find each other, for the console"
    )
    warm_prompts: str | None = Field(
        None, description="file of prompts to prefill before ready: lines of text (system prompts) or of JSON"
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise ValueError("ssl_ca_certs needs ssl_certfile and ssl_keyfile")
        return self


class ServeSettings(GatewaySettings, SchedulerSettings, WorkerSettings):
    """All processes on one machine, over Unix sockets."""

    workers: Positive = Field(1, description="worker processes; on CUDA, one per GPU")
    gateways: Positive = Field(1, description="gateway processes that share the port")
    schedulers: Positive = Field(1, description="one, and standbys for it; more than one need --redis")

    @model_validator(mode="after")
    def _standbys_have_redis(self) -> "ServeSettings":
        if self.schedulers > 1 and self.redis is None:
            raise ValueError(f"schedulers ({self.schedulers}): standbys need --redis, where the lease is")
        return self
