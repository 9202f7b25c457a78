"""`determinism-remedy` with the fake in vLLM's place: both sides measured, the user's own server and records as before."""

import dataclasses
import io
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.commands.experiments import determinism_remedy
from pipeline.commands.session import Options, locked
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Store, now
from pipeline.errors import ConfigError, MeaninglessError, PipelineError, ServerError
from pipeline.experiments import remedy
from pipeline.load.calibration import Calibration
from pipeline.server import state
from pipeline.server.start import relaunch
from pipeline.server.state import Launch
from pipeline.server.stop import Closing, stop_server
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import REMEDY_NOTE, Remedied
from tests.builders.stages import forgive_the_machine
from tests.fakes.environment import FakeProject, code_of, machine, until
from tests.fakes.fake_vllm import SCRIPT_VARIABLE
from tests.fakes.script import VERSION, Script

VARIABLE = "VLLM_CPU_ATTN_SPLIT_KV"
SAME, OTHER = "aaaabbbbccccdddd", "aaaabbbbcXccdddd"
# Under load another answer, unless the remedy is in the server's environment.
SHAKY = Script(
    texts=(SAME,),
    loaded_texts=(OTHER,),
    by_environment={f"{VARIABLE}=0": {"loaded_texts": None}},
    first_token_s=0.1,
    inter_token_s=0.02,
    cached_tokens=None,
)
NO_START: dict[str, Any] = {"exit_code": 1, "log": ["ValueError: its disk broke"]}
SETTINGS = {
    "determinism": {
        "prompts": "prompts.txt",
        "count": 2,
        "runs": 2,
        "constrained": 0,
        "cache_runs": 1,
        "load": [2],
        "load_runs": 1,
        "max_tokens": 8,
    },
    "bench": {"decode_requests": 2, "output_tokens": 4, "concurrency": [1, 2], "requests_per_level": 2},
}


class Project(FakeProject):
    """A project whose earlier stages have made their records, and whose configuration is in its file."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.store = Store(self.workspace.artifacts)
        self.own = self.settings()
        (root / "prompts.txt").write_text("one\ntwo\n", encoding="utf-8")
        for name, made in (("check-gpu", self.machine), ("install", self.installation), ("download-model", self.model)):
            self.store.write(name, {}, now(), 1.0, made)
        self.configure()

    def configure(self, **sections: dict[str, Any]) -> None:
        serving = self.own.model_dump(mode="json")
        values = {"profile": "cpu", "profiles": {"cpu": {}}, **SETTINGS, "serve": serving, **sections}
        (self.root / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def left_running(self) -> Launch:
        """Leave a server running, as `./inv serve` does."""
        server = self.serve(self.own)
        self.store.write("serve", {"model": "its reason"}, now(), 1.0, server)
        state.write(self.workspace, self.launch().model_copy(update={"stays": True}))
        return self.launch()

    def server(self) -> Server:
        made = self.store.outcome("serve", Server).data
        assert made is not None
        return made

    def proof(self) -> Remedied:
        made = self.store.outcome(REMEDY_NOTE, Remedied).data
        assert made is not None
        return made


def prepare(root: Path, patch: pytest.MonkeyPatch) -> Project:
    """Return a project whose client needs no calibration, and whose earlier stages need not run."""
    made = Project(root)
    made.play(SHAKY)
    ceiling = 1e9
    own = [Calibration(concurrency=each, chunks=1, delay_ms_p50=0, delay_ms_p95=0, cpu_us_per_chunk=0) for each in (1, 2)]
    patch.setattr(remedy, "calibrate", lambda *_: (own, ceiling))
    patch.setattr(Pipeline, "ensure", lambda *_, **__: [])
    patch.delenv(VARIABLE, raising=False)
    forgive_the_machine(patch)
    return made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    made = prepare(tmp_path, monkeypatch)
    yield made
    made.close()


@dataclass(frozen=True)
class Whole:
    """One run with all its arms, in a project where a server had been up: its exit code, what it said, and the records around it."""

    project: Project
    code: int
    said: str
    before: dict[Path, bytes]
    after: dict[Path, bytes]
    launches: set[str]


def launches_of(project: Project) -> set[str]:
    return {path.name for path in project.workspace.launches.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    def records() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in made.workspace.artifacts.glob("*.json")}

    with pytest.MonkeyPatch.context() as patch:
        made = prepare(tmp_path_factory.mktemp("whole"), patch)
        try:
            stop_server(made.left_running(), made.workspace)
            earlier, before, output = launches_of(made), records(), io.StringIO()
            with redirect_stdout(output):
                code = code_of(determinism_remedy(made.root, Options()))
            yield Whole(made, code, output.getvalue(), before, records(), launches_of(made) - earlier)
        finally:
            made.close()


def arms(side: Any) -> dict[str, tuple[int, int]]:
    return {arm.arm: (arm.agreeing, arm.runs) for arm in side.arms if arm.arm != "D5"}


def test_without_it_answers_part_under_load_and_with_it_they_agree(whole: Whole) -> None:
    assert whole.code == 0
    proof = whole.project.proof()
    others = {"D1": (4, 4), "D2": (4, 4), "D4": (2, 2)}
    assert arms(proof.remedied) == {**others, "D3": (2, 2)}
    assert arms(proof.without) == {**others, "D3": (0, 2)}
    assert [side.system_tok_s.n for side in (proof.without, proof.remedied)] == [2, 2]
    assert (proof.model, proof.vllm, proof.in_settings, proof.concurrency) == ("fake-model", VERSION, False, 2)
    assert f"remedy {VARIABLE}=0" in whole.said
    assert "0 of 2, first difference at token 2" in whole.said


def test_each_side_names_its_environment_and_its_launches(whole: Whole) -> None:
    proof = whole.project.proof()
    assert VARIABLE not in proof.without.environment
    assert proof.remedied.environment == {**proof.without.environment, VARIABLE: "0"}
    assert proof.without.environment[SCRIPT_VARIABLE] == str(whole.project.script_file)
    assert {*proof.without.launch_ids, *proof.remedied.launch_ids} == whole.launches
    assert len(whole.launches) == 4, "each side began once, and once more for D4"


def test_nothing_is_left_running_and_the_other_records_stay(whole: Whole) -> None:
    assert whole.project.processes() == []
    assert state.read(whole.project.workspace) is None
    assert {path.stem for path in whole.before} >= {"serve", "stop", "check-gpu"}
    assert {path: whole.after[path] for path in whole.before} == whole.before
    assert {path.stem for path in set(whole.after) - set(whole.before)} == {REMEDY_NOTE}


def test_without_the_restart_arm_each_side_starts_once(project: Project) -> None:
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 0
    proof = project.proof()
    assert [len(side.launch_ids) for side in (proof.without, proof.remedied)] == [1, 1]
    assert {arm.reason for side in (proof.without, proof.remedied) for arm in side.arms if arm.arm == "D4"} == {
        "determinism.restart is false"
    }


def test_settings_that_have_it_already_are_measured_without_it_too(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    given = f'serve.env={{{VARIABLE}: "0", {SCRIPT_VARIABLE}: {project.script_file}}}'
    assert code_of(determinism_remedy(project.root, Options(sets=(given, "determinism.restart=false")))) == 0
    proof = project.proof()
    assert proof.in_settings
    assert VARIABLE not in proof.without.environment
    assert arms(proof.without)["D3"] == (0, 2)
    assert "serve.env has it already; both sides were measured all the same" in capsys.readouterr().out


def test_requests_for_speed_that_fail_are_kept(project: Project) -> None:
    # Town 0 is the warm-up's, 1 and 2 are for decode throughput.
    project.play(dataclasses.replace(SHAKY, by_prompt={"town number 2,": {"cut_after": 1}}))
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 0
    side = project.proof().remedied
    assert (side.decode_tok_s.n, side.system_tok_s.n, len(side.errors)) == (1, 2, 1)


def test_a_remedy_that_does_not_help_is_exit_code_1(project: Project) -> None:
    project.play(Script(texts=(SAME,), loaded_texts=(OTHER,), first_token_s=0.1, cached_tokens=None))
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 1


def test_a_side_that_does_not_start_is_told_and_the_other_is_measured(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.play(Script(texts=(SAME,), first_token_s=0.1, cached_tokens=None, by_environment={f"{VARIABLE}=0": NO_START}))
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 2
    proof = project.proof()
    assert proof.without.failure is None
    assert arms(proof.without)["D1"] == (4, 4)
    assert (proof.remedied.arms, proof.remedied.launch_ids, proof.remedied.decode_tok_s.value) == ([], [], None)
    assert proof.remedied.failure is not None
    assert "its disk broke" in proof.remedied.failure.message
    assert proof.remedied.environment[VARIABLE] == "0"
    said = capsys.readouterr().out
    assert f"not measured with {VARIABLE}=0: the server did not start" in said
    assert "  → " in said
    assert project.processes() == []


def test_a_server_that_does_not_come_back_for_d4_is_no_result(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        project.play(Script(**NO_START))
        try:
            return relaunch(*arguments)
        finally:
            project.play(SHAKY)

    monkeypatch.setattr(remedy, "relaunch", broken)
    assert code_of(determinism_remedy(project.root, Options())) == 2
    side = project.proof().remedied
    assert side.failure is not None
    assert "its disk broke" in side.failure.message
    assert "the server did not come back" in next(arm.reason for arm in side.arms if arm.arm == "D4")
    assert arms(side)["D3"] == (2, 2), "what was measured before stands"


def test_a_server_that_dies_while_it_is_measured_is_no_result(project: Project) -> None:
    project.play(Script(texts=(SAME,), cached_tokens=None, by_environment={f"{VARIABLE}=0": {"die_at_request": 12}}, first_token_s=0.1))
    assert code_of(determinism_remedy(project.root, Options())) == 2
    failure = project.proof().remedied.failure
    assert failure is not None
    assert "died while it was measured" in failure.message
    assert project.processes() == []


# The server that was up before.


def test_a_server_that_serve_left_comes_back_as_it_was(project: Project) -> None:
    before = project.left_running()
    first = project.server()
    assert code_of(determinism_remedy(project.root, Options(sets=("serve.max_num_seqs=4", "determinism.restart=false")))) == 0
    after = project.launch()
    assert state.is_running(after)
    assert after.id not in (before.id, *project.proof().without.launch_ids, *project.proof().remedied.launch_ids)
    assert (after.stays, after.command, after.settings) == (True, before.command, before.settings)
    assert VARIABLE not in psutil.Process(after.pid).environ()
    again = project.server()
    assert again.identity() == first.identity()
    assert (again.handle.launch_id, again.handle.pid) == (after.id, after.pid)
    envelope = project.store.read("serve")
    assert envelope is not None
    assert envelope.because == {"model": "its reason"}
    closing = project.store.outcome("stop", Closing).data
    assert closing is not None
    assert closing.launch_id == before.id, "how the server ended that the records are of"


def test_a_record_of_another_server_is_not_changed_by_the_one_that_comes_back(project: Project) -> None:
    project.left_running()
    project.store.write("serve", {}, now(), 1.0, project.server().model_copy(update={"attached": "http://elsewhere:8000"}))
    elsewhere = project.server()
    handle = elsewhere.handle.model_copy(update={"launch_id": "http://elsewhere:8000"})
    project.store.write("serve", {}, now(), 1.0, elsewhere.model_copy(update={"handle": handle}))
    kept = project.store.path("serve").read_bytes()
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 0
    assert project.store.path("serve").read_bytes() == kept
    assert state.is_running(project.launch())


def test_what_a_killed_command_left_is_stopped_and_does_not_come_back(project: Project) -> None:
    project.serve(project.own)
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 0
    assert project.processes() == []


def test_a_server_that_does_not_come_back_is_told_after_the_result_is_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.left_running()
    proving = remedy.prove

    def and_break(*arguments: Any) -> Remedied:
        proof = proving(*arguments)
        project.play(Script(**NO_START))
        return proof

    monkeypatch.setattr(remedy, "prove", and_break)
    with pytest.raises(ServerError, match=r"^the server that was up before did not come back: .*its disk broke") as caught:
        determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))
    assert caught.value.hint == "start it with `./inv serve`"
    assert arms(project.proof().remedied)["D3"] == (2, 2)
    assert project.processes() == []


# Ctrl-C.


def interrupted(project: Project, when: Callable[[], object]) -> None:
    """Press Ctrl-C once `when` holds."""

    def press() -> None:
        until(when, "the moment")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            determinism_remedy(project.root, Options())
    finally:
        signal.signal(signal.SIGINT, handler)


def test_ctrl_c_leaves_nothing_running_and_the_last_proof_in_place(project: Project) -> None:
    assert code_of(determinism_remedy(project.root, Options(sets=("determinism.restart=false",)))) == 0
    kept = project.store.path(REMEDY_NOTE).read_bytes()
    interrupted(project, lambda: state.read(project.workspace) is not None)
    assert project.processes() == []
    assert state.read(project.workspace) is None
    assert project.store.path(REMEDY_NOTE).read_bytes() == kept
    assert not project.store.path("stop").exists(), "nothing but our own servers was stopped"
    with locked(project.workspace):
        pass


def test_ctrl_c_brings_the_server_back_that_was_up_before(project: Project) -> None:
    before = project.left_running()
    interrupted(project, lambda: (launch := state.read(project.workspace)) is not None and launch.id != before.id)
    after = project.launch()
    assert state.is_running(after)
    assert (after.stays, after.settings) == (True, before.settings)
    assert project.server().handle.launch_id == after.id
    assert not project.store.path(REMEDY_NOTE).exists()


# Refused.


def test_a_server_of_somebody_else_is_refused(project: Project) -> None:
    url = "http://elsewhere:8000"
    with pytest.raises(ServerError, match=f"^the server at {url} is not ours to start with another environment$") as caught:
        determinism_remedy(project.root, Options(sets=(f"attach.url={url}",)))
    assert caught.value.hint


def test_a_device_without_a_remedy_is_refused_before_anything_is_stopped(project: Project) -> None:
    old = machine(gpu=True)
    gpus = [gpu.model_copy(update={"compute_capability": "7.5"}) for gpu in old.gpus]
    project.store.write("check-gpu", {}, now(), 1.0, old.model_copy(update={"gpus": gpus}))
    project.store.write("install", {}, now(), 1.0, project.installation.model_copy(update={"distribution": "vllm"}))
    before = project.left_running()
    with pytest.raises(PipelineError, match=r"no remedy is known for this device: .* needs compute capability 8\.0, and Fake RTX has 7\.5"):
        determinism_remedy(project.root, Options())
    assert project.launch() == before
    assert state.is_running(before)


def test_a_shell_that_has_the_variable_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with pytest.raises(PipelineError, match="is set in the shell, so no server would be without it") as caught:
        determinism_remedy(project.root, Options())
    assert caught.value.hint == f"unset {VARIABLE}"


def test_prompts_that_are_not_there_are_told_before_anything_is_stopped(project: Project) -> None:
    before = project.left_running()
    with pytest.raises(ConfigError, match="No such file"):
        determinism_remedy(project.root, Options(sets=("determinism.prompts=nowhere.txt",)))
    assert project.launch() == before


def test_noise_is_not_compared(project: Project) -> None:
    with pytest.raises(MeaninglessError, match="weights are random"):
        determinism_remedy(project.root, Options(sets=("serve.load_format=dummy",)))


def test_without_an_environment_or_a_model_nothing_is_measured(project: Project) -> None:
    project.store.remove("install")
    assert code_of(determinism_remedy(project.root, Options())) == 2
    assert not project.workspace.launches.exists()
