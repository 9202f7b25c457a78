"""Print each lie, what our report says of it, and of its honest twin: `.venv/bin/python -m tests.lies [part of a name] [--json]`.

The exit code is 1 where a lie is not caught or a twin is flagged.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from tests.lies.catalogue import LIES, UNSEEN
from tests.lies.lie import Lie
from tests.lies.run import Result, Told, examine

HEAD = ("lie", "it", "gate", "the report says", "caught", "of its honest twin", "flagged")


def main(words: Sequence[str] | None = None) -> int:
    """Measure the named lies and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.lies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="only lies whose name holds this")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    arguments = parser.parse_args(words)
    chosen = [lie for lie in LIES if arguments.name in lie.name]
    if not arguments.json:
        row(*HEAD)
        row(*["---"] * len(HEAD))
    began, results = time.monotonic(), []
    for lie in chosen:
        results.append(examine(lie))
        show(results[-1], arguments.json)
    for unseen in UNSEEN:
        if arguments.name in unseen.name:
            show_unseen(unseen.name, unseen.says, unseen.why, arguments.json)
    caught, flagged = sum(result.caught for result in results), sum(result.flagged for result in results)
    if not arguments.json:
        took = f"{time.monotonic() - began:.0f} s, {time.process_time():.0f} s of CPU"
        print(f"\n{caught} of {len(results)} lies caught, {flagged} honest twins flagged ({took})")
    return int(caught < len(results) or flagged > 0)


def show(result: Result, as_json: bool) -> None:
    """Print one lie."""
    lie = result.lie
    if as_json:
        parts = {"caught": result.caught, "twin_flagged": result.flagged, "told": facts(result.told), "twin": facts(result.twin)}
        print(json.dumps({"lie": lie.name, "says": lie.says, "gate": asked(lie), **parts}, ensure_ascii=False), flush=True)
        return
    row(lie.name, lie.says, asked(lie), words(result.told), yes(result.caught), words(result.twin), yes(result.flagged))


def show_unseen(name: str, says: str, why: str, as_json: bool) -> None:
    """Print one lie that cannot be seen."""
    if as_json:
        print(json.dumps({"lie": name, "says": says, "unseen": why}, ensure_ascii=False), flush=True)
    else:
        row(name, says, "", f"cannot be seen over HTTP: {why}", "no", "", "")


def asked(lie: Lie) -> str:
    """Return what the lie's gate asks for."""
    target = "the figure − 5 %" if lie.margin else f"{lie.gate.target:g}" if isinstance(lie.gate.target, float | int) else lie.gate.target
    return f"{lie.gate.metric} {lie.gate.comparator} {target}"


def facts(told: Told) -> dict[str, object]:
    """Return a verdict with its figure, for JSON."""
    return {"verdict": told.verdict, "reason": told.reason, "value": told.figure.value if told.figure else None}


def words(told: Told) -> str:
    """Return a verdict with its figure, for people."""
    text = " ".join(part for part in (told.verdict, told.value and f"({told.value})") if part)
    return f"{text}: {told.reason}" if told.reason else text


def yes(value: bool) -> str:
    return "yes" if value else "no"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
