"""How many batches may be under way at once: after a failure one, and one more with each that succeeds."""

import asyncio
from dataclasses import dataclass, field


@dataclass
class Ramp:
    """Shared by tasks that are numbered from 0."""

    most: int
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.allowed = self.most

    async def turn(self, number: int) -> None:
        """Return when the task of that number may go on; the first always may."""
        while number >= self.allowed:
            self._grown.clear()
            await self._grown.wait()

    def failed(self) -> None:
        self.allowed = 1

    def succeeded(self) -> None:
        self.allowed = min(self.allowed + 1, self.most)
        self._grown.set()
