"""A user-level systemd unit that keeps the server running. Pure: settings in, text out."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.schema import ServeConfig

MARGIN_S = 15  # for the pipeline itself
UNIT_FILE = """\
# ./inv systemd-unit > ~/.config/systemd/user/vllm-poc.service
# systemctl --user daemon-reload && systemctl --user enable --now vllm-poc
[Unit]
Description=vLLM server of {root}
StartLimitIntervalSec=0

[Service]
Type=exec
WorkingDirectory={root}
ExecStart={command}
# The watch restarts a server that crashes, and gives up (exit code 2) on one that a restart does not help.
Restart=on-failure
RestartSec=60
RestartPreventExitStatus=2
# SIGTERM goes to the watch, which stops the server; what is left of both is killed.
KillMode=mixed
TimeoutStopSec={stop_s:.0f}
SuccessExitStatus=130

[Install]
WantedBy=default.target
"""


def unit(root: Path, arguments: Sequence[str], settings: ServeConfig) -> str:
    """Return the unit of the project at `root`; `arguments` are those of `serve --watch`."""
    command = " ".join(quote(word) for word in [str(root / "inv"), "serve", "--watch", *arguments])
    stop_s = settings.drain_timeout_s + settings.stop_timeout_s + MARGIN_S
    return UNIT_FILE.format(root=escape_percent(str(root)), command=command, stop_s=stop_s)


def escape_percent(text: str) -> str:
    """Return `text` with each % escaped, which begins a specifier in systemd."""
    return text.replace("%", "%%")


def quote(word: str) -> str:
    """Return `word` as one argument of a command line in a unit."""
    text = escape_percent(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"' if text != word or not word or set(word) & set(" \t'\"{};") else word
