"""Ray: an existing cluster, or our own on this machine."""

import io
import logging
import os
import signal
import socket
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import MachineError, first_line

ASK_S = 5.0
NICENESS = "RAY_worker_niceness"  # Ray's own spelling
QUIET = {"log_to_driver": False, "logging_level": logging.CRITICAL}


def join_cluster(address: str | None, setting: str, install: str, **resources: Any) -> Any:
    """Join the cluster at `address`, or start our own with these resources; return the ray module.

    MachineError names the `setting` that the address came from, or says how to `install` Ray.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MachineError("Ray is not installed", install) from error
    try:
        if address is None:
            # Ray raises the niceness of its workers, which servers would inherit.
            os.environ[NICENESS] = str(os.getpriority(os.PRIO_PROCESS, 0))
            ray.init(address="local", include_dashboard=False, **resources, **QUIET)
        else:
            answering(address, setting)
            ray.init(address=address, **QUIET)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray of our own"
        hint = "run it on a node of that cluster, with the same Python and Ray" if address else "see /tmp/ray/session_latest/logs"
        raise MachineError(f"cannot use {where}: {first_line(error)}", hint) from error
    # Ray installs a handler of its own for SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return ray


def answering(address: str, setting: str) -> None:
    """Raise MachineError unless something listens at the address of a cluster's head."""
    hint = "start one with `.venv/bin/ray start --head --port=6379`, or name the head as host:port"
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise MachineError(f"{setting} {address}: expected host:port of the cluster's head, or auto", hint)
    try:
        socket.create_connection((host.strip("[]"), int(port)), ASK_S).close()
    except (OSError, OverflowError) as error:
        raise MachineError(f"{setting} {address}: no Ray cluster answers there ({first_line(error)})", hint) from error


def pack(root: Path, names: Iterable[str]) -> bytes:
    """Return these files of the project as an archive, for nodes that do not see its folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", dereference=True) as archive:
        for name in names:
            archive.add(root / name, name, filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return buffer.getvalue()
