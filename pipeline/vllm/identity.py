"""Proofs that an endpoint is vLLM and serves the expected model."""

import re
from pathlib import Path

from pipeline.client.control import Control, ModelCard
from pipeline.message import Sentence, _
from pipeline.values import Frozen
from pipeline.vllm.metrics import GENERATED_TOKENS


class Proof(Frozen):
    """One check of identity: its claim, whether it holds, and what was observed.

    `fix` is there where nothing speaks against the claim and what would prove it is missing: what to change for that.
    """

    claim: Sentence
    holds: bool
    seen: Sentence
    fix: Sentence = ""


def serves(model: str, folder: Path, max_model_len: int, version: str, control: Control) -> list[Proof]:
    """Return the proofs that an endpoint serves this model with this vLLM; MeasureError when it does not answer."""
    seen_version = control.version()
    cards = control.models()
    card = next((card for card in cards if card.id == model), None)
    matches = card is not None and card.root == str(folder) and card.max_model_len == max_model_len and card.owned_by == "vllm"
    observation = describe_card(card) if card else f"models {[c.id for c in cards]}"
    return [
        Proof(claim=_("/version is the installed one"), holds=seen_version == version, seen=seen_version),
        Proof(claim=_("/v1/models names the model, its folder and length"), holds=matches, seen=observation),
        counts_tokens(model, control),
    ]


def shows_vllm(model: ModelCard, version: str, control: Control) -> list[Proof]:
    """Return the proofs that an attached endpoint, whose process is out of reach, is vLLM; MeasureError when it does not answer."""
    vllm = model.owned_by == "vllm" and model.max_model_len is not None
    return [
        Proof(claim=_("/version answers as vLLM does"), holds=bool(re.match(r"\d+\.\d+", version)), seen=version),
        Proof(claim=_("/v1/models is vLLM's"), holds=vllm, seen=describe_card(model)),
        counts_tokens(model.id, control, alone=False),
    ]


def describe_card(card: ModelCard) -> str:
    """Return a description of the model card."""
    return _("{name}, {n} tokens, by {owner}", name=card.id, n=f"{card.max_model_len}", owner=f"{card.owned_by}")


def counts_tokens(model: str, control: Control, alone: bool = True) -> Proof:
    """Return the proof that the engine's token counter rises by the tokens that a completion reports.

    It may rise by more where we are not `alone` on the server.
    """
    claim = _("its metrics count the tokens of a completion")
    before = control.metrics().get(GENERATED_TOKENS)
    completion_tokens = control.greet(model).usage.completion_tokens
    after = control.metrics().get(GENERATED_TOKENS)
    if before is None or after is None:
        fix = _("Start the server without {flag}, so that it counts its tokens", flag="--disable-log-stats")
        return Proof(claim=claim, holds=False, seen=_("{name} is not there", name=GENERATED_TOKENS), fix=fix)
    counter_rise = after - before
    observation = _("{n} counted, {needed} said", n=round(counter_rise), needed=completion_tokens)
    return Proof(claim=claim, holds=counter_rise == completion_tokens or (counter_rise > completion_tokens and not alone), seen=observation)


def is_real(proofs: list[Proof]) -> bool:
    """Tell whether every proof holds."""
    return bool(proofs) and all(proof.holds for proof in proofs)
