"""What the demo shows while it runs, and how it tells its story."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stream.commands.recommend import table
from stream.demo import Audit, Progress, Story
from stream.stats import quantiles

WINDOW = 12  # looks over which rates are taken
PLAIN_SECONDS = 5.0  # between two lines where the output is no terminal


class View:
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._looks: deque[tuple[float, Progress]] = deque(maxlen=WINDOW)
        self._said = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def watch(self, progress: Progress) -> None:
        """Show where things stand."""
        self._looks.append((time.monotonic(), progress))
        if self._live.is_started:
            self._live.update(self._table(progress))
        elif time.monotonic() - self._said > PLAIN_SECONDS:
            self._said = time.monotonic()
            self.say("  ".join(f"{name} {value}" for name, value in self._figures(progress)))

    def tell(self, story: Story) -> None:
        """The feed before, the searches, the feed after."""
        self._console.print(table(f"Feed of {story.user_id}, before", story.before))
        searches = ", ".join(f'"{query}"' for query in story.queries)
        self.say(f"{story.user_id} searches for {searches} and clicks through the results ({story.subtopic}).")
        self.say(f"{story.seconds:.1f} s later:")
        self._console.print(table(f"Feed of {story.user_id}, after (new in bold)", story.after, story.fresh))

    def conclude(self, progress: Progress, audit: Audit, memory: dict[str, int]) -> None:
        p50, p95, p99 = quantiles(progress.counts)
        self.say(
            f"{audit.events_found:,} of {audit.events_expected:,} events applied; {audit.users:,} users, "
            f"{audit.stale_users} of them with a stale profile; {progress.counts['refreshes']:,} refreshes, "
            f"{progress.counts['inferences_saved']:,} inferences saved"
        )
        self.say(f"freshness p50 {p50} ms, p95 {p95} ms, p99 {p99} ms (produced to searchable)")
        self.say(
            f"{audit.history_bytes / max(1, audit.records):.2f} bytes per stored event; mean cosine of items to their "
            f"decoded codes {audit.fidelity:.3f}"
        )
        parts = ", ".join(f"{part} {size / 2**20:.0f}" for part, size in memory.items())
        self.say(f"resident memory {sum(memory.values()) / 2**20:.0f} MiB ({parts})")

    def _table(self, progress: Progress) -> Table:
        shown = Table(title=f"Facetstream: {progress.phase}", title_justify="left", show_header=False)
        for name, value in self._figures(progress):
            shown.add_row(name, value)
        return shown

    def _figures(self, progress: Progress) -> list[tuple[str, str]]:
        p50, _, p99 = quantiles(progress.counts)
        return [
            ("phase", progress.phase),
            ("items", f"{progress.counts['items_applied']:,}"),
            ("events", f"{progress.counts['events_applied']:,} of {progress.produced:,}"),
            ("events/s", f"{self._rate('events_applied'):,.0f}"),
            ("refreshes/s", f"{self._rate('refreshes'):,.0f}"),
            ("freshness p50/p99", f"{p50 or '-'} / {p99 or '-'} ms"),
            ("dirty users", f"{progress.dirty:,}"),
            ("dead letters", f"{progress.counts['dead_letters']:,}"),
        ]

    def _rate(self, name: str) -> float:
        (began, first), (now, last) = self._looks[0], self._looks[-1]
        return (last.counts[name] - first.counts[name]) / (now - began) if now > began else 0.0
