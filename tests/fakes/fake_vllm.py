"""A server that speaks vLLM's HTTP and does what a script says: late, cut off, lying, dying. Standard library only.

In-process: `with FakeVllm(Script(...)) as fake: ... fake.base_url ...`. As a program it takes vLLM's arguments, and reads
its script from the JSON file named by FAKE_VLLM_SCRIPT; how it starts and dies is read once, how it answers at every
request, so that a test can change its mind. One token is four characters of text.
"""

import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.fakes.plain_http import HttpHandler, HttpServer
from tests.fakes.script import VERSION, Ledger, Script
from tests.fakes.tokens import delta_of, generate, logprobs, prompt_ids, refused, shown, split, token_id

__all__ = ["VERSION", "FakeVllm", "Script"]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT_VARIABLE = "FAKE_VLLM_SCRIPT"
LIFETIME_S = 600.0  # no fake outlives its tests for long, whatever happens to them
RENDEZVOUS_S = 60.0


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


class Server(HttpServer):
    fake: FakeVllm


class Server6(Server):
    address_family = socket.AF_INET6


class Handler(HttpHandler):
    server: Server
    inside = False
    answered = 0
    flush = 1

    def setup(self) -> None:
        super().setup()
        self.held: list[bytes] = []
        self.connection.settimeout(self.server.fake.script.idle_s)
        with self.server.fake.ledger.full:
            self.server.fake.ledger.connections += 1

    def do_GET(self) -> None:
        fake, script = self.server.fake, self.server.fake.script
        if self.unauthorized() or self.out_of_the_way(script):
            return
        if self.path in script.bodies:
            self.reply(200, script.bodies[self.path])
        elif self.path == "/health":
            self.reply(200 if script.healthy else 503, "")
        elif self.path == "/version":
            self.reply(200, json.dumps({"version": script.version}))
        elif self.path == "/v1/models":
            self.reply(200, json.dumps({"object": "list", "data": [model_card(fake, script), *adapter_cards(fake, script)]}))
        elif self.path == "/metrics":
            self.reply(script.metrics_status, metrics_text(fake, script), "text/plain; version=0.0.4")
        else:
            self.reply(404, json.dumps({"detail": "Not Found"}))

    def do_POST(self) -> None:
        payload = json.loads(self.body)
        if self.unauthorized() or self.out_of_the_way(self.server.fake.script):
            return
        if self.path != "/v1/chat/completions":
            self.reply(404, json.dumps({"detail": "Not Found"}))
            return
        ledger = self.server.fake.ledger
        script = self.server.fake.script
        if self.answered == script.tires_after:
            self.close_connection = True
            return
        self.answered += 1
        self.inside = True
        with ledger.full:
            number = len(ledger.requests)
            ledger.requests.append(payload)
            if script.drop_every and len(ledger.requests) % script.drop_every == 0:
                self.close_connection, self.inside = True, False
                return
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
        if key is None or not self.path.startswith("/v1") or self.headers.get("authorization") == f"Bearer {key}":
            return False
        self.reply(401, json.dumps({"error": "Unauthorized"}))
        return True

    def out_of_the_way(self, script: Script) -> bool:
        """Refuse what a proxy does not let through, and take its prefix away."""
        found = self.path.startswith(script.prefix) and self.path.removeprefix(script.prefix) not in script.hidden
        if not found:
            self.reply(404, "no such page")
        self.path = self.path.removeprefix(script.prefix)
        return not found

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
        elif refusal := refused(script, payload):
            self.reply(400, json.dumps({"error": {"message": refusal, "type": "BadRequestError", "code": 400}}))
        elif payload["model"] not in (fake.model, *script.adapters):
            self.reply(404, json.dumps({"error": {"message": f"The model `{payload['model']}` does not exist.", "code": 404}}))
        else:
            pieces, reason = generate(script, number, payload)
            if payload.get("stream"):
                with suppress(StreamEndError):
                    self.stream(script, payload, pieces, reason)
            else:
                self.unary(script, payload, pieces, reason)

    def unary(self, script: Script, payload: dict[str, Any], pieces: list[tuple[str, str]], reason: str) -> None:
        time.sleep(script.first_token_s + script.inter_token_s * max(0, len(pieces) - 1))
        self.count(script, len(pieces))
        wanted = payload.get("return_token_ids") and script.token_ids
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "", **delta_of(pieces)},
            "finish_reason": reason,
            "token_ids": [token_id(piece) for _, piece in pieces] if wanted else None,
            "logprobs": logprobs(script, [piece for _, piece in pieces]) if payload.get("logprobs") else None,
        }
        usage = self.usage(script, payload, len(pieces))
        answer = {
            "object": "chat.completion",
            "model": payload["model"],
            "choices": [choice],
            "usage": usage,
            "prompt_token_ids": prompt_ids(script, payload) if wanted else None,
        }
        self.reply(200, json.dumps(answer))

    def stream(self, script: Script, payload: dict[str, Any], pieces: list[tuple[str, str]], reason: str) -> None:
        self.flush, wanted = script.flush_chunks, payload.get("return_token_ids") and script.token_ids
        self.begin(200, "text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")
        self.delta({"role": "assistant", "content": ""}, prompt_ids=prompt_ids(script, payload) if wanted else None)
        self.delta({"content": ""})
        time.sleep(script.first_token_s)
        sent_pieces = [] if script.only_usage else shown(script, pieces)[: len(pieces) - script.unsent_last]
        starts = range(0, len(sent_pieces), script.tokens_per_chunk)
        for sent, start in enumerate(starts):
            self.interrupt(script, sent)
            if sent:
                time.sleep(script.inter_token_s * script.tokens_per_chunk)
            chunk = sent_pieces[start : start + script.tokens_per_chunk]
            self.count(script, len(chunk))
            ids = [token_id(piece) for _, piece in pieces[start : start + len(chunk)]] if wanted else None
            self.delta(delta_of(chunk), reason if start == starts[-1] else None, ids)
        self.interrupt(script, len(starts))
        self.count(script, 0 if script.only_usage else script.unsent_last)
        time.sleep(script.usage_s + script.inter_token_s * script.unsent_last)
        if script.usage_chunk and (payload.get("stream_options") or {}).get("include_usage"):
            self.event(json.dumps({"object": "chat.completion.chunk", "choices": [], "usage": self.usage(script, payload, len(pieces))}))
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

    def delta(
        self, delta: dict[str, str], finish_reason: str | None = None, ids: list[int] | None = None, prompt_ids: list[int] | None = None
    ) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **({"token_ids": ids} if ids is not None else {})}
        first = {"prompt_token_ids": prompt_ids} if prompt_ids is not None else {}
        self.event(json.dumps({"object": "chat.completion.chunk", "choices": [choice], **first}))

    def event(self, data: str) -> None:
        self.chunk(f"data: {data}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        """Write a chunk of the body, so many at once; an empty one ends it."""
        self.held.append(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if data and len(self.held) < self.flush:
            return
        if not data:
            self.leave()
        self.wfile.write(b"".join(self.held))
        self.held.clear()

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
        self.begin(status, kind, f"Content-Length: {len(data)}")
        self.wfile.write(data)


class StreamEndError(Exception):
    """The script ends the stream here."""


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
        "completion_tokens": tokens if script.usage_says is None else script.usage_says,
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


def adapter_cards(fake: FakeVllm, script: Script) -> list[dict[str, Any]]:
    """Return the cards of the LoRA adapters, which have no length."""
    card = {"object": "model", "owned_by": "vllm", "parent": fake.model, "max_model_len": None}
    return [{**card, "id": name, "root": f"/adapters/{name}"} for name in script.adapters]


def metrics_text(fake: FakeVllm, script: Script) -> str:
    """Return the counters as two engines would show them, so that their samples must be summed."""
    fake.ledger.readings += 1
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
            "num_preemptions": script.preemptions + (script.preempts if len(fake.ledger.requests) > 1 else 0),
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
    given = dict(itertools.pairwise(words))
    source = os.environ.get(SCRIPT_VARIABLE)
    script = Script.load(Path(source)) if source else Script()
    if script.poses_as is not None and sys.argv[0] != "-c":
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.fakes.fake_vllm import main; sys.exit(main(sys.argv[1:]))"
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
    folder, port, length = given["--model"], int(given["--port"]), int(given.get("--max-model-len", 4096))
    with FakeVllm(chosen, given.get("--served-model-name", folder), folder, given["--host"], port, length, key):
        time.sleep(LIFETIME_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
