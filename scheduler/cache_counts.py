"""What has become of one worker's cached blocks, counted over all its streams."""

from dataclasses import astuple, dataclass

from scheduler.batcher import Batcher


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Blocks, and microseconds."""

    evicted: int = 0  # from the device
    host_evicted: int = 0
    saved: int = 0
    loaded: int = 0
    save_us: int = 0
    load_us: int = 0

    def __add__(self, other: "CacheCounts") -> "CacheCounts":
        return CacheCounts(
            *(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    @classmethod
    def of(cls, batcher: Batcher) -> "CacheCounts":
        """Of one stream so far."""
        tiers = batcher.tiers
        return cls(
            evicted=batcher.pool.evictions,
            host_evicted=tiers.host.evictions,
            saved=tiers.saved_blocks,
            loaded=tiers.loaded_blocks,
            save_us=tiers.save_us,
            load_us=tiers.load_us,
        )
