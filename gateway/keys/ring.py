"""The keys that open this gateway, as they were last read. A change takes effect within a second."""

import asyncio
import hmac
from collections.abc import Iterable

import structlog

from batchyard.errors import ConfigError
from gateway.errors import KeysUnread, Unauthenticated
from gateway.keys.records import ANYBODY, Records, Tenant, digest_of
from gateway.keys.stores import KeysAway, KeyStore

log = structlog.get_logger()

POLL_S = 1.0

# Keys are found by the beginning of their digest, and then compared whole in constant time. What the time of
# the look-up may tell is of digests, and nobody can choose theirs: near a stored one is not near its key.
_INDEX = 16  # hexadecimal digits
_NOBODY = ("0" * 64, ANYBODY)

_Index = dict[str, tuple[str, Tenant]]


class KeyRing:
    """Whose key a request has. Without a store and without a fixed key, everybody is welcome."""

    def __init__(self, store: KeyStore | None = None, fixed: str | None = None) -> None:
        """`fixed` is a key that is given by a setting, not kept anywhere; its holder has no limits."""
        self._store = store
        self._fixed = {} if fixed is None else _indexed([(digest_of(fixed.encode()), ANYBODY)])
        self._tenants: _Index | None = self._fixed if store is None else None
        self._complaint: str | None = None
        self.required = store is not None or fixed is not None

    def __len__(self) -> int:
        return len(self._tenants or ())

    def tenant(self, authorization: bytes | None) -> Tenant:
        """Whose key the header `authorization` has. Raises Unauthenticated and KeysUnread."""
        if not self.required:
            return ANYBODY
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            raise Unauthenticated("No API key given: send it as the header `Authorization: Bearer KEY`.")
        if self._tenants is None:
            raise KeysUnread
        digest = digest_of(given.strip())
        stored, tenant = self._tenants.get(digest[:_INDEX], _NOBODY)
        if not hmac.compare_digest(stored, digest):
            raise Unauthenticated("The API key is wrong.")
        return tenant

    async def read(self) -> None:
        """Reads the keys for the first time. Raises ConfigError where they are malformed or there is no file.

        A Redis that is away is no reason not to start: `run` tries again, and clients get 503 meanwhile.
        """
        if self._store is None:
            return
        await self._poll(self._store)

    async def run(self) -> None:
        """Keeps the keys as they are in the store, until cancelled."""
        while self._store is not None:
            await asyncio.sleep(POLL_S)
            try:
                await self._poll(self._store)
            except ConfigError as error:
                self._keep(str(error))

    async def _poll(self, store: KeyStore) -> None:
        try:
            records = await store.poll()
        except KeysAway as error:
            self._keep(str(error))
            return
        if records is not None:
            self._replace(records)
        if self._complaint is not None:
            self._complaint = None
            log.info("API keys can be read again", keys=len(self))

    def _replace(self, records: Records) -> None:
        before = {tenant.name for _, tenant in (self._tenants or {}).values()} - {""}
        self._tenants = _indexed([(record.sha256, record) for record in records]) | self._fixed
        names = {record.name for record in records}
        log.info("API keys", keys=len(self), added=sorted(names - before), revoked=sorted(before - names))

    def _keep(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            log.error("API keys cannot be read; those read last stay good", reason=complaint, keys=len(self))


def _indexed(tenants: Iterable[tuple[str, Tenant]]) -> _Index:
    return {digest[:_INDEX]: (digest, tenant) for digest, tenant in tenants}
