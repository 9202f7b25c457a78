"""Servers that lie, measured by our `bench`, `vllm bench serve`, guidellm and aiperf: what each reports beside the truth.

Run `./inv install` and `./inv download-model` first, in this folder or in that of `--project`; then
`.venv/bin/python -m benchmarks.lies [lies] [--clients …]`. The peers are installed as for `benchmarks.clients`, into .cache/peers.

Every server takes 50 ms for the first token of an answer and 4 ms for each other one, of 64: 250 tok/s, less what sleeping takes
longer than told. What a lie hides or holds back does not change that. A server that spoils answers spoils every fourth or fifth
request. Ours is the figure of the report, with the reason where it is INVALID; a peer's rate is 1000 / its mean TPOT.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clients import CLIENTS, PEERS, ROOT, Client, Installed, Job, NotMeasuredError, last_line, row, table
from pipeline.engine.record import Failure
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script
from tests.lies import servers
from tests.lies.front import Front, Twist
from tests.lies.lie import Situation
from tests.lies.run import frozen, measured

FIRST_S, EACH_S, TOKENS, REQUESTS = 0.05, 0.004, 64, 8
TIMEOUT_S = 120
TRUTH = f"TTFT {1000 * FIRST_S:g} ms, {1 / EACH_S:g} tok/s"
OURS = "ours"


@dataclass(frozen=True)
class Case:
    """A lie as a load generator meets it, and how many of its requests are spoilt."""

    says: str
    twist: Callable[[], Twist]
    spoilt: int = 0


CASES = {
    "honest": Case("tells the truth", Twist),
    "flush-32": Case("sends 32 tokens at once", lambda: servers.Flushes(32)),
    "hidden-leading": Case("shows no text of the first 32 tokens", lambda: servers.Hides(leading=32, in_chunks=True)),
    "hidden-trailing": Case("shows nothing of the last 32 tokens", lambda: servers.Hides(trailing=32)),
    "blank-first": Case("sends a blank at once", servers.BlankFirst),
    "usage-doubled": Case(
        "counts each token twice", lambda: servers.Counts(lambda usage: {**usage, "completion_tokens": 2 * usage["completion_tokens"]})
    ),
    "error-object": Case('an {"object": "error"} in every fourth stream', lambda: servers.Spoils(servers.old_error), REQUESTS // 4),
    "aborted": Case("every fourth answer ends by abort", lambda: servers.Spoils(servers.abort), REQUESTS // 4),
    "cut-off": Case("every fourth answer ends in its middle", lambda: servers.Spoils(servers.cut_off), REQUESTS // 4),
    "hangs-up": Case("hangs up on every fifth request", servers.HangsUp, REQUESTS // 5),
}


def slow() -> Script:
    """Return the true pace of every server here."""
    return Script(first_token_s=FIRST_S, inter_token_s=EACH_S)


def by_peer(client: Client, case: Case) -> list[str]:
    """Return what a peer reports: TTFT, TPOT, rate, requests that succeeded; NotMeasuredError where it reports nothing."""
    with FakeVllm(slow()) as fake, Front(fake, case.twist()) as front, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = Job(front.base_url, fake.model, REQUESTS, TOKENS, concurrency=1, first=0)
        environment = {**os.environ, "HF_HOME": str(PEERS / "huggingface"), **client.environment(job)}
        command = client.command(job, folder)
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise NotMeasuredError(f"not done within {TIMEOUT_S} s") from error
        try:
            told = client.read(folder, done.stdout)
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            why = last_line(done.stderr if done.stderr.strip() else done.stdout) if done.returncode else f"{type(error).__name__}: {error}"
            raise NotMeasuredError(f"no result: {why}") from error
    rate = f"{1000 / told.tpot_ms:.0f}" if told.tpot_ms else ""
    return [f"{told.ttft_ms:.1f}", f"{told.tpot_ms:.2f}", rate, f"{told.requests} of {REQUESTS}", ""]


def by_us(case: Case) -> list[str]:
    """Return what our report says of the same, and why it does not stand where it does not."""
    settings = {
        "ttft_requests": REQUESTS,
        "decode_requests": REQUESTS,
        "output_tokens": TOKENS,
        "concurrency": [1],
        "open_loop": [],
    }
    result = measured("bench", Situation(slow, case.twist), frozen(settings))
    if isinstance(result, Failure):
        return ["", "", "", f"0 of {REQUESTS}", f"FAIL: {result.message}"]
    figures = result.figures
    ttft, tpot, rate = (figures[name] for name in ("ttft_ms_p50", "tpot_ms_p50", "decode_tok_s_p50"))
    doubts = dict.fromkeys(
        f"{name} {'INVALID' if figure.invalid else 'NOT_MEASURED'}: {figure.invalid or figure.reason}"
        for name, figure in (("TTFT", ttft), ("TPOT", tpot))
        if figure.valid is None
    )
    values = ["" if figure.value is None else f"{figure.value:.{digits}f}" for figure, digits in ((ttft, 1), (tpot, 2), (rate, 0))]
    return [*values, f"{figures['answered'].value:.0f} % of {figures['answered'].n}", "; ".join(doubts)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lies", nargs="*", metavar="lie", help=f"{', '.join(CASES)}; all without a name")
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--project", type=Path, default=ROOT, help="the folder in which `install` and `download-model` ran")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.lies if name not in CASES]
    if unknown:
        parser.error(f"no lie {unknown[0]!r}; there are {', '.join(CASES)}")
    installed = Installed.found(arguments.project)
    clients: dict[str, Client | NotMeasuredError] = {}
    for name in arguments.clients:
        try:
            clients[name] = CLIENTS[name](installed)
        except NotMeasuredError as error:
            clients[name] = error
    print(f"\n### Lies: {REQUESTS} requests × {TOKENS} tokens; the truth is {TRUTH}\n")
    table("the server", "spoilt answers", "client", "TTFT (ms)", "TPOT (ms)", "tok/s", "succeeded", "what it says of that")
    for name in arguments.lies or list(CASES):
        case = CASES[name]
        for client_name, client in clients.items():
            try:
                if isinstance(client, NotMeasuredError):
                    raise client
                told = by_us(case) if client_name == OURS else by_peer(client, case)
            except NotMeasuredError as error:
                told = ["", "", "", "", f"not measured: {error}"]
            row(case.says, f"{case.spoilt} of {REQUESTS}", client_name, *(cell.replace("|", "/") for cell in told))


if __name__ == "__main__":
    main()
