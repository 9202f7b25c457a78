"""The cost of drawing the terminal's moving line once, against rich's live display of the same text.

`python -m benchmarks.moving_line` draws each 2000 times into memory. Drawing shares the interpreter with the measurement, so no
chunk can be timestamped while a picture is drawn.
"""

import io
import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.terminal import Count, picture

PICTURES, TOTAL = 2000, 100


def costs_us(draw: Callable[[int], object]) -> list[float]:
    """Return the time that each picture took, in µs."""
    costs = []
    for number in range(PICTURES):
        before = time.perf_counter()
        draw(number)
        costs.append(1e6 * (time.perf_counter() - before))
    return costs


def main() -> None:
    """Print both costs and their ratio."""
    out = io.StringIO()
    count = Count("requests", TOTAL, time.monotonic())

    def own(number: int) -> None:
        count.done = number % TOTAL
        out.write(picture("bench", count.words(time.monotonic()), 1.0, number, 80))

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed} of {task.total}"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=io.StringIO(), force_terminal=True, width=80), auto_refresh=False) as live:
        task = live.add_task("requests", total=TOTAL)

        def theirs(number: int) -> None:
            live.update(task, completed=number % TOTAL)
            live.refresh()

        costs = {"our line": costs_us(own), "rich's live display": costs_us(theirs)}
    for name, values in costs.items():
        print(f"{name}: median {statistics.median(values):.0f} µs, p95 {statistics.quantiles(values, n=20)[-1]:.0f} µs a picture")
    ours, rich = (statistics.median(values) for values in costs.values())
    print(f"ratio of the medians: {ours / rich:.3f}")


if __name__ == "__main__":
    main()
