"""The server that requests go to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Endpoint:
    """The server that requests go to, and whether it is alive; with `replicas`, requests go to each server in turn.

    Each request carries `fields` beside its own. After each loop of requests, `loaded` is called with when the loop began and
    ended, in seconds by `time.monotonic`.
    """

    base_url: str
    alive: Callable[[], bool] = lambda: True
    api_key: str | None = field(default=None, repr=False)
    replicas: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    loaded: Callable[[float, float], None] = lambda _begin_s, _end_s: None
