"""An orderly end behind a load balancer: not ready at once, closed a little later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Drain:
    """After `begin`, /readyz says 503 while everything else is still answered, for `seconds`."""

    seconds: float = 0.0
    begun: bool = False

    def begin(self, close: Callable[[], None]) -> None:
        """Calls `close` after the pause; at once if there is none, or at a second call."""
        if self.begun or self.seconds <= 0:
            close()
            return
        self.begun = True
        timer = threading.Timer(self.seconds, close)
        timer.daemon = True
        timer.start()
