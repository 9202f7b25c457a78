"""The tables of speed by level: each closed loop's and each open loop's latency and goodput, and the search for capacity."""

from collections.abc import Mapping, Sequence

from pipeline.load.levels import LATENCIES, PERCENTS, Level, OpenLevel
from pipeline.measure.digits import ends_of
from pipeline.measure.figures import Figure
from pipeline.message import Digits, Message, _
from pipeline.report.cells import Amount, Cell, Text, amount, comma_separated, glued, number
from pipeline.report.parts import Table
from pipeline.report.sections.common import milliseconds, yes
from pipeline.stages.bench import BenchResult

NONE = "–"


def rate_of(level: OpenLevel) -> Digits:
    """Return the rate at which an open loop's requests came; that of its schedule where an older version did not record it."""
    return number(level.rate_per_s if level.came_per_s is None else level.came_per_s)


def level_table(data: BenchResult) -> Table:
    """Return the table of latency and goodput by level; it has no rows for a record of an older version."""
    names = [name.removesuffix("_ms").upper() for name in LATENCIES]
    percents = comma_separated(f"p{percent}" for percent in PERCENTS)
    loops: list[tuple[Text, Level | OpenLevel]] = [
        *((_("{n} in flight", n=entry.concurrency), entry) for entry in data.levels),
        *((_("{arrival}, {rate} requests/s", arrival=entry.arrival, rate=rate_of(entry)), entry) for entry in data.open_levels),
    ]
    return Table(
        _("By level: latency in ms, in an open loop from the scheduled send"),
        [
            _("Load"),
            _("Lasted"),
            _("Requests"),
            _("Failed"),
            _("Goodput"),
            _("Good requests/s"),
            *(glued(name, " ", percents) for name in names),
        ],
        [
            [
                load,
                amount([number(loop.wall_s), " s"], loop.wall_s),
                loop.requests,
                loop.failed,
                goodput(loop.figures["goodput_percent"], " %"),
                goodput(loop.figures["goodput_req_s"]),
                *(percentiles(name, loop.figures) for name in LATENCIES),
            ]
            for load, loop in loops
            if loop.figures
        ],
        notes=("level", "goodput"),
    )


def goodput(figure: Figure, unit: str = "") -> Cell:
    """Return a figure of goodput without n and bounds."""
    if figure.invalid:
        return "INVALID"
    return NONE if figure.value is None else amount([number(figure.value, ends_of(figure.unit)), unit], figure.value)


def percentiles(name: str, figures: Mapping[str, Figure]) -> Cell:
    """Return the percentiles of a latency; one that n is too small for is a dash."""
    found = [figures.get(f"{name}_p{percent}") for percent in PERCENTS]
    if any(figure is not None and figure.invalid for figure in found):
        return "INVALID"
    values = [None if figure is None else figure.value for figure in found]
    if values[0] is None:
        return NONE
    return Amount(comma_separated(NONE if value is None else number(value) for value in values), values[0])


def open_table(data: BenchResult) -> Table:
    """Return the table of open loops: the rate at which requests came beside that of the schedule, and how punctual the client was."""
    rows: list[list[Cell]] = [
        [
            entry.arrival,
            rate_of(entry),
            number(entry.rate_per_s),
            entry.requests,
            entry.failed,
            entry.in_flight_max,
            Amount(milliseconds(entry.delay_ms_p50, entry.delay_ms_max), entry.delay_ms_p50),
            NONE if entry.overloaded is None else yes(not entry.overloaded),
        ]
        for entry in data.open_levels
    ]
    header: Sequence[Text] = (
        _("Arrivals"),
        _("Requests/s that came"),
        _("Scheduled"),
        _("Requests"),
        _("Failed"),
        _("Most in flight"),
        _("Schedule's own delay p50, max"),
        _("Kept up"),
    )
    return Table(_("Open loops"), list(header), rows, notes=("open", "behind"))


def capacity_table(data: BenchResult) -> Table:
    """Return the table of rates that the capacity search tried."""
    rows: list[list[Cell]] = [
        [
            number(trial.rate_per_s),
            NONE if trial.came_per_s is None else number(trial.came_per_s),
            NONE if trial.requests is None else trial.requests,
            amount([number(trial.goodput_percent, ends_of("%")), " %"], trial.goodput_percent),
            NONE if trial.goodput_low is None else amount(["≥ ", number(trial.goodput_low), " %"], trial.goodput_low),
            yes(not trial.overloaded),
            confirmed(trial.meets, trial.confirms),
        ]
        for trial in data.trials
    ]
    header: Sequence[Text] = (
        _("Requests/s"),
        _("Came"),
        _("Judged"),
        _("Goodput"),
        _("95 % bound"),
        _("Kept up"),
        _("Sustained"),
    )
    return Table(_("Search for capacity"), list(header), rows, notes=("capacity",))


def confirmed(meets: bool, again: bool) -> Message:
    """Return whether a rate was sustained, and whether that was its second trial."""
    return glued(yes(meets), _(", second trial")) if again else yes(meets)


def contention_facts(data: BenchResult) -> list[Text]:
    """Return how late the client saw chunks while the server computed."""
    return [
        _(
            "The client while the server answered {n} at once: a stub's chunks {delays} late (p50, p95).",
            n=entry.concurrency,
            delays=milliseconds(entry.delay_ms_p50, entry.delay_ms_p95),
        )
        for entry in data.busy
    ]
