"""Wilson's interval for a share: honest at small counts and near 0 or 1, where the usual plus-or-minus is
not.
"""

from __future__ import annotations

import math
from typing import Final

Z_95: Final = 1.959963984540054
"""Two-sided 95 %."""


def wilson_interval(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Lower and upper bound of a share of `successes` in `n` trials; (0, 1), no knowledge, without trials.

    `successes` may hold halves, for ties. Source: Wilson 1927, as in Brown, Cai and DasGupta 2001, equation
    4.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    scale = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
