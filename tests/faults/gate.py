"""Where workers ask for leave at every point; an armed point keeps the one that comes until it is released."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self


class Gate:
    """`async with Gate(path)`: listens on a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._point, self._passes = "", 0  # armed: the point, and how often it is still to be passed
        self._reached, self._open = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()
        self._server.close()
        await self._server.wait_closed()

    def arm(self, point: str, nth: int) -> None:
        """Keep the worker that is the `nth` from now to come to this point."""
        self._reached.clear()
        self._open.clear()
        self._point, self._passes = point, nth

    async def reached(self) -> None:
        """Return when a worker stands at the armed point."""
        await self._reached.wait()

    def release(self) -> None:
        """Let it go on; nobody else is kept."""
        self._point = ""
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while point := (await reader.readline()).decode().strip():
                if self._keeps(point):
                    self._reached.set()
                    await self._open.wait()
                writer.write(b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the worker was killed
        finally:
            writer.close()

    def _keeps(self, point: str) -> bool:
        self._passes -= point == self._point
        kept = point == self._point and self._passes == 0
        self._point = "" if kept else self._point
        return kept
