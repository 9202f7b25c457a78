"""A server that streams on a known schedule, to calibrate a client; it is not vLLM and never claims to be.

`python -m pipeline.load.stub --first-ms 50 --each-ms 5` prints its port, serves chat completions until its standard
input closes, and reports under /truth when it received each request and sent its tokens.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import httptools
import uvloop

STUB_MODEL = "stub"
TOKEN = "x "
PARSED_LATER_S = 0.002
BURST_PAUSE_CHUNKS = 64  # written at a time without a schedule, so that connections take turns


class StubConnection(asyncio.Protocol):
    """A connection of one client, with one request after the other."""

    def __init__(self, schedule: argparse.Namespace, truth: list[dict[str, int]]) -> None:
        self.schedule = schedule
        self.truth = truth
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body = b""
        self.writable = asyncio.Event()
        self.writable.set()
        self.answering: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        for task in self.answering:
            task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.received_ns = time.perf_counter_ns()
        # Parsed later, so that data of other connections is stamped first.
        asyncio.get_running_loop().call_later(PARSED_LATER_S, self.parser.feed_data, data)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.url.endswith(b"/chat/completions"):
            task = asyncio.get_running_loop().create_task(self.answer(json.loads(self.body), self.received_ns))
            self.answering.add(task)
            task.add_done_callback(self.answering.discard)
        elif self.url == b"/truth":
            self.reply(self.truth)
        elif self.url == b"/v1/models":
            self.reply({"object": "list", "data": [{"id": STUB_MODEL, "object": "model", "owned_by": "stub"}]})
        else:
            self.reply({})

    def reply(self, data: Any) -> None:
        """Send a complete JSON answer."""
        text = json.dumps(data).encode()
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        self.leave()

    def leave(self) -> None:
        if not self.parser.should_keep_alive():
            self.transport.close()

    async def answer(self, payload: dict[str, Any], received_ns: int) -> None:
        """Stream the tokens; with a schedule, each chunk's text is the time it was sent."""
        tokens = int(payload.get("max_tokens") or payload.get("max_completion_tokens") or 16)
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
        if not payload.get("stream"):
            self.reply({"choices": [{"message": {"content": TOKEN * tokens}, "finish_reason": "length"}], "usage": usage})
            return
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        role = event({"role": "assistant", "content": ""})
        if not self.schedule.role_with_first:
            self.transport.write(role)
            role = b""
        tells_tokens = bool(payload.get("return_token_ids"))
        if self.schedule.first_ms or self.schedule.each_ms:
            first_ns, last_ns = await self.keep_to_schedule(tokens, received_ns, role, tells_tokens)
        else:
            first_ns, last_ns = await self.hurry(tokens, tells_tokens)
        at_first = min(tokens, self.schedule.per_chunk * self.schedule.burst)
        told = {"received_ns": received_ns, "first_ns": first_ns, "last_ns": last_ns, "tokens": tokens, "at_first": at_first}
        self.truth.append(told)
        self.transport.write(event({}, "length") + event(None, None, usage) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self.leave()

    async def keep_to_schedule(self, tokens: int, received_ns: int, lead: bytes, tells_tokens: bool) -> tuple[int, int]:
        """Send each chunk when it is due, the first one after `lead`; return when the first and the last were sent."""
        sent: list[int] = []
        # Built once, because a stub that is slow to send is slow to read.
        sizes = {min(self.schedule.per_chunk, tokens - start) for start in range(0, tokens, self.schedule.per_chunk)}
        chunk_of = {size: event({"content": f"{'0' * 19} "}, tokens=size * tells_tokens).split(b"0" * 19) for size in sizes}
        for number, chunks in due(tokens, self.schedule.per_chunk, self.schedule.burst):
            at_ns = received_ns + int(1e6 * (self.schedule.first_ms + number * self.schedule.each_ms))
            while (left_ns := at_ns - time.perf_counter_ns()) > 0:  # the loop's timers have a resolution of 1 ms, and may fire early
                await asyncio.sleep(left_ns / 1e9)
            for _ in range(chunks):
                before, after = chunk_of[min(self.schedule.per_chunk, tokens - len(sent) * self.schedule.per_chunk)]
                now_ns = time.perf_counter_ns()
                self.transport.write(b"%s%s%019d%s" % (lead, before, now_ns, after))
                lead = b""
                sent.append(now_ns)
        return sent[0], sent[-1]

    async def hurry(self, tokens: int, tells_tokens: bool) -> tuple[int, int]:
        """Send chunks as fast as the client accepts them; return when the first and the last were sent."""
        chunk = event({"content": TOKEN}, tokens=int(tells_tokens))
        first_ns = time.perf_counter_ns()
        for start in range(0, tokens, BURST_PAUSE_CHUNKS):
            self.transport.write(chunk * min(BURST_PAUSE_CHUNKS, tokens - start))
            await self.writable.wait()
            await asyncio.sleep(0)
        return first_ns, time.perf_counter_ns()


def due(tokens: int, per_chunk: int, burst: int) -> Iterator[tuple[int, int]]:
    """Yield (index of the token that sets the time, chunks sent then); a chunk holds `per_chunk` tokens, a burst `burst` chunks."""
    step = per_chunk * burst
    for number in range(0, tokens, step):
        left = min(step, tokens - number)
        yield number, -(-left // per_chunk)


def event(delta: dict[str, str] | None, finish_reason: str | None = None, usage: dict[str, int] | None = None, tokens: int = 0) -> bytes:
    """Return one server-sent event as an HTTP chunk, with so many token ids."""
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish_reason, "token_ids": [31234] * tokens or None}
    choices = [] if delta is None else [choice]
    data = {"id": "stub", "object": "chat.completion.chunk", "created": 0, "model": STUB_MODEL, "choices": choices, "usage": usage}
    return framed(b"data: %s\n\n" % json.dumps(data).encode())


def framed(data: bytes) -> bytes:
    """Return `data` as one HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve_stub(schedule: argparse.Namespace) -> None:
    """Serve until standard input closes."""
    loop = asyncio.get_running_loop()
    truth: list[dict[str, int]] = []
    server = await loop.create_server(lambda: StubConnection(schedule, truth), "127.0.0.1", schedule.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    closed = asyncio.Event()
    # The process that started the stub holds the other end, so the stub ends with it, however it dies.
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(closed.set)), daemon=True).start()
    await closed.wait()


def main() -> None:
    """Run the stub."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--first-ms", type=float, default=0)
    parser.add_argument("--each-ms", type=float, default=0)
    parser.add_argument("--per-chunk", type=int, default=1, help="tokens in a chunk")
    parser.add_argument("--burst", type=int, default=1, help="chunks sent together")
    parser.add_argument("--role-with-first", action="store_true", help="the role chunk comes with the first token, as vLLM sends it")
    uvloop.run(serve_stub(parser.parse_args()))


if __name__ == "__main__":
    main()
