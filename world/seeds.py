"""Named, disjoint ranges of scene seeds, so that training, validation, test and demo never share a
scene."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN = range(10_000_000)
VALIDATION = range(10_000_000, 11_000_000)
TEST = range(11_000_000, 12_000_000)
#: Scenes that train independent judges and estimators, never the model or its heads.
JUDGE = range(20_000_000, 30_000_000)
DEMO = range(100_000_000, 1_100_000_000)
RANGES: dict[str, range] = {
    "train": TRAIN,
    "validation": VALIDATION,
    "test": TEST,
    "judge": JUDGE,
    "demo": DEMO,
}
#: Room that each user seed of the demo has for its own scenes.
DEMO_STRIDE = 1000


def demo_seeds(user_seed: int, count: int = DEMO_STRIDE) -> Sequence[int]:
    """`count` <= 1000 demo scene seeds for any integer a user names; disjoint from all other
    ranges."""
    if not 0 < count <= DEMO_STRIDE:
        raise ValueError(f"count must be 1..{DEMO_STRIDE}, not {count}")
    slots = len(DEMO) // DEMO_STRIDE
    first = DEMO.start + (user_seed % slots) * DEMO_STRIDE
    return range(first, first + count)
