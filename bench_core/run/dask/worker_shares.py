"""Sharing of hosts' cores among Dask workers: pure functions of the current workers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

__all__ = ["full_share_holders", "share_cores"]

Found = Mapping[str, tuple[str, Sequence[int]]]


def share_cores(found: Found, threads: int) -> tuple[dict[str, int], int]:
    """Return how many threads each worker may use, by address, and how many stages of ``threads`` threads fit at once.

    Workers that may use the same cores of a host share them evenly.

    Args:
        found: host and cores of each worker.
        threads: of a stage whose last bits depend on their number.
    """
    together = _together(found)
    shares = {
        address: max(1, len(cores) // len(addresses))
        for (_, cores), addresses in together.items()
        for address in addresses
    }
    return shares, sum(_at_once(cores, threads) for _, cores in together)


def full_share_holders(found: Found, threads: int, holders: Mapping[str, bool]) -> list[str]:
    """Return the workers that may run stages of ``threads`` threads: as many per host as its cores allow.

    Args:
        found: host and cores of each worker.
        threads: of such a stage.
        holders: by address, whether a worker already may; it keeps the right.
    """
    chosen: list[str] = []
    for (_, cores), addresses in _together(found).items():
        ordered = sorted(addresses, key=lambda address: (not holders.get(address, False), address))
        chosen += ordered[: _at_once(cores, threads)]
    return chosen


def _together(found: Found) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    together: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for address, (host, cores) in found.items():
        together[host, tuple(cores)].append(address)
    return together


def _at_once(cores: Sequence[int], threads: int) -> int:
    return max(1, len(cores) // threads)
