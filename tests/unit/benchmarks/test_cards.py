"""Shapes of published models for random weights, and the rows of gpu.auto that benchmarks.cards serves with them."""

import json
from pathlib import Path

import pytest

from benchmarks import cards, shape
from benchmarks.cards import CARDS, Row, cells, settings, verdict
from pipeline.commands.session import Session, options
from pipeline.config.layers import load_layers
from pipeline.model.published import CONFIGS, published_shape
from pipeline.model.shape import read_shape
from pipeline.model.weights import estimated_bytes
from pipeline.planning import profile_for
from pipeline.vllm.demand import demand

ROOT = Path(__file__).resolve().parents[3]
AUTO = load_layers(ROOT / "config.yaml", {}).config(None).gpu
KNOWN = [repo for repo in CONFIGS if repo.partition("/")[0] in shape.FAMILIES]
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a stand-in for the embedded model's tokenizer."""
    source = tmp_path / shape.SOURCE
    source.mkdir()
    tokenizer = {"model": {"vocab": {"a": 0, "b": 5}}, "added_tokens": [{"id": 1}, {"id": 2}]}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (source / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("repo", KNOWN)
def test_a_shape_is_the_published_one_with_a_token_for_every_number(models: Path, repo: str) -> None:
    folder = shape.make(repo, models)
    assert read_shape(folder) == published_shape(repo)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert {*vocabulary.values(), 1, 2} == set(range(config["vocab_size"]))
    assert (folder / "tokenizer_config.json").is_file()
    assert config.get("quantization_config", AWQ) == AWQ or "GPTQ" in repo


def test_the_profile_with_random_weights_finds_its_folder() -> None:
    path = load_layers(ROOT / "config.yaml", {}).config("qwen2.5-3b-shape").model.path
    assert ROOT / str(path) == shape.folder_of("Qwen/Qwen2.5-3B-Instruct", ROOT / "models")


def test_an_unknown_shape_is_told() -> None:
    with pytest.raises(SystemExit, match=r"no shape of somebody/else is known; known: Qwen/Qwen2.5-1.5B-Instruct, "):
        shape.main(["somebody/else"])


def test_the_cards_are_those_of_the_rows() -> None:
    assert list(CARDS) == [choice.profile for choice in AUTO.auto]
    assert [profile_for(AUTO, total_mib) for total_mib in CARDS.values()] == list(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_a_row_has_the_budget_of_its_card_on_a_larger_one(name: str) -> None:
    layers = load_layers(ROOT / "config.yaml", {})
    repo, share, sets = settings(Session(ROOT, options(), silent=True), name, 81559.0)
    there = load_layers(ROOT / "config.yaml", {}, sets).config(name).serve
    found = published_shape(repo)
    assert found is not None
    size = estimated_bytes(found)
    small = demand(layers.config(name).serve, found, size, "a test", CARDS[name]).at(layers.config(name).serve.gpu_memory_utilization)
    large = demand(there, found, size, "a test", 81559.0).at(share)
    assert large.peak_mib == pytest.approx(small.peak_mib, abs=1)
    assert large.kv_cache_mib == pytest.approx(small.kv_cache_mib, abs=1)


def row(**found: object) -> Row:
    repo, share, _ = settings(Session(ROOT, options(), silent=True), "gpu-8gb", 81559.0)
    serve = load_layers(ROOT / "config.yaml", {}).config("gpu-8gb").serve
    known = published_shape(repo)
    assert known is not None
    made = demand(serve, known, estimated_bytes(known), "a test", 8188).at(serve.gpu_memory_utilization)
    came = {"kv_cache_mib": made.kv_cache_mib, "peak_mib": made.peak_mib, "requests": 48, **found}
    return Row.model_validate(
        {"profile": "gpu-8gb", "repository": repo, "card_mib": 8188, "utilization": share, "plan": made, **came, "verdict": ""}
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({}, "within"),
        ({"kv_cache_mib": 3939.0}, "within"),
        ({"kv_cache_mib": 3941.0}, "NOT within: KV cache came +701 MiB (±700)"),
        ({"kv_cache_mib": 100.0, "peak_mib": 7300.0}, "NOT within: KV cache came -3140 MiB (±700), peak came +199 MiB (±150)"),
        ({"peak_mib": None}, "NOT within: peak not measured"),
        ({"failed": 3}, "failed: 3 of 48 requests"),
        ({"requests": 0}, "failed: 0 of 0 requests"),
        ({"plan": None}, "failed: nothing was planned"),
    ],
)
def test_a_row_is_within_the_plans_error_or_not(found: dict[str, object], says: str) -> None:
    assert verdict(row(**found)) == says


def test_a_row_shows_plan_against_measurement() -> None:
    shown = cells(row(weights_mib=2944.1, peak_mib=7000.0, ready_s=31.25))
    assert shown[:4] == ("gpu-8gb", "Qwen2.5-1.5B-Instruct", "6550", "2944 / 2944 (+0.0 %)")
    assert (shown[6], shown[7]) == ("7101 / 7000 (+1.4 %)", "31.2")


def test_one_rows_trouble_is_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")

    def broken(root: Path, name: str, total_mib: float) -> Row:
        if name == "gpu-8gb":
            raise OSError("no space left")
        return row().model_copy(update={"profile": name, "verdict": "within"})

    monkeypatch.setattr(cards, "total_of_this_gpu", lambda _root: 81559.0)
    monkeypatch.setattr(cards, "measured", broken)
    said: list[str] = []
    rows = cards.run(tmp_path, ["gpu-8gb", "gpu-12gb"], tmp_path / "rows.json", said.append)
    assert [one.verdict for one in rows] == ["failed: OSError: no space left", "within"]
    assert [one["profile"] for one in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))] == ["gpu-8gb", "gpu-12gb"]
    assert said[0] == "[1/2] gpu-8gb: a card of 8188 MiB on a GPU of 81559"
