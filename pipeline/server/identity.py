"""Prove that what answers is the vLLM that we started."""

import psutil

from pipeline.client.control import Control
from pipeline.message import _
from pipeline.server import ports, state
from pipeline.server.state import Launch
from pipeline.vllm.command import runs_vllm, served_folder
from pipeline.vllm.identity import Proof, serves


def prove(launch: Launch, control: Control, version: str) -> list[Proof]:
    """Return the proofs that our own process serves this model with this vLLM; raises MeasureError when it is silent."""
    return [
        owns_port(launch),
        runs_python(launch),
        *serves(launch.model, served_folder(launch.command), launch.settings.max_model_len, version, control),
    ]


def owns_port(launch: Launch) -> Proof:
    """Return the proof that the listening socket belongs to the session that we started."""
    pid = ports.owner(launch.host, launch.port)
    ours = {process.pid for process in state.members(launch)}
    return Proof(claim=_("our child listens on the port"), holds=pid in ours, seen=f"pid {pid}" if pid else "owner not visible")


def runs_python(launch: Launch) -> Proof:
    """Return the proof that the process runs the launch's interpreter on vLLM's command or module."""
    claim = _("it runs the Python of the environment on record")
    try:
        words = psutil.Process(launch.pid).cmdline()
    except psutil.Error as error:
        return Proof(claim=claim, holds=False, seen=str(error))
    holds = words[:1] == launch.command[:1] and runs_vllm(words)
    return Proof(claim=claim, holds=holds, seen=" ".join(words[1:3]))
