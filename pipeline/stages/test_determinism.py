"""test-determinism: the same request again and again, compared token by token."""

from pydantic import BaseModel, ConfigDict

from pipeline.client.control import Control
from pipeline.config import DeterminismConfig
from pipeline.errors import MeasureError
from pipeline.measure.agreement import agreement
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import share_figure
from pipeline.record import Measurement
from pipeline.server.watch import watched
from pipeline.stages.serve import Server
from pipeline.workspace import Workspace


class PromptAgreement(BaseModel):
    """How N answers to one prompt agree; token positions count from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    prompt: str
    runs: int
    agreeing: int
    distinct: int
    first_divergence: int | None
    tokens: int


class Determinism(Measurement):
    """Arm D1: sequential repetition, per prompt and over all."""

    seed: int
    prompts: list[PromptAgreement]


def test_determinism(settings: DeterminismConfig, server: Server, workspace: Workspace) -> Determinism:
    """Send each prompt again and again at temperature 0 and compare the answers as token ids."""
    with watched(server.handle.pid, server.handle.created, server.handle.base_url, workspace.root / server.handle.log):
        return repeat(settings, server, workspace)


def repeat(settings: DeterminismConfig, server: Server, workspace: Workspace) -> Determinism:
    """Return the record of a run; the server is watched by the caller."""
    control = Control(server.handle.base_url)
    prompts = []
    for prompt in settings.prompts:
        workspace.say(f"determinism: {settings.runs} × {prompt!r}")
        answers = [token_ids(control, server.model, prompt, settings) for _ in range(settings.runs)]
        agreed = agreement(answers)
        prompts.append(
            PromptAgreement(
                prompt=prompt,
                runs=agreed.runs,
                agreeing=agreed.agreeing,
                distinct=agreed.distinct,
                first_divergence=agreed.first_divergence,
                tokens=max(len(answer) for answer in answers),
            )
        )
    return Determinism(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures=figures(prompts),
        seed=settings.seed,
        prompts=prompts,
    )


def figures(prompts: list[PromptAgreement]) -> dict[str, Figure]:
    """Return the share of answers that agree with their prompt's commonest, and of prompts whose answers all agree."""
    return {
        "identical": share_figure(sum(prompt.agreeing for prompt in prompts), sum(prompt.runs for prompt in prompts)),
        "tarr": share_figure(sum(prompt.agreeing == prompt.runs for prompt in prompts), len(prompts)),
    }


def token_ids(control: Control, model: str, prompt: str, settings: DeterminismConfig) -> list[int]:
    """Return the answer's token ids; MeasureError when the server does not give them."""
    payload = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "seed": settings.seed,
        "repetition_penalty": 1.0,
        "max_tokens": settings.max_tokens,
        "return_token_ids": True,
    }
    completion = control.chat(payload, settings.timeout_s)
    ids = completion.choices[0].token_ids if completion.choices else None
    if not ids:
        raise MeasureError("the server returns no token ids", "vLLM 0.10.2 and newer do")
    return ids
