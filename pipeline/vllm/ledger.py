"""The client's counts and means beside the server's own."""

from pipeline.message import Digits, Message, Sentence, _
from pipeline.values import Frozen
from pipeline.vllm.metrics import Metrics

# The server's clock starts after it has read the request and stops before it sends the answer.
TOLERANCE_MS = 5.0
TOLERANCE = 0.05


class LedgerEntry(Frozen):
    """The client's count and the rise of the server's counter meanwhile; `server` is None where it has no such metric."""

    name: Sentence
    client: int
    server: int | None

    @property
    def agrees(self) -> bool:
        return self.client == self.server

    @property
    def contradiction(self) -> str:
        """Return how the two counts contradict each other; empty where they agree, or the server has none."""
        if self.server is None or self.agrees:
            return ""
        return _("the client counted {client} {name}, the server {server}", client=self.client, name=Message(self.name), server=self.server)


class MeanCheck(Frozen):
    """A mean by the client's time stamps beside the server's own, both in ms; `server_ms` is None where it has no such metric."""

    name: str
    requests: int
    client_ms: float
    server_ms: float | None
    tolerance_ms: float

    @property
    def agrees(self) -> bool:
        return self.server_ms is not None and abs(self.client_ms - self.server_ms) <= self.tolerance_ms

    @property
    def contradiction(self) -> str:
        """Return how the two means contradict each other; empty where they agree, or the server has none."""
        if self.server_ms is None or self.agrees:
            return ""
        means = {"client": Digits(f"{self.client_ms:.4g}"), "server": Digits(f"{self.server_ms:.4g}")}
        return _("mean {name}: {client} ms by the client, {server} ms by the server", name=self.name, **means)


def mean_check(name: str, metric: str, client: list[float], before: Metrics, after: Metrics) -> MeanCheck:
    """Return the client's mean beside the server's: the rise of the histogram's sum / the rise of its count."""
    client_mean = sum(client) / len(client) if client else 0.0
    total, count = (after.get(f"{metric}_{part}", 0.0) - before.get(f"{metric}_{part}", 0.0) for part in ("sum", "count"))
    server_mean = 1000 * total / count if count else None
    return MeanCheck(
        name=name,
        requests=len(client),
        client_ms=round(client_mean, 3),
        server_ms=None if server_mean is None else round(server_mean, 3),
        tolerance_ms=round(TOLERANCE_MS + TOLERANCE * client_mean, 3),
    )
