"""Proofs that the server that answers is the vLLM that we started."""

import psutil

from pipeline.client.control import Control
from pipeline.message import _
from pipeline.server import ports, state
from pipeline.server.state import Launch
from pipeline.vllm.command import runs_vllm, served_folder
from pipeline.vllm.identity import Proof, serves


def prove(launch: Launch, control: Control, version: str) -> list[Proof]:
    """Return the proofs that our own process serves this model with this vLLM; MeasureError when it does not answer."""
    return [
        owns_port(launch),
        runs_python(launch),
        *serves(launch.model, served_folder(launch.command), launch.settings.max_model_len, version, control),
    ]


def owns_port(launch: Launch) -> Proof:
    """Return the proof that the listening socket belongs to the session that we started."""
    pid = ports.owner(launch.host, launch.port)
    own_pids = {process.pid for process in state.members(launch)}
    return Proof(claim=_("our child listens on the port"), holds=pid in own_pids, seen=f"pid {pid}" if pid else "owner not visible")


def runs_python(launch: Launch) -> Proof:
    """Return the proof that the process runs vLLM's command or module with the launch's interpreter."""
    claim = _("it runs the Python of the environment on record")
    try:
        command = psutil.Process(launch.pid).cmdline()
    except psutil.Error as error:
        return Proof(claim=claim, holds=False, seen=str(error))
    holds = command[:1] == launch.command[:1] and runs_vllm(command)
    return Proof(claim=claim, holds=holds, seen=" ".join(command[1:3]))
