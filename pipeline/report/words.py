"""The report's language, as gettext does it: the English text is the key, other languages stand in a catalogue of templates/."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml

from pipeline.message import NAME, Code, Digits, Message, Value

# What other rooms say of a figure or a stage: recognised by these, and put together again in the report's language. A program's
# own message is not among them and stays as it is.
SAID = (
    # measure/verdicts.py
    "no such figure on record",
    "no value",
    "{value} is no measured value",
    "not measured on a server proven to be a real vLLM",
    "{value} is not {sign} {target}",
    "n = {n}, at least {needed} needed",
    "n = {n} is too small for a confidence bound",
    "the 95 % bound {value} is not {sign} {target}",
    # report/gates.py
    "the plan's {value} + {target}",
    "the highest of {n} devices",
    "no such stage",
    "{stage} never ran",
    "{stage} makes no figures",
    "{stage} has no figure {name}",
    "was measured on another server than the one on record",
    "waiver expired on {date}: {reason}",
    "waived until {date}: {reason}",
    "unused waiver until {date}: {reason}",
    # engine.py
    "needs {stage}, which failed",
    # measure/statistics.py, measure/memory.py
    "no request succeeded",
    "no request was sent",
    "one sample has no slope",
    "the server does not count preemptions",
    "n = {n} samples are too few for a bound of the slope",
    "samples are missing for {value} s of {target} s of load",
    "rises by at least {value} MiB/h",
    "range {value} MiB",
    "{n} preemptions",
    "{reason}, which {value} s of load are too short to call a drift ({target} s)",
    # stages/measure_vram.py, gpu/plan.py
    "NVML, sum over the server's processes",
    "NVML, device used − baseline before the start",
    "no sample under load",
    "the driver tells no memory figures",
    "the server's metrics do not tell",
    "it is read while load is added, and none was",
    "the memory of the server at {address} is not ours to measure",
    "nothing was planned: no GPU, or a model or flag that the plan does not know",
    "the measured peak is 0",
    # server/stop.py
    "other programs freed {n} MiB meanwhile",
    "other programs took {n} MiB meanwhile",
    "of the server or of other programs: the driver does not tell",
    # stages/bench.py
    "bench.find_capacity is false",
    "no rate met the limits, down to {value} requests/s",
    "INVALID: {reason}",
    "output tokens",
    "prompt tokens",
    "requests answered",
    # stages/serve.py, server/identity.py
    "the weights are random (serve.load_format: dummy), so the answers are noise",
    "our child listens on the port",
    "it runs the Python of the environment on record",
    "/version is the installed one",
    "/version answers as vLLM does",
    "/v1/models names the model, its folder and length",
    "/v1/models is vLLM's",
    "its metrics count the tokens of a completion",
    "{name}, {n} tokens, by {owner}",
    "{n} counted, {needed} said",
    # stages/test_determinism.py
    "prefix cache cold, then warm",
    "amid {n} other",
    "amid {n} others",
    "after a restart of the server",
    "temperature {value}, same seed",
    "temperature {value}, another seed",
    "determinism.cache_runs is 0",
    "determinism.restart is false",
    "the server's own count shows no cold and warm cache: {reason}",
    "{n} cached tokens cold, {needed} warm",
    "0 cached prompt tokens cold; a hit in {n} of {needed} warm",
    "{name} above 1 beside {n} of {needed} requests, at most {value}; only these count",
    "no proof that any two requests overlapped: {reason}",
    "the server at {address} is not ours to restart",
    "the server did not come back: {reason}",
    "the prompt's own token ids changed: {name}",
    "launch {name}, then {reason}",
    # gpu/remedies.py
    "the server at {address} is not ours to start with another environment",
    "{name} needs compute capability {value}, and {reason} has {target}",
    "vLLM splits attention over the KV cache by what else is running, which changes the order of its sums",
    "vLLM then takes kernels whose sums do not depend on the size of the batch",
    # gpu/nvml.py, stages/check_gpu.py, stages/install.py
    "no usable GPU: {reason}",
    "NVML library libnvidia-ml.so.1 not found: no NVIDIA driver is installed",
    # measure/answers.py, stages/test_router.py
    "failed request",
    "truncated",
    "fence",
    "trailing text",
    "not JSON",
    "echoed choices",
    "wrong type",
    "unknown value",
    "missing key",
    "extra key",
    "out of bounds",
    "route {name}, golden {reason}",
    "(no valid JSON)",
    # sweep/fit.py, report/sweep.py
    "needs {what}, {reason}; on the guide's {name}: {fit}",
    "no node has more than {n}",
    "and no node has one",
    "serve.nnodes is {n}: a cell runs on one node",
    "fits, {peak}",
    "may not fit, by less than the estimate's error; {peak}",
    "peak {value} of {target} MiB",
    "cannot fit: {reason} ({name})",
    "the sweep was interrupted; the same command goes on with it",
    # units
    "points",
    "requests/s",
)
GROUPS = {
    "n": r"\d+",
    "needed": r"\d+",
    "value": r"-?[\d.e+-]+|nan|-?inf",
    "target": r"-?[\d.e+-]+",
    "sign": "[<≤>≥=]+",
    "stage": "[a-z-]+",
}
GROUPS |= {"date": r"\d{4}-\d\d-\d\d", "address": r"https?://\S+"}


DECIMAL = "{whole}.{part}"  # how a language writes a number with a fraction, as a text of the catalogue


class Words:
    """English texts in the language of the report."""

    def __init__(self, language: str, catalogue: Mapping[str, str] | None = None) -> None:
        self.language = language
        self.catalogue = catalogue

    def __call__(self, template: str, **values: Value) -> str:
        """Return the text in the report's language with its {names} filled in; KeyError where the catalogue lacks it."""
        if self.catalogue is not None:
            self.catalogue[template]  # raises where it is missing
        return self.text(Message(template, values))

    def text(self, value: Value) -> str:
        """Return the value as text in the report's language, code in backticks."""
        return "".join(f"{part}" for part in self.parts(value))

    def parts(self, value: Value) -> Iterator[str]:
        """Yield the pieces of the value in the report's language: Code, and text that stands for itself."""
        if isinstance(value, Message):
            yield from self._message(value)
        elif isinstance(value, Code):
            yield value
        elif isinstance(value, Digits):
            whole, point, part = value.partition(".")
            yield self._known(DECIMAL).format(whole=whole, part=part) if point else whole
        else:
            yield self._recognised(value) if isinstance(value, str) else str(value)

    def _known(self, template: str) -> str:
        return template if self.catalogue is None else self.catalogue.get(template, template)

    def _message(self, message: Message) -> Iterator[str]:
        several = message.plural and message.values.get("count") != 1
        template = self._known(message.plural if several else message.template)
        at = 0
        for found in NAME.finditer(template) if message.values else ():
            if found[1] in message.values:
                yield template[at : found.start()]
                yield from self.parts(message.values[found[1]])
                at = found.end()
        yield template[at:]

    def _recognised(self, message: str) -> str:
        """Return what another room says as a plain text: translated where it is one of those that are known, else as it is."""
        if self.catalogue is None:
            return message
        for template, pattern in self.patterns:
            if found := pattern.fullmatch(message):
                return self.text(Message(template, found.groupdict()))
        return message

    @cached_property
    def patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """Return the templates of messages with what recognises them."""
        return [(template, pattern_of(template)) for template in SAID]


ENGLISH = Words("en")


def words(language: Literal["en", "tr"], templates: Path) -> Words:
    """Return the texts in that language."""
    if language == "en":
        return Words(language)
    return Words(language, yaml.safe_load((templates / f"{language}.yaml").read_text(encoding="utf-8")))


def pattern_of(template: str) -> re.Pattern[str]:
    """Return what matches a filled-in template, its names as groups."""
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(f"(?P<{part}>{GROUPS.get(part, '.+?')})" if index % 2 else re.escape(part) for index, part in enumerate(parts)), re.DOTALL
    )
