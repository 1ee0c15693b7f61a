"""API keys as they are kept: never the key itself, but its SHA-256 and what its holder was promised.

A key is 32 random bytes, so a plain SHA-256 is enough: what makes slow hashes (bcrypt, argon2) necessary for
passwords is that those can be guessed. It takes a microsecond, which matters, for it is taken per request.
"""

import hashlib
import secrets
from datetime import datetime
from typing import Annotated, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from batchyard.errors import ConfigError

_INT32 = 2**31 - 1
_MOST_URGENT = "most urgent priority that may be asked for; lower is more urgent"

Positive = Annotated[int, Field(ge=1, le=_INT32)]
Priority = Annotated[int, Field(ge=-_INT32 - 1, le=_INT32)]
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Tenant(BaseModel):
    """Whose requests these are, and what bounds them. Nameless: everybody, where no keys are needed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    requests_per_minute: Positive | None = Field(default=None, description="requests begun in any 60 seconds")
    tokens_per_minute: Positive | None = Field(
        default=None, description="tokens of prompts and answers in any 60 seconds"
    )
    concurrent_requests: Positive | None = Field(
        default=None, description="answers being generated at once; a request with n=3 is three"
    )
    max_tokens: Positive | None = Field(default=None, description="tokens that one answer may have")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="share of the tokens when all want more than there are",
    )
    min_priority: Priority = Field(default=-_INT32 - 1, description=_MOST_URGENT)
    max_priority: Priority = Field(default=_INT32, description="least urgent priority that may be asked for")
    cache_salt: Annotated[str, Field(max_length=256)] = Field(
        default="", description="share cached prompt beginnings only with keys of the same salt"
    )
    default_timeout: Seconds | None = Field(
        default=None, description="seconds for a whole request that does not say"
    )
    max_timeout: Seconds | None = Field(default=None, description="seconds for a whole request, at most")
    operator: bool = Field(default=False, description="see the requests of all keys, and the workers")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_priority > self.max_priority:
            raise ValueError(
                f"min_priority ({self.min_priority}) must not exceed max_priority ({self.max_priority})"
            )
        return self

    @property
    def default_priority(self) -> int:
        """Of a request that does not say: 0, or what is nearest to it in the range."""
        return min(max(0, self.min_priority), self.max_priority)


# Where there are no keys, all may do everything.
ANYBODY = Tenant(operator=True)


class KeyRecord(Tenant):
    """A key that was given out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: AwareDatetime
    # To be urgent is a promise to be made by name, for it is at the cost of the others.
    min_priority: Priority = Field(default=0, description=_MOST_URGENT)


Records = tuple[KeyRecord, ...]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: Records = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what in ("name", "sha256"):
            values = [getattr(record, what) for record in self.keys]
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise ValueError(f"two keys have the {what} {twice}")
        return self


_DOCUMENT = TypeAdapter(_Document)


def new_key() -> str:
    """A key that nobody has: 256 random bits."""
    return f"by-{secrets.token_urlsafe(32)}"


def digest_of(key: bytes) -> str:
    """How `key` is kept."""
    return hashlib.sha256(key).hexdigest()


def record_for(key: str, created: datetime, name: str, **promises: object) -> KeyRecord:
    """The record of `key`. Raises ConfigError for a name or a promise that cannot be."""
    values = {"name": name, "sha256": digest_of(key.encode()), "created": created, **promises}
    try:
        return KeyRecord.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_complaint(error)) from error


def parse_records(text: bytes, where: str) -> Records:
    """The keys in a JSON document `{"keys": [...]}`. Raises ConfigError, which says `where` it is from."""
    try:
        return _DOCUMENT.validate_json(text).keys
    except ValidationError as error:
        raise ConfigError(f"{where}: {_complaint(error)}") from error


def dump_records(records: Records) -> bytes:
    """The document that `parse_records` reads; what is at its default is left out."""
    document = _Document(keys=records)
    return document.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"


def _complaint(error: ValidationError) -> str:
    """The first fault, in one line, without the value: it may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
