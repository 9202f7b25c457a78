"""A server that speaks vLLM's HTTP and does what a script says: late, cut off, lying, dying. Standard library only.

In-process: `with FakeVllm(Script(...)) as fake: ... fake.base_url ...`. As a program it takes vLLM's arguments, and reads
its script from the JSON file named by FAKE_VLLM_SCRIPT; how it starts and dies is read once, how it answers at every
request, so that a test can change its mind. One token is four characters of text.
"""

import argparse
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SCRIPT_VARIABLE = "FAKE_VLLM_SCRIPT"
VERSION = "0.32.0"
TOKEN_CHARACTERS = 4
LIFETIME_S = 120.0  # no fake outlives its tests for long, whatever happens to them
RENDEZVOUS_S = 10.0


@dataclass(frozen=True)
class Script:
    """What the fake does. Counts of chunks are of content chunks; None is never."""

    # Answers.
    texts: tuple[str, ...] = ("Hello there, this is a scripted answer.",)  # taken in turn
    status: int = 200
    body: str | None = None  # verbatim in place of an unary answer, with `status`
    honours_ignore_eos: bool = True  # repeat the text up to max_tokens when asked
    token_ids: bool = True
    tokens_per_chunk: int = 1
    cached_tokens: int | None = 0  # None: what a prefix cache would give, by salt and prompt
    prompt_prefix: str = ""  # what a chat template would put in front
    top_gap: float = 1.5  # logprob of each token − that of the next best
    in_flight_gauge: bool = True
    # Streams.
    first_token_s: float = 0.0
    inter_token_s: float = 0.0
    usage_s: float = 0.0  # pause before the usage chunk
    only_usage: bool = False
    usage_chunk: bool = True
    cut_after: int | None = None  # end the stream, well-formed, without [DONE]
    break_after: int | None = None  # drop the connection
    error_after: int | None = None  # an error event, then [DONE]
    tires_after: int | None = None  # hang up on the next request of a connection that has had so many
    rendezvous: int = 0  # hold each answer until so many requests are in flight
    # Other answers for requests whose last message contains the key, or by number of arrival from 0.
    by_prompt: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_number: dict[str, dict[str, Any]] = field(default_factory=dict)
    loaded_texts: tuple[str, ...] | None = None  # in place of `texts` while other requests are in flight
    # Another script for a program whose environment holds the key, as in NAME=value.
    by_environment: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Lies of identity.
    version: str = VERSION
    model_id: str | None = None
    root: str | None = None
    owned_by: str = "vllm"
    max_model_len: int | None = None
    metrics: bool = True
    metrics_status: int = 200
    counting: float = 1.0  # how much the counter rises for each token
    preemptions: int = 0  # the counter
    kv_usage: float = 0.25  # while there are requests in flight
    bodies: dict[str, str] = field(default_factory=dict)  # verbatim answers to GET, by path
    # Life and death of the program.
    healthy: bool = True
    log: tuple[str, ...] = ()
    exit_code: int | None = None  # after the log, before listening
    fails_above: dict[str, float] = field(default_factory=dict)  # an argument larger than this is too much memory
    lack: str = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"  # what is said then
    hang: bool = False  # after the log, instead of listening
    ignore_sigterm: bool = False
    orphan: bool = False  # a child in the session that outlives its parent
    poses_as: str | None = None  # argv[0] after an exec of this file
    die_at_request: int | None = None
    last_words: tuple[str, ...] = ()
    dying_s: float = 0.0  # from the broken connection to the end of the process

    @staticmethod
    def load(path: Path) -> "Script":
        script = Script(**json.loads(path.read_text(encoding="utf-8")))
        changes: dict[str, Any] = {}
        for setting, change in script.by_environment.items():
            name, _, value = setting.partition("=")
            changes |= change if os.environ.get(name) == value else {}
        return dataclasses.replace(script, **changes)

    def save(self, path: Path) -> None:
        """Write whole: a server may be reading it."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        fresh.replace(path)

    def for_request(self, number: int, prompt: str) -> "Script":
        """Return the script as it stands for one request."""
        changes: dict[str, Any] = {}
        for part, change in self.by_prompt.items():
            changes |= change if part in prompt else {}
        changes |= self.by_number.get(str(number), {})
        return dataclasses.replace(self, **changes)


@dataclass
class Ledger:
    """What the fake has seen and generated."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    counter: float = 0.0
    connections: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    successes: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    seen_prompts: set[str] = field(default_factory=set)
    full: threading.Condition = field(default_factory=threading.Condition)


class FakeVllm:
    """The server on a port of its own choosing, unless one is given."""

    def __init__(
        self,
        script: Script | Path | None = None,
        model: str = "fake-model",
        folder: str = "/models/fake",
        host: str = "127.0.0.1",
        port: int = 0,
        max_model_len: int = 4096,
        api_key: str | None = None,
    ) -> None:
        self.api_key = api_key
        self._script = script or Script()
        self.model = model
        self.folder = folder
        self.max_model_len = max_model_len
        self.ledger = Ledger()
        self.http = (Server6 if ":" in host else Server)((host, port), Handler)
        self.http.fake = self
        self.host, self.port = host, int(self.http.server_address[1])
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def script(self) -> Script:
        return Script.load(self._script) if isinstance(self._script, Path) else self._script

    @script.setter
    def script(self, script: Script) -> None:
        self._script = script

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> "FakeVllm":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    fake: FakeVllm

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Server6(Server):
    address_family = socket.AF_INET6


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    inside = False
    answered = 0

    def setup(self) -> None:
        super().setup()
        with self.server.fake.ledger.full:
            self.server.fake.ledger.connections += 1

    def do_GET(self) -> None:
        fake, script = self.server.fake, self.server.fake.script
        if self.unauthorized():
            return
        if self.path in script.bodies:
            self.reply(200, script.bodies[self.path])
        elif self.path == "/health":
            self.reply(200 if script.healthy else 503, "")
        elif self.path == "/version":
            self.reply(200, json.dumps({"version": script.version}))
        elif self.path == "/v1/models":
            self.reply(200, json.dumps({"object": "list", "data": [model_card(fake, script)]}))
        elif self.path == "/metrics":
            self.reply(script.metrics_status, metrics_text(fake, script), "text/plain; version=0.0.4")
        else:
            self.reply(404, json.dumps({"detail": "Not Found"}))

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.unauthorized():
            return
        if self.path != "/v1/chat/completions":
            self.reply(404, json.dumps({"detail": "Not Found"}))
            return
        ledger = self.server.fake.ledger
        if self.answered == self.server.fake.script.tires_after:
            self.close_connection = True
            return
        self.answered += 1
        self.inside = True
        with ledger.full:
            number = len(ledger.requests)
            ledger.requests.append(payload)
            ledger.in_flight += 1
            ledger.max_in_flight = max(ledger.max_in_flight, ledger.in_flight)
            ledger.full.notify_all()
        try:
            self.chat(number, payload)
        finally:
            self.leave()

    def unauthorized(self) -> bool:
        """Refuse a request without the key, as vLLM does below /v1 only."""
        key = self.server.fake.api_key
        if key is None or not self.path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.reply(401, json.dumps({"error": "Unauthorized"}))
        return True

    def leave(self) -> None:
        """Count the request as answered, once; before its last byte, for the next one may follow at once."""
        ledger = self.server.fake.ledger
        with ledger.full:
            ledger.in_flight -= self.inside
        self.inside = False

    def chat(self, number: int, payload: dict[str, Any]) -> None:
        fake, ledger = self.server.fake, self.server.fake.ledger
        script = fake.script.for_request(number, str(payload["messages"][-1]["content"]))
        if script.die_at_request is not None and number >= script.die_at_request:
            print("\n".join(script.last_words), flush=True)
            if script.dying_s:
                self.connection.shutdown(socket.SHUT_RDWR)
                time.sleep(script.dying_s)
            os._exit(1)  # which breaks the connection, and nothing answers in between
        if script.rendezvous:
            with ledger.full:
                ledger.full.wait_for(lambda: ledger.max_in_flight >= script.rendezvous, RENDEZVOUS_S)
        if script.loaded_texts and ledger.in_flight > 1:
            script = dataclasses.replace(script, texts=script.loaded_texts)
        if script.body is not None:
            self.reply(script.status, script.body)
        elif script.status != 200:
            self.reply(script.status, json.dumps({"error": {"message": "scripted trouble", "code": script.status}}))
        elif payload["model"] != fake.model:
            self.reply(404, json.dumps({"error": {"message": f"The model `{payload['model']}` does not exist.", "code": 404}}))
        else:
            pieces, reason = generate(script, number, payload)
            if payload.get("stream"):
                with suppress(StreamEndError):
                    self.stream(script, payload, pieces, reason)
            else:
                self.unary(script, payload, pieces, reason)

    def unary(self, script: Script, payload: dict[str, Any], pieces: list[str], reason: str) -> None:
        time.sleep(script.first_token_s + script.inter_token_s * max(0, len(pieces) - 1))
        self.count(script, len(pieces))
        wanted = payload.get("return_token_ids") and script.token_ids
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(pieces)},
            "finish_reason": reason,
            "token_ids": [token_id(piece) for piece in pieces] if wanted else None,
            "logprobs": logprobs(script, pieces) if payload.get("logprobs") else None,
        }
        usage = self.usage(script, payload, len(pieces))
        prompt_ids = [token_id(script.prompt_prefix + message["content"]) for message in payload["messages"]] if wanted else None
        answer = {
            "object": "chat.completion",
            "model": payload["model"],
            "choices": [choice],
            "usage": usage,
            "prompt_token_ids": prompt_ids,
        }
        self.reply(200, json.dumps(answer))

    def stream(self, script: Script, payload: dict[str, Any], pieces: list[str], reason: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.delta({"role": "assistant", "content": ""})
        self.delta({"content": ""})
        time.sleep(script.first_token_s)
        starts = range(0, 0 if script.only_usage else len(pieces), script.tokens_per_chunk)
        for sent, start in enumerate(starts):
            self.interrupt(script, sent)
            if sent:
                time.sleep(script.inter_token_s * script.tokens_per_chunk)
            chunk = pieces[start : start + script.tokens_per_chunk]
            self.count(script, len(chunk))
            self.delta({"content": "".join(chunk)}, reason if start == starts[-1] else None)
        self.interrupt(script, len(starts))
        time.sleep(script.usage_s)
        if script.usage_chunk and (payload.get("stream_options") or {}).get("include_usage"):
            self.event(
                json.dumps(
                    {
                        "object": "chat.completion.chunk",
                        "choices": [],
                        "usage": self.usage(script, payload, len(pieces)),
                    }
                )
            )
        self.event("[DONE]")
        self.chunk(b"")

    def interrupt(self, script: Script, sent: int) -> None:
        """End the stream here if the script says so."""
        if script.break_after == sent:
            self.close_connection = True
            raise StreamEndError
        if script.cut_after == sent:
            self.chunk(b"")
            raise StreamEndError
        if script.error_after == sent:
            self.event(json.dumps({"error": {"message": "scripted trouble", "type": "InternalServerError", "code": 500}}))
            self.event("[DONE]")
            self.chunk(b"")
            raise StreamEndError

    def delta(self, delta: dict[str, str], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.event(json.dumps({"object": "chat.completion.chunk", "choices": [choice]}))

    def event(self, data: str) -> None:
        self.chunk(f"data: {data}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        """Write a chunk of the body; an empty one ends it."""
        if not data:
            self.leave()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def usage(self, script: Script, payload: dict[str, Any], tokens: int) -> dict[str, Any]:
        """Return the usage of a whole answer, and count it."""
        ledger = self.server.fake.ledger
        with ledger.full:
            usage = usage_of(script, payload, tokens, ledger)
            ledger.prompt_tokens += usage["prompt_tokens"]
            ledger.hit_tokens += usage["prompt_tokens_details"]["cached_tokens"]
            ledger.successes += 1
        return usage

    def count(self, script: Script, tokens: int) -> None:
        ledger = self.server.fake.ledger
        with ledger.full:
            ledger.tokens += tokens
            ledger.counter += tokens * script.counting

    def reply(self, status: int, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.leave()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class StreamEndError(Exception):
    """The script ends the stream here."""


def generate(script: Script, number: int, payload: dict[str, Any]) -> tuple[list[str], str]:
    """Return (tokens, finish reason) of the answer."""
    limit = int(payload.get("max_tokens") or 64)
    pieces = split(script.texts[number % len(script.texts)])
    if payload.get("ignore_eos") and script.honours_ignore_eos:
        pieces = list(itertools.islice(itertools.cycle(pieces), limit))
        return pieces, "length"
    return pieces[:limit], "length" if len(pieces) > limit else "stop"


def split(text: str) -> list[str]:
    """Return the text's tokens."""
    return [text[start : start + TOKEN_CHARACTERS] for start in range(0, len(text), TOKEN_CHARACTERS)]


def token_id(piece: str) -> int:
    return zlib.crc32(piece.encode()) % 49152


def logprobs(script: Script, pieces: list[str]) -> dict[str, Any]:
    """Return two ranked logprobs for each token."""
    return {"content": [{"token": piece, "top_logprobs": [{"logprob": -0.1}, {"logprob": -0.1 - script.top_gap}]} for piece in pieces]}


def cached(script: Script, payload: dict[str, Any], prompt: int, ledger: Ledger) -> int:
    """Return how many prompt tokens came from the cache."""
    if script.cached_tokens is not None:
        return script.cached_tokens
    key = f"{payload.get('cache_salt')} {payload['messages']}"
    hit = key in ledger.seen_prompts
    ledger.seen_prompts.add(key)
    return prompt - 1 if hit else 0


def usage_of(script: Script, payload: dict[str, Any], tokens: int, ledger: Ledger) -> dict[str, Any]:
    prompt = 1 + sum(len(split(message["content"])) for message in payload["messages"])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": cached(script, payload, prompt, ledger)},
    }


def model_card(fake: FakeVllm, script: Script) -> dict[str, Any]:
    return {
        "id": script.model_id or fake.model,
        "object": "model",
        "owned_by": script.owned_by,
        "root": script.root or fake.folder,
        "max_model_len": script.max_model_len or fake.max_model_len,
    }


def metrics_text(fake: FakeVllm, script: Script) -> str:
    """Return the counters as two engines would show them, so that their samples must be summed."""
    running = float(fake.ledger.in_flight if script.in_flight_gauge else 0)
    lines = ["# HELP vllm:num_requests_running Running.", "# TYPE vllm:num_requests_running gauge", f"vllm:num_requests_running {running}"]
    if script.metrics:
        half = fake.ledger.counter / 2
        lines += ["# HELP vllm:generation_tokens_total Generated.", "# TYPE vllm:generation_tokens_total counter"]
        lines += [f'vllm:generation_tokens_total{{engine="{engine}",model_name="{fake.model}"}} {half}' for engine in (0, 1)]
        counters = {
            "prompt_tokens": fake.ledger.prompt_tokens,
            "request_success": fake.ledger.successes,
            "prefix_cache_hits": fake.ledger.hit_tokens,
            "num_preemptions": script.preemptions,
        }
        for name, value in counters.items():
            lines += [f"# HELP vllm:{name}_total Counted.", f"# TYPE vllm:{name}_total counter", f"vllm:{name}_total {float(value)}"]
        lines += ["# HELP vllm:kv_cache_usage_perc Usage.", "# TYPE vllm:kv_cache_usage_perc gauge"]
        lines.append(f"vllm:kv_cache_usage_perc {script.kv_usage if fake.ledger.in_flight else 0.0}")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Run as vLLM's API server would, or as `vllm serve MODEL` does."""
    if words[:1] == ["serve"]:
        words = ["--model", *words[1:]]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default="/models/fake")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, default=4096)
    known, _ = parser.parse_known_args(words)
    source = os.environ.get(SCRIPT_VARIABLE)
    script = Script.load(Path(source)) if source else Script()
    if script.poses_as is not None and sys.argv[0] != "-c":
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fake_vllm; sys.exit(fake_vllm.main(sys.argv[1:]))"
        os.execv(sys.executable, [script.poses_as, "-c", code, *words])
    if script.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.orphan and os.fork() == 0:
        time.sleep(LIFETIME_S)
        os._exit(0)
    for line in script.log:
        print(line, flush=True)
    if script.exit_code is not None:
        return script.exit_code
    if any(float(words[words.index(name) + 1]) > most for name, most in script.fails_above.items() if name in words):
        print(script.lack, flush=True)
        return 1
    if script.hang:
        time.sleep(LIFETIME_S)
        return 1
    chosen = Path(source) if source else script
    key = os.environ.get("VLLM_API_KEY")
    with FakeVllm(chosen, known.served_model_name or known.model, known.model, known.host, known.port, known.max_model_len, key):
        time.sleep(LIFETIME_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
