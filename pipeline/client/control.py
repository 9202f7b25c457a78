"""Short calls to one server: version, models, metrics, one completion."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.client.endpoint import Endpoint
from pipeline.errors import MeasureError
from pipeline.values import Lenient

CALL_TIMEOUT_S = 10.0
GREETING_TIMEOUT_S = 120.0  # a server's first answer may wait for kernels to compile
HEALTH_TIMEOUT_S = 5.0  # a loaded machine is slow, and a false "no" restarts the server
SHARES = "_perc"  # the end of the name of a metric that is a share: 0.4 of one engine and 0.4 of another are not 0.8 of anything

M = TypeVar("M", bound=BaseModel)


class RefusedError(MeasureError):
    """The server refuses a request (HTTP 400), as where a chat template does not take it."""


def together(name: str, values: Iterable[float]) -> float:
    """Return one value for those of several engines or servers: their sum, or of shares the highest."""
    return max(values) if name.endswith(SHARES) else sum(values)


class ModelCard(Lenient):
    """One entry of /v1/models, as vLLM returns it."""

    id: str
    root: str | None = None
    owned_by: str | None = None
    parent: str | None = None  # of a LoRA adapter: the model that it adapts
    max_model_len: int | None = None


class ModelList(Lenient):
    data: list[ModelCard]


class PromptTokensDetails(Lenient):
    cached_tokens: int | None = None


class CompletionUsage(Lenient):
    """The server's own token counts."""

    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class CompletionMessage(Lenient):
    """An answer; its reasoning is `reasoning_content` in vLLM before 0.12."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def thought(self) -> str:
        """Return the reasoning that the server tells apart; empty without any."""
        return self.reasoning or self.reasoning_content or ""


class RankedLogprob(Lenient):
    logprob: float


class TokenLogprobs(Lenient):
    """The most likely alternatives to one generated token, including the token itself."""

    top_logprobs: list[RankedLogprob] = []


class ChoiceLogprobs(Lenient):
    content: list[TokenLogprobs] | None = None


class CompletionChoice(Lenient):
    message: CompletionMessage
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: ChoiceLogprobs | None = None


class Completion(Lenient):
    """The part of a unary chat completion that we use."""

    choices: list[CompletionChoice]
    usage: CompletionUsage
    prompt_token_ids: list[int] | None = None

    @property
    def says_something(self) -> bool:
        """Tell whether it holds a letter or a digit, in its reasoning or after it; a broken model repeats one punctuation sign."""
        return self.usage.completion_tokens > 0 and any(character.isalnum() for character in self.text)

    @property
    def text(self) -> str:
        """Return the reasoning and the answer."""
        message = self.choices[0].message if self.choices else CompletionMessage()
        return message.thought + (message.content or "")


class Control:
    """Calls to the server at `base_url`; each raises MeasureError in one line if the answer is not one of vLLM.

    Chat completions carry `fields` beside their own.
    """

    def __init__(self, base_url: str, api_key: str | None = None, fields: Mapping[str, Any] | None = None) -> None:
        import requests  # saves `--list` and an unchanged run 60 ms

        self._requests = requests
        self.base_url = base_url
        self._fields = dict(fields or {})
        self._session = requests.Session()
        if api_key is not None:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        self._session.trust_env = False  # loopback requests must not go through a proxy from the environment

    @staticmethod
    def of(target: Endpoint) -> "Control":
        """Return the calls to the endpoint."""
        return Control(target.base_url, target.api_key, target.fields)

    def answers(self) -> bool:
        """Tell whether /health returns 200."""
        try:
            return self._session.get(f"{self.base_url}/health", timeout=HEALTH_TIMEOUT_S).status_code == 200
        except self._requests.RequestException:
            return False

    def version(self) -> str:
        return str(self._json("GET", "/version", None, CALL_TIMEOUT_S).get("version", ""))

    def models(self) -> list[ModelCard]:
        return self._model(ModelList, self._json("GET", "/v1/models", None, CALL_TIMEOUT_S)).data

    def metrics(self, only: str = "") -> dict[str, float]:
        """Return each sample of /metrics summed over its labels, by name; of a share the highest, for each engine has its own whole.

        Histogram buckets are left out. `only` is how the names begin that are wanted: reading all takes as long as a token.
        """
        from prometheus_client.parser import text_string_to_metric_families

        totals: dict[str, float] = {}
        try:
            response = self._session.get(f"{self.base_url}/metrics", timeout=CALL_TIMEOUT_S)
            response.raise_for_status()
            text = "".join(line for line in response.text.splitlines(keepends=True) if line.startswith(only)) if only else response.text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if not sample.name.endswith("_bucket"):
                        totals[sample.name] = together(sample.name, [totals.get(sample.name, 0.0), sample.value])
        except (self._requests.RequestException, ValueError) as error:
            raise MeasureError(f"{self.base_url}/metrics: {error}") from error
        return totals

    def chat(self, payload: dict[str, Any], timeout_s: float) -> Completion:
        """Return the answer to a unary chat completion."""
        return self._model(Completion, self._json("POST", "/v1/chat/completions", {**self._fields, **payload}, timeout_s))

    def stream(self, payload: dict[str, Any], timeout_s: float) -> list[tuple[int, bytes]]:
        """Return the blocks of a streamed chat completion as they came, with their stamps (perf_counter ns)."""
        path = "/v1/chat/completions"
        try:
            with self._session.post(f"{self.base_url}{path}", json={**self._fields, **payload}, timeout=timeout_s, stream=True) as response:
                if response.status_code != 200:
                    raise MeasureError(f"{self.base_url}{path}: HTTP {response.status_code}: {response.text[:200]}")
                return [(time.perf_counter_ns(), block) for block in response.iter_content(None)]
        except self._requests.RequestException as error:
            raise MeasureError(f"{self.base_url}{path}: {type(error).__name__}: {error}") from error

    def greet(self, model: str) -> Completion:
        """Return the answer to one short request."""
        return self._say_hello(model, 8)

    def first_words(self, model: str) -> Completion:
        """Return the answer to a short request, or to a longer one where a reasoning parser shows nothing of its first tokens."""
        completion = self.greet(model)
        return completion if completion.says_something else self._say_hello(model, 64)

    def takes_system(self, model: str) -> bool:
        """Tell whether the model's chat template takes a system message."""
        messages = [{"role": "system", "content": "You are polite."}, {"role": "user", "content": "Say hello."}]
        try:
            self.chat({"model": model, "messages": messages, "temperature": 0, "max_tokens": 1}, GREETING_TIMEOUT_S)
        except RefusedError:
            return False
        return True

    def _say_hello(self, model: str, max_tokens: int) -> Completion:
        messages = [{"role": "user", "content": "Say hello."}]
        return self.chat({"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}, GREETING_TIMEOUT_S)

    def _json(self, method: str, path: str, payload: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        try:
            response = self._session.request(method, f"{self.base_url}{path}", json=payload, timeout=timeout_s)
        except self._requests.RequestException as error:
            raise MeasureError(f"{self.base_url}{path}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            kind = RefusedError if response.status_code == 400 else MeasureError
            raise kind(f"{self.base_url}{path}: HTTP {response.status_code}: {response.text[:200]}")
        try:
            data = response.json()
        except ValueError as error:
            raise MeasureError(f"{self.base_url}{path}: not JSON: {response.text[:80]!r}") from error
        if not isinstance(data, dict):
            raise MeasureError(f"{self.base_url}{path}: not a JSON object: {response.text[:80]!r}")
        return data

    def _model(self, kind: type[M], data: dict[str, Any]) -> M:
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise MeasureError(f"{self.base_url}: the answer's {where}: {first['msg']}") from error
