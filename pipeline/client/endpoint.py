"""The server that requests go to."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Endpoint:
    """The server that requests go to, and whether it lives; with `replicas` each takes its turn.

    `loaded` hears from when to when it was at work, in seconds by `time.monotonic`, after each loop of requests.
    """

    base_url: str
    alive: Callable[[], bool] = lambda: True
    api_key: str | None = field(default=None, repr=False)
    replicas: tuple[str, ...] = ()
    loaded: Callable[[float, float], None] = lambda _begin_s, _end_s: None
