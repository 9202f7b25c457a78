"""A start that lacks memory is tried again with less, and every step is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.report import run_all
from pipeline.commands.session import Options, Session
from pipeline.config.schema import ServeConfig
from pipeline.contexts import Invocation
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Failure, Store, now
from pipeline.errors import OutOfMemoryError, ServerError
from pipeline.vllm.ladder import falls_back
from tests.fakes.environment import FakeProject, code_of
from tests.fakes.script import Script

NAMED = "ValueError: To serve at least one request with the model's max seq len (4096), the estimated maximum model length is 2050."


@pytest.fixture
def project(tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path)
    yield made
    made.close()


def settings(project: FakeProject, on_oom: str = "fallback") -> ServeConfig:
    return project.settings().model_copy(update={"on_oom": on_oom})


def test_a_context_that_does_not_fit_is_shortened_and_told(project: FakeProject) -> None:
    project.play(Script(fails_above={"--max-model-len": 2048}, lack=NAMED))
    server = project.serve(settings(project))
    assert server.real
    assert server.max_model_len == 2048
    assert server.command[server.command.index("--max-model-len") + 1] == "2048"
    (attempt,) = server.attempts
    assert attempt.changed == "max_model_len 4096 → 2048"
    assert "the KV cache is too small" in attempt.cause
    assert NAMED in (project.root / attempt.log).read_text(encoding="utf-8")
    assert project.launch().settings.max_model_len == 2048


def test_steps_follow_until_it_fits(project: FakeProject) -> None:
    project.play(Script(fails_above={"--max-num-seqs": 8}))
    server = project.serve(settings(project))
    assert [attempt.changed.split()[0] for attempt in server.attempts] == ["max_model_len", "max_model_len", "max_num_seqs"]
    assert (server.max_model_len, project.launch().settings.max_num_seqs) == (1024, 8)


def test_what_never_fits_names_what_was_tried(project: FakeProject) -> None:
    project.play(Script(fails_above={"--max-num-seqs": 1}))
    with pytest.raises(OutOfMemoryError, match=r"the GPU ran out of memory \(tried in vain: max_model_len 4096 → .*max_num_seqs 8 → 4"):
        project.serve(settings(project))
    assert project.processes() == []


def test_another_trouble_ends_the_ladder(project: FakeProject) -> None:
    project.play(Script(exit_code=1, log=("ValueError: something else",)))
    with pytest.raises(ServerError, match="something else"):
        project.serve(settings(project))
    assert len(list(project.workspace.launches.iterdir())) == 1


@pytest.mark.parametrize(("on_oom", "ci"), [("fail", ""), ("auto", "true")])
def test_who_wants_no_fallback_gets_none(project: FakeProject, monkeypatch: pytest.MonkeyPatch, on_oom: str, ci: str) -> None:
    monkeypatch.setenv("CI", ci)
    project.play(Script(fails_above={"--max-model-len": 2048}, lack=NAMED))
    with pytest.raises(OutOfMemoryError, match=r"the KV cache is too small for serve\.max_model_len$"):
        project.serve(settings(project, on_oom))
    assert len(list(project.workspace.launches.iterdir())) == 1


def test_auto_falls_back_outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert falls_back(ServeConfig())


# The smaller profile.

CONFIG = """
profile: big
profiles:
  cpu: {}
  big: {model: {name: Big-3B}, serve: {on_oom: fallback, smaller_profile: small}}
  small: {model: {name: Small-1B}, serve: {on_oom: fallback, smaller_profile: big}}
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "pipeline").symlink_to(Path(__file__).resolve().parents[3] / "pipeline")
    return tmp_path


def lacking(kind: str = OutOfMemoryError.kind) -> Failure:
    return Failure(kind=kind, message="the server did not start: the GPU ran out of memory")


def test_the_next_smaller_profile_takes_over_once(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, tuple[str, ...]]] = []

    def ensure(self: Pipeline, names: list[str], **_: Any) -> list[Any]:
        invocation = self._contexts(Invocation)
        assert isinstance(invocation, Invocation)
        asked.append((names[-1], invocation.fallbacks))
        Store(house / "artifacts").write("serve", {}, now(), 1.0, lacking())
        return []

    monkeypatch.setattr(Pipeline, "ensure", ensure)
    assert code_of(run_all(house, Options())) == 2
    reason = "Asked for profile big (Big-3B), took profile small: the server did not start: the GPU ran out of memory."
    assert [fallbacks for _, fallbacks in asked] == [(), (reason,), (reason,)], "big, small, and its report"


@pytest.mark.parametrize("kind", ["server", "install"])
def test_other_failures_keep_the_profile(house: Path, kind: str) -> None:
    session = Session(house, Options())
    Store(house / "artifacts").write("serve", {}, now(), 1.0, lacking(kind))
    assert session.with_smaller_profile() is None
