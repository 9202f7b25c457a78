"""The load generator: chat completions in a closed or an open loop, each block of bytes stamped on arrival and parsed afterwards."""

import asyncio
import gc
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pipeline.client.answer import Answer, Blocks, RawAnswer, read_answer
from pipeline.client.endpoint import Endpoint

if TYPE_CHECKING:  # saves an unchanged run 20 ms
    import ssl

LIVENESS_CHECK_S = 0.25
APART_S = 0.001  # between the starts of two workers: users do not send in step, and no client could stamp such bursts in time
AFTER_FAILURE_S = 0.1  # a server that is shutting down refuses thousands of requests a second
IDLE_MOST_S = 2.0  # servers close idle connections (uvicorn after 5 s), and a request sent at that moment would fail
PATH = "/v1/chat/completions"
NO_ANSWER = "the connection ended without an answer"
TARGET_GONE = "cut off: the server is gone"


class Connection(asyncio.Protocol):
    """A connection that carries one request after the other; `ask` sends one, and completes `ended` after its answer's last byte."""

    def __init__(self) -> None:
        import httptools  # saves an unchanged run 5 ms

        self.parser = httptools.HttpResponseParser(self)
        self.trouble = httptools.HttpParserError
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] | None = None
        self.idle_ns = 0

    def ask(self, request: bytes, ended: "asyncio.Future[None]") -> None:
        """Send `request` on the open connection; it fails at once if the connection was lost meanwhile."""
        assert self.transport is not None
        self.blocks: Blocks = []
        self.streamed = self.reusable = self.is_framed = self.in_body = False
        self.error = ""
        self.at = 0
        self.ended = ended
        self.sent_ns = time.perf_counter_ns()
        if self.transport.is_closing():
            self.end(NO_ANSWER)
        else:
            self.transport.write(request)

    @property
    def status(self) -> int:
        return self.parser.get_status_code() if self.at else 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.ended is None or self.ended.done():  # nothing was asked, so this answers nothing
            self.abort()
            return
        self.at = time.perf_counter_ns()
        try:
            self.parser.feed_data(data)
        except self.trouble as trouble:
            self.reusable = False
            self.end(f"not HTTP: {trouble}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended is None or self.ended.done():
            return
        if exc is not None:
            self.end(f"{type(exc).__name__}: {exc}")
        elif self.ends_with_connection:
            self.end("")
        else:
            self.end("the connection ended within the answer" if self.at else NO_ANSWER)

    @property
    def ends_with_connection(self) -> bool:
        """Tell whether the answer has no length of its own, so that it is whole when the server hangs up (RFC 9112, section 6.3)."""
        return self.in_body and not self.is_framed

    def on_message_begin(self) -> None:
        if self.ended is not None and self.ended.done():
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.streamed = value.lower().startswith(b"text/event-stream")
        elif name in (b"content-length", b"transfer-encoding"):
            self.is_framed = True

    def on_headers_complete(self) -> None:
        self.in_body = self.status >= 200

    def on_body(self, piece: bytes) -> None:
        self.blocks.append((self.at, piece))

    def on_message_complete(self) -> None:
        if self.status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            self.streamed = self.is_framed = False
            return
        self.reusable = self.parser.should_keep_alive()
        self.end("")

    def abort(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def end(self, error: str) -> None:
        """Record how the answer ended; only the first call counts."""
        if self.ended is not None and not self.ended.done():
            self.error = error
            self.ended.set_result(None)


@dataclass(frozen=True)
class Route:
    """Address of a server and head of the requests to it, prepared once."""

    host: str
    port: int
    head: bytes
    context: "ssl.SSLContext | None"
    fields: Mapping[str, Any] = field(default_factory=dict)  # of every request

    @staticmethod
    def to(target: Endpoint, base_url: str | None = None) -> "Route":
        """Return the route to `target`, or to its replica at `base_url`."""
        address = urlsplit(base_url or target.base_url)
        context = None
        if address.scheme == "https":
            import ssl

            context = ssl.create_default_context()
        lines = [f"POST {address.path}{PATH} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json"]
        if target.api_key is not None:
            lines.append(f"Authorization: Bearer {target.api_key}")
        port = address.port or (443 if context else 80)
        return Route(address.hostname or "", port, "\r\n".join(lines).encode("latin-1"), context, target.fields)

    def request(self, payload: dict[str, Any]) -> bytes:
        """Return the whole HTTP request."""
        body = json.dumps({**self.fields, **payload}).encode()
        return self.head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Channel:
    """The route to one server, and its idle connections; once `ending` is set, a cancelled request counts as cut off."""

    def __init__(self, route: Route, timeout_s: float, ending: asyncio.Event | None = None) -> None:
        self.route = route
        self.timeout_s = timeout_s
        self.idle: list[Connection] = []
        self.ending = ending or asyncio.Event()

    async def exchange(self, request: bytes, scheduled_ns: int | None = None) -> RawAnswer:
        """Send one request, once, and stamp its response; network errors, and cancellation once `ending` is set, become its error."""
        began = time.perf_counter_ns()
        connection: Connection | None = None
        error = ""
        replaced = 0
        try:
            async with asyncio.timeout(self.timeout_s):
                connection, replaced = await self.connection()
                ended = asyncio.get_running_loop().create_future()
                connection.ask(request, ended)
                await ended
        except TimeoutError:
            error = f"TimeoutError: no whole answer within {self.timeout_s:g} s"
        except OSError as trouble:
            error = f"{type(trouble).__name__}: {trouble}"
        except asyncio.CancelledError:
            if not self.ending.is_set():
                raise
            error = TARGET_GONE
        if connection is None:
            return RawAnswer(began, 0, [], error, began if scheduled_ns is None else scheduled_ns, replaced=replaced)
        if connection.reusable and not error:
            connection.idle_ns = time.perf_counter_ns()
            self.idle.append(connection)
        else:
            connection.abort()
        scheduled = connection.sent_ns if scheduled_ns is None else scheduled_ns
        error = error or connection.error
        return RawAnswer(connection.sent_ns, connection.status, connection.blocks, error, scheduled, connection.streamed, replaced)

    async def connection(self) -> tuple[Connection, int]:
        """Return an open connection, an idle one or a new one, and how many idle ones the server had closed."""
        closed = 0
        while self.idle:
            old = self.idle.pop()
            if old.transport is None or old.transport.is_closing():
                closed += 1
            elif time.perf_counter_ns() - old.idle_ns > IDLE_MOST_S * 1e9:
                old.abort()
            else:
                return old, closed
        route = self.route
        _, connection = await asyncio.get_running_loop().create_connection(Connection, route.host, route.port, ssl=route.context)
        return connection, closed

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self.idle:
            connection.abort()


def closed_loop(
    target: Endpoint,
    payloads: Iterable[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    keep_going: Callable[[], bool] = lambda: True,
    on_progress: Callable[[int], None] = lambda _answered: None,
) -> tuple[list[Answer], float]:
    """Send `payloads` with `concurrency` in flight until all are answered; return (answers in order, wall seconds).

    `keep_going` is called before each send; payloads that are not sent have no answer. `on_progress` receives the number of
    answers so far. Parsing happens after the last byte. If the target dies, requests in flight are cut off and count as failed,
    and no more are sent.
    """
    waiting = iter(enumerate(payloads))
    raws: dict[int, RawAnswer] = {}

    async def work(channels: Sequence[Channel], number: int) -> None:
        await asyncio.sleep(number * APART_S)
        while keep_going() and not channels[0].ending.is_set():
            index, payload = next(waiting, (-1, None))
            if payload is None:
                return
            channel = channels[index % len(channels)]
            raws[index] = await channel.exchange(channel.route.request(payload))
            on_progress(len(raws))
            if (raws[index].error or raws[index].status >= 500) and not channel.ending.is_set():
                await asyncio.sleep(AFTER_FAILURE_S)

    began, ended = run_side_by_side(target, timeout_s, lambda channels: [work(channels, number) for number in range(concurrency)])
    return report_span(target, parsed(raws)), ended - began


def open_loop(
    target: Endpoint,
    payloads: Sequence[dict[str, Any]],
    due_s: Sequence[float],
    timeout_s: float,
    on_progress: Callable[[int], None] = lambda _answered: None,
    start_ns: int | None = None,
) -> tuple[list[Answer], float]:
    """Send each payload when it is due, however many are in flight; return (answers in order, wall seconds).

    `due_s` are seconds from the start, which is shortly after the call, or at `start_ns`. An answer's `scheduled_ns` is when it
    was due, its `sent_ns` when it was sent. If the target dies, requests in flight are cut off, and both they and those not yet
    sent count as failed.
    """
    raws: dict[int, RawAnswer] = {}
    start = time.perf_counter_ns() + int(LIVENESS_CHECK_S * 1e9) if start_ns is None else start_ns

    async def work(index: int, request: bytes, due_ns: int, channel: Channel) -> None:
        try:
            while (left_ns := due_ns - time.perf_counter_ns()) > 0:  # the loop's timers have a resolution of 1 ms, and may fire early
                await asyncio.sleep(left_ns / 1e9)
        except asyncio.CancelledError:
            if not channel.ending.is_set():
                raise
            raws[index] = RawAnswer(due_ns, 0, [], TARGET_GONE, due_ns)
            return
        raws[index] = await channel.exchange(request, due_ns)
        on_progress(len(raws))

    routes = routes_to(target)
    requests = [routes[index % len(routes)].request(payload) for index, payload in enumerate(payloads)]
    due_ns = [start + int(due * 1e9) for due in due_s]
    works = list(zip(requests, due_ns, strict=True))
    _, ended = run_side_by_side(
        target, timeout_s, lambda channels: [work(index, *each, channels[index % len(channels)]) for index, each in enumerate(works)]
    )
    return report_span(target, parsed(raws)), ended - start / 1e9


def parsed(raws: Mapping[int, RawAnswer]) -> list[Answer]:
    """Return the answers in the order of their requests."""
    with uncollected():  # each chunk makes lists, whose walks take a tenth of the time
        return [read_answer(raws[index]) for index in sorted(raws)]


def report_span(target: Endpoint, answers: list[Answer]) -> list[Answer]:
    """Tell `target` from when to when it worked on the successful answers of a loop, and return all its answers."""
    good = [answer for answer in answers if answer.ok]
    if good:
        ahead_s = time.monotonic() - time.perf_counter()
        begin_ns, end_ns = min(answer.sent_ns for answer in good), max(answer.last_ns for answer in good)
        target.loaded(begin_ns / 1e9 + ahead_s, end_ns / 1e9 + ahead_s)
    return answers


def routes_to(target: Endpoint) -> list[Route]:
    """Return the routes to the server and its replicas, in the order of their turns."""
    return [Route.to(target, base_url) for base_url in (target.base_url, *target.replicas)]


def run_side_by_side(
    target: Endpoint, timeout_s: float, works: Callable[[Sequence[Channel]], list[Coroutine[Any, Any, None]]]
) -> tuple[float, float]:
    """Run the coroutines concurrently, and cancel them if `target` dies; return begin and end by `time.perf_counter`."""

    async def supervise() -> tuple[float, float]:
        ending = asyncio.Event()
        channels = [Channel(route, timeout_s, ending) for route in routes_to(target)]
        began = time.perf_counter()
        tasks = [asyncio.create_task(work) for work in works(channels)]
        try:
            while tasks and (await asyncio.wait(tasks, timeout=LIVENESS_CHECK_S))[1]:
                if not ending.is_set() and not await asyncio.to_thread(target.alive):
                    ending.set()
                    for task in tasks:
                        task.cancel()
            ended = time.perf_counter()
            for task in tasks:
                if not (ending.is_set() and task.cancelled()):
                    task.result()
        finally:
            for task in tasks:  # after Ctrl-C, nobody waits for these
                task.cancel()
            for channel in channels:
                channel.close()
        return began, ended

    import uvloop  # saves an unchanged run 15 ms

    # uvloop takes half the time per chunk, so the last of many simultaneous chunks is stamped sooner.
    with uncollected(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(supervise())


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable the garbage collector inside the block, because it would stop what is timed there for milliseconds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
