"""When a crashed server is started again, and the unit that has it kept running."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import ServeConfig, WatchConfig
from pipeline.server.restarts import pause_s, recent
from pipeline.server.unit import unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_pause_doubles_up_to_a_minute() -> None:
    assert [pause_s(crashes) for crashes in (1, 2, 3, 6, 7, 8, 1000)] == [1, 2, 4, 32, 60, 60, 60]


@given(st.integers(1, 10_000))
def test_the_pause_never_shrinks(crashes: int) -> None:
    assert 1 <= pause_s(crashes) <= pause_s(crashes + 1) <= 60


def test_a_crash_counts_within_the_window() -> None:
    settings = WatchConfig(window_s=600)
    assert recent(NOW - timedelta(seconds=600), NOW, settings)
    assert not recent(NOW - timedelta(seconds=601), NOW, settings)


def test_the_unit_waits_as_long_as_a_stop_may_take() -> None:
    text = unit(Path("/srv/poc"), ["--profile", "cpu"], ServeConfig(drain_timeout_s=30, stop_timeout_s=20))
    assert "ExecStart=/srv/poc/inv serve --watch --profile cpu\n" in text
    assert "WorkingDirectory=/srv/poc\n" in text
    assert "TimeoutStopSec=65\n" in text


def test_the_unit_quotes_what_systemd_would_take_apart() -> None:
    text = unit(Path("/srv/my 100% poc"), ["--set", 'serve.env={A: "$B"}', ""], ServeConfig())
    assert 'ExecStart="/srv/my 100%% poc/inv" serve --watch --set "serve.env={A: \\"$$B\\"}" ""\n' in text
    assert "WorkingDirectory=/srv/my 100%% poc\n" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    root = tmp_path / "my 100% poc"
    root.mkdir()
    (root / "inv").write_text("#!/bin/sh\n", encoding="utf-8")
    (root / "inv").chmod(0o755)
    file = tmp_path / "vllm-poc.service"
    file.write_text(unit(root, ["--set", 'serve.env={A: "$B"}'], ServeConfig()), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True)
    assert "vllm-poc" not in done.stderr + done.stdout, done.stderr
