"""Training by the clock: a share of the minutes granted decides the learning rate, and when to
stop.
"""

import math
import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Counts seconds worked, those before an interruption included."""

    minutes: float
    worked_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds worked so far."""
        return self.worked_before + time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Share of the budget used, 0..1."""
        return min(1.0, self.seconds / (60 * self.minutes)) if self.minutes else 1.0

    def rate(self, peak: float, step: int, warmup: int = 100) -> float:
        """Learning rate: linear warm-up by steps, then a cosine down to 2 % of the peak by the
        clock.
        """
        return (
            peak
            * min(1.0, (step + 1) / warmup)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share)))
        )
