"""Every error Batchyard raises, as one tree.

BatchyardError
├── UserError                  the user can mend it: one line, no traceback; HTTP 4xx or exit code 2
│   ├── ConfigError            a setting is unknown or bad; the message names it
│   ├── ModelError             a model folder is missing, truncated or of an unsupported kind
│   ├── InvalidRequest         a request that can never be served as asked (HTTP 400)
│   ├── BadTarget              the server to be measured is not there, or does not answer what it is asked
│   ├── AddressInUse           a port or socket is taken
│   └── UnknownWorker          no worker has that name, or several have it
├── Overloaded                 there is no room now: the client has its share already (HTTP 429)
│   └── ServerFull             others have the room (HTTP 503)
└── InternalError              we, or the machine, failed
    ├── WorkerLost             a worker's stream broke or its deadline passed
    │   └── WorkerTaken        another scheduler has it now: the worker is well
    ├── WorkerRefused          a worker that registers does not fit those that are here
    ├── SchedulerLost          the scheduler cannot be reached (HTTP 503)
    ├── RequestFailed          a request cannot be finished, and the message says why (HTTP 500)
    └── ProtocolError          a peer said something the protocol does not allow
        └── NanLogits          a worker sampled from logits that are no numbers
"""

from collections.abc import Sequence


class BatchyardError(Exception):
    """The root: `except BatchyardError` catches everything of ours and nothing else."""


class UserError(BatchyardError):
    """Something the user can mend. The message is one line that says what is wrong and what to do."""


class ConfigError(UserError):
    """A setting is unknown or has a bad value. The message names the setting."""


class ModelError(UserError):
    """A model folder cannot be used: missing, truncated, or of a kind that is not supported."""


class InvalidRequest(UserError):
    """A request that can never be served as asked. `param` is the request field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadTarget(UserError):
    """The server to be measured cannot be reached, or refuses the key, or has not got the model."""


class AddressInUse(UserError):
    """A port or a socket is taken by another process."""


class UnknownWorker(UserError):
    """No worker has that name, or several have it. The message says which workers there are."""


class TraceUnread(UserError):
    """A trace cannot be read, or has no request of ours in it."""


class Overloaded(BatchyardError):
    """There is no room now. `retry_after_s` says in how many seconds there should be, where that is known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerFull(Overloaded):
    """There is no room now, whoever asks."""


class InternalError(BatchyardError):
    """Not the user's fault."""


class WorkerLost(InternalError):
    """A worker's stream broke, or it missed the deadline of a step."""


class WorkerTaken(WorkerLost):
    """Another stream has taken the worker over: nothing is wrong with it, nor with what it was doing."""


class WorkerRefused(InternalError):
    """A worker that registers cannot be used beside those that are here."""


class SchedulerLost(InternalError):
    """The scheduler cannot be reached now."""


class RequestFailed(InternalError):
    """A request that was accepted cannot be finished. The message is meant for who asked."""


class ProtocolError(InternalError):
    """A peer sent a message that the protocol does not allow."""


class NanLogits(ProtocolError):
    """A worker sampled from logits that are no numbers, in these `rows`."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = rows
