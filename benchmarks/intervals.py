"""Intervals for shares."""

import math
from collections.abc import Sequence

Z95 = 1.959964


def wilson(share: float, total: float, z: float = Z95) -> tuple[float, float]:
    """Interval of a share seen in `total` independent trials (Wilson 1927); `total` need not be whole."""
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_interval(clusters: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """95 % interval of the share of True over all, where those of one cluster (prompt) may be alike.

    Wilson's interval with the effective number of trials: the answers divided by their design effect, that is
    the variance of the cluster means over what independent answers would show (Kish 1965), kept between the
    number of clusters and that of answers. Clusters must be of one size.
    """
    size, count = len(clusters[0]), len(clusters)
    assert all(len(cluster) == size for cluster in clusters)
    means = [sum(cluster) / size for cluster in clusters]
    share = sum(means) / count
    expected = share * (1 - share) / size
    if count < 2 or not expected:
        return wilson(share, count)
    found = sum((mean - share) ** 2 for mean in means) / (count - 1)
    return wilson(share, max(count, min(count * size, count * size * expected / max(found, 1e-12))))
