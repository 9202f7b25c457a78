"""The load generator: chat completions in a closed or an open loop, each block of bytes stamped on arrival and parsed afterwards."""

import asyncio
import gc
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pipeline.client.answer import Answer, Blocks, RawAnswer, read_answer
from pipeline.client.endpoint import Endpoint

if TYPE_CHECKING:  # 20 ms that an unchanged run does without
    import ssl

LIVENESS_CHECK_S = 0.25
APART_S = 0.001  # workers begin so far apart: requests in step come all at once, which no users do and no client sees in time
AFTER_FAILURE_S = 0.1  # a server that is about to end refuses thousands a second
IDLE_MOST_S = 2.0  # servers hang up on idle connections (uvicorn after 5 s): a request sent at that moment would be lost
PATH = "/v1/chat/completions"
NO_ANSWER = "the connection ended without an answer"
TARGET_GONE = "cut off: the server is gone"


class Connection(asyncio.Protocol):
    """A connection that takes one request after the other; `ask` sends one, and `ended` is done after its answer's last byte."""

    def __init__(self) -> None:
        import httptools  # 5 ms that an unchanged run does without

        self.parser = httptools.HttpResponseParser(self)
        self.trouble = httptools.HttpParserError
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] | None = None
        self.idle_ns = 0

    def ask(self, request: bytes, ended: "asyncio.Future[None]") -> None:
        """Send `request` on the standing connection; one that was lost meanwhile fails at once."""
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
        """Note how the answer ended; the first word counts."""
        if self.ended is not None and not self.ended.done():
            self.error = error
            self.ended.set_result(None)


@dataclass(frozen=True)
class Route:
    """Where requests go, taken apart once."""

    host: str
    port: int
    head: bytes
    context: "ssl.SSLContext | None"

    @staticmethod
    def to(target: Endpoint, base_url: str | None = None) -> "Route":
        """Return the route to `target`, or to the replica of it at `base_url`."""
        address = urlsplit(base_url or target.base_url)
        context = None
        if address.scheme == "https":
            import ssl

            context = ssl.create_default_context()
        lines = [f"POST {address.path}{PATH} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json"]
        if target.api_key is not None:
            lines.append(f"Authorization: Bearer {target.api_key}")
        port = address.port or (443 if context else 80)
        return Route(address.hostname or "", port, "\r\n".join(lines).encode("latin-1"), context)

    def request(self, payload: dict[str, Any]) -> bytes:
        """Return the whole HTTP request."""
        body = json.dumps(payload).encode()
        return self.head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Channel:
    """The way to one server: its route, and the connections that stand idle. `ending` cuts off what is under way."""

    def __init__(self, route: Route, timeout_s: float, ending: asyncio.Event | None = None) -> None:
        self.route = route
        self.timeout_s = timeout_s
        self.idle: list[Connection] = []
        self.ending = ending or asyncio.Event()

    async def exchange(self, request: bytes, scheduled_ns: int | None = None) -> RawAnswer:
        """Send one request, once, and stamp what comes back; never raises for the network's sake, nor for `ending`, which cuts it off."""
        began = time.perf_counter_ns()
        used: Connection | None = None
        error = ""
        replaced = 0
        try:
            async with asyncio.timeout(self.timeout_s):
                connection, replaced = await self.connection()
                ended = asyncio.get_running_loop().create_future()
                used = connection
                used.ask(request, ended)
                await ended
        except TimeoutError:
            error = f"TimeoutError: no whole answer within {self.timeout_s:g} s"
        except OSError as trouble:
            error = f"{type(trouble).__name__}: {trouble}"
        except asyncio.CancelledError:
            if not self.ending.is_set():
                raise
            error = TARGET_GONE
        if used is None:
            return RawAnswer(began, 0, [], error, began if scheduled_ns is None else scheduled_ns, replaced=replaced)
        if used.reusable and not error:
            used.idle_ns = time.perf_counter_ns()
            self.idle.append(used)
        else:
            used.abort()
        scheduled = used.sent_ns if scheduled_ns is None else scheduled_ns
        return RawAnswer(used.sent_ns, used.status, used.blocks, error or used.error, scheduled, used.streamed, replaced)

    async def connection(self) -> tuple[Connection, int]:
        """Return a connection that stands, an idle one or a new one, and how many idle ones the server had closed."""
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

    `keep_going` is asked before each send; what is not sent has no answer. `on_progress` hears how many are answered. Parsing
    happens after the last byte. When the target dies, what is in flight is cut off and counts as failed, and nothing more
    is sent.
    """
    waiting = iter(enumerate(payloads))
    raws: dict[int, RawAnswer] = {}

    async def work(lines: Sequence[Channel], number: int) -> None:
        await asyncio.sleep(number * APART_S)
        while keep_going() and not lines[0].ending.is_set():
            index, payload = next(waiting, (-1, None))
            if payload is None:
                return
            line = lines[index % len(lines)]
            raws[index] = await line.exchange(line.route.request(payload))
            on_progress(len(raws))
            if (raws[index].error or raws[index].status >= 500) and not line.ending.is_set():
                await asyncio.sleep(AFTER_FAILURE_S)

    began, ended = run_side_by_side(target, timeout_s, lambda lines: [work(lines, number) for number in range(concurrency)])
    return report_span(target, [read_answer(raws[index]) for index in sorted(raws)]), ended - began


def open_loop(
    target: Endpoint,
    payloads: Sequence[dict[str, Any]],
    due_s: Sequence[float],
    timeout_s: float,
    on_progress: Callable[[int], None] = lambda _answered: None,
    start_ns: int | None = None,
) -> tuple[list[Answer], float]:
    """Send each payload when it is due, however many are in flight; return (answers in order, wall seconds).

    `due_s` are seconds from the start, which is soon, or at `start_ns`. An answer's `scheduled_ns` is when it was due, its
    `sent_ns` when it was sent. When the target dies, what is in flight is cut off and counts as failed, and so does what was
    still to be sent.
    """
    raws: dict[int, RawAnswer] = {}
    start = time.perf_counter_ns() + int(LIVENESS_CHECK_S * 1e9) if start_ns is None else start_ns

    async def work(index: int, request: bytes, due_ns: int, line: Channel) -> None:
        try:
            while (left_ns := due_ns - time.perf_counter_ns()) > 0:  # the loop's timers go by whole milliseconds, and may be early
                await asyncio.sleep(left_ns / 1e9)
        except asyncio.CancelledError:
            if not line.ending.is_set():
                raise
            raws[index] = RawAnswer(due_ns, 0, [], TARGET_GONE, due_ns)
            return
        raws[index] = await line.exchange(request, due_ns)
        on_progress(len(raws))

    routes = routes_to(target)
    requests = [routes[index % len(routes)].request(payload) for index, payload in enumerate(payloads)]
    due_ns = [start + int(due * 1e9) for due in due_s]
    works = list(zip(requests, due_ns, strict=True))
    _, ended = run_side_by_side(
        target, timeout_s, lambda lines: [work(index, *each, lines[index % len(lines)]) for index, each in enumerate(works)]
    )
    return report_span(target, [read_answer(raws[index]) for index in sorted(raws)]), ended - start / 1e9


def report_span(target: Endpoint, answers: list[Answer]) -> list[Answer]:
    """Return the answers of a loop, after telling `target` from when to when it was at work on those that succeeded."""
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
    """Run the works side by side until all are done, or cut them off when `target` dies; return begin and end by `time.perf_counter`."""

    async def supervise() -> tuple[float, float]:
        ending = asyncio.Event()
        lines = [Channel(route, timeout_s, ending) for route in routes_to(target)]
        began = time.perf_counter()
        tasks = [asyncio.create_task(work) for work in works(lines)]
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
            for task in tasks:  # Ctrl-C: nobody waits for these any more
                task.cancel()
            for line in lines:
                line.close()
        return began, ended

    import uvloop  # 15 ms that an unchanged run does without

    # Its loop takes half the time for each chunk, so that of many that come at once the last is stamped sooner.
    with uncollected(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(supervise())


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector, whose walks stop everything for milliseconds, out of what is timed inside."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
