"""How long to wait between two tries of a call that the device turned down."""

from __future__ import annotations

import random
from collections.abc import Iterator

SHORTEST = 0.010
LONGEST = 0.250


def delays() -> Iterator[float]:
    """Seconds to wait, growing from 10 to 250 ms; jitter keeps clients from marching in step."""
    most = SHORTEST
    while True:
        most = min(2 * most, LONGEST)
        yield random.uniform(SHORTEST, most)
