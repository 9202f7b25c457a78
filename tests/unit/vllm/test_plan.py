"""The memory plan: weights and KV cache from the model, the rest estimated, when it cannot fit, and what would."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from examples.keep import examples
from pipeline.config.gates import PLAN
from pipeline.config.layers import load_layers
from pipeline.config.schema import AutoProfile, ServeConfig
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.units import MIB
from pipeline.model.layers import AttentionLayers, StateLayers
from pipeline.model.published import CONFIGS, NON_COMMERCIAL, QWEN_3B, published_shape
from pipeline.model.shape import Shape, read_shape
from pipeline.model.weights import estimated_bytes
from pipeline.planning import profile_for
from pipeline.vllm.cache import request_bytes
from pipeline.vllm.demand import demand, unplanned
from pipeline.vllm.fit import fit_of, hopeless, pairs
from pipeline.vllm.plan import (
    ERROR_MIB,
    LAPTOP_MIB,
    PEAK_ERROR_MIB,
    SHORTEST_CONTEXT,
    WORKSPACE_MIB,
    Demand,
    Plan,
    captured_sizes,
    plan_error_figure,
)

ROOT = Path(__file__).resolve().parents[3]


def shape(tmp_path: Path, config: dict[str, object]) -> Shape:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_shape(tmp_path)


def planned(tmp_path: Path, total_mib: float, utilization: float | None, max_num_seqs: int = 16) -> Plan:
    found = shape(tmp_path, QWEN_3B)
    return plain_demand(found, estimated_bytes(found), total_mib, max_num_seqs).at(utilization)


def plain_demand(found: Shape, weights_bytes: int, total_mib: float, max_num_seqs: int) -> Demand:
    """Return the demand of that model with the context of the profiles."""
    sizes = {"weights_bytes": weights_bytes, "total_mib": total_mib, "max_model_len": 4096, "max_num_seqs": max_num_seqs}
    return Demand.model_validate({"shape": found, "weights_from": "a test", **sizes})


def test_the_guides_model_does_not_fit_its_card_and_fits_a_large_one(tmp_path: Path) -> None:
    small, large = planned(tmp_path, 6141, 0.92), planned(tmp_path, 24576, 0.9)
    assert (small.fits, small.cannot_fit) == (False, True)
    assert (large.fits, large.cannot_fit) == (True, False)


def test_a_spread_model_has_its_share_on_each_device(tmp_path: Path) -> None:
    found = shape(tmp_path, QWEN_3B)

    def asked(**settings: int) -> Demand:
        return demand(ServeConfig.model_validate(settings), found, 6000 * MIB, "a test", 6141)

    alone, tensor, pipeline = asked(), asked(tensor_parallel_size=2), asked(pipeline_parallel_size=3)
    replicas = asked(data_parallel_size=2)
    assert [each.weights_bytes // MIB for each in (alone, tensor, pipeline, replicas)] == [6000, 3000, 2000, 6000]
    per_token = [each.at(None).kv_bytes_per_token for each in (alone, tensor, pipeline, replicas)]
    assert per_token == [per_token[0], per_token[0] // 2, per_token[0] // 3, per_token[0]]
    assert asked(tensor_parallel_size=16).shape.attention[0].heads == 1, "a KV head that cannot be split is copied"
    assert tensor.at(None).activations_mib < alone.at(None).activations_mib


def test_the_parts_make_up_the_budget(tmp_path: Path) -> None:
    made = planned(tmp_path, 24576, 0.5)
    parts = made.weights_mib + made.activations_mib + WORKSPACE_MIB + made.kv_cache_mib
    assert parts == pytest.approx(made.budget_mib, abs=0.5)
    assert made.budget_mib == pytest.approx(12288, abs=1)
    assert made.kv_tokens == pytest.approx(made.kv_cache_mib * MIB / made.kv_bytes_per_token, abs=2)


def test_context_and_graphs_come_on_top_of_the_budget(tmp_path: Path) -> None:
    made = planned(tmp_path, 24576, 0.5)
    assert made.peak_mib == pytest.approx(made.budget_mib + 500 + 7 * 7.2, abs=0.1)


def test_more_sequences_leave_less_cache_and_need_more_graphs(tmp_path: Path) -> None:
    many, few = planned(tmp_path, 24576, 0.5, 256), planned(tmp_path, 24576, 0.5, 16)
    assert many.kv_tokens < few.kv_tokens
    assert many.peak_mib > few.peak_mib


@pytest.mark.parametrize(("max_num_seqs", "sizes"), [(1, 2), (2, 3), (4, 4), (8, 5), (256, 51), (1000, 51)])
def test_captured_sizes_are_vllms(max_num_seqs: int, sizes: int) -> None:
    assert captured_sizes(max_num_seqs) == sizes


# Weights: VLLM.md's table of published checkpoints, in MiB.
SIX_GB_PROFILES = {
    "rtx4050-6gb": (QWEN_3B, 1.9 * 1024),
    "qwen2.5-1.5b": (
        {**QWEN_3B, "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12},
        2.88 * 1024,
    ),
}
SHIPPED = load_layers(ROOT / "config.yaml", {})


@pytest.mark.parametrize("profile", SIX_GB_PROFILES)
def test_profiles_for_six_gigabytes_fit_and_meet_the_guides_target(tmp_path: Path, profile: str) -> None:
    config, weights_mib = SIX_GB_PROFILES[profile]
    settings = SHIPPED.config(profile)
    serve = settings.serve
    asked = Demand(
        shape=shape(tmp_path, config),
        weights_bytes=int(weights_mib * MIB),
        weights_from="published",
        total_mib=6141,
        max_model_len=serve.max_model_len,
        max_num_seqs=serve.max_num_seqs,
        max_num_batched_tokens=serve.max_num_batched_tokens,
    )
    made = asked.at(serve.gpu_memory_utilization)
    assert made.fits
    assert settings.gates.root["vram_usage"].target == 4768
    assert made.meets(4768)


# Real cards of each row's class, by what nvidia-smi shows: RTX 4050 Laptop; RTX 4060, 2080 Ti; RTX A2000 with ECC, RTX 3060;
# T4, RTX 4080; A10 and L4, RTX 3090, A100 of 40 GB; A40 and L40S, RTX A6000; A100, H100.
CARDS = {
    "rtx4050-6gb": (6141.0,),
    "gpu-8gb": (8188.0, 11264.0),
    "gpu-12gb": (11514.0, 12282.0),
    "gpu-16gb": (15360.0, 16376.0),
    "gpu-24gb": (23028.0, 24564.0, 40960.0),
    "gpu-48gb": (46068.0, 49140.0),
    "gpu-80gb": (81559.0, 81920.0),
}
AUTO = SHIPPED.config(None).gpu.auto
DISPLAY_MIB = 400.0  # that a desktop may take of a small card


def test_auto_takes_only_profiles_that_are_checked_here() -> None:
    assert [choice.profile for choice in AUTO] == list(CARDS)


@pytest.mark.parametrize(("profile", "total_mib"), [(name, total) for name, totals in CARDS.items() for total in totals])
def test_a_card_takes_its_row_and_fits_with_room_for_a_display(profile: str, total_mib: float) -> None:
    assert profile_for(SHIPPED.config(None).gpu, total_mib) == profile
    config = SHIPPED.config(profile)
    repo = config.model.repo
    assert repo is not None
    made = of(repo, config.serve, total_mib).at(config.serve.gpu_memory_utilization)
    assert made.spare_mib > made.error_mib, "one request of full length, even where the plan is wrong by its error"
    assert made.peak_mib + PEAK_ERROR_MIB + DISPLAY_MIB < total_mib
    target = config.gates.root["vram_usage"].target
    assert target == PLAN or made.meets(float(target))


@pytest.mark.parametrize("choice", AUTO, ids=lambda choice: choice.profile)
def test_the_smallest_card_of_a_row_fits_too(choice: AutoProfile) -> None:
    config = SHIPPED.config(choice.profile)
    made = of(str(config.model.repo), config.serve, choice.min_total_mib).at(config.serve.gpu_memory_utilization)
    assert made.fits
    assert made.peak_mib + PEAK_ERROR_MIB < choice.min_total_mib


def test_a_model_that_is_not_for_business_is_taken_unasked_by_the_smallest_row_alone() -> None:
    repos = {name: SHIPPED.config(name).model.repo for name in SHIPPED.profiles}
    assert [choice.profile for choice in AUTO if repos[choice.profile] in NON_COMMERCIAL] == ["rtx4050-6gb"]
    assert [choice.profile for choice in AUTO if choice.non_commercial] == ["rtx4050-6gb"]
    smaller = [SHIPPED.config(name).serve.smaller_profile for name in SHIPPED.profiles]
    assert [name for name in smaller if name is not None and repos[name] in NON_COMMERCIAL] == []


def test_the_comment_in_the_configuration_shows_the_table() -> None:
    rows = re.findall(
        r"^  #  +\d+ GB  (\S+) +(\S+) +(none|4 bit).*?  +(\d+) +(\d+)", (ROOT / "config.yaml").read_text(encoding="utf-8"), re.M
    )
    shown = []
    for choice in AUTO:
        config = SHIPPED.config(choice.profile)
        repo = str(config.model.repo)
        bits = "4 bit" if "quantization_config" in CONFIGS[repo] else "none"
        shown.append((choice.profile, repo, bits, str(config.serve.max_model_len), str(config.serve.max_num_seqs)))
    assert rows == shown


# The judgement: shapes and flags as they come.

ATTENTION = st.builds(
    AttentionLayers,
    kind=st.just("full"),
    count=st.integers(1, 40),
    heads=st.integers(1, 16),
    values=st.sampled_from([128, 256, 576]),
)
WINDOWS = st.builds(
    AttentionLayers,
    kind=st.sampled_from(["window", "chunk"]),
    count=st.integers(1, 40),
    heads=st.integers(1, 16),
    values=st.sampled_from([128, 256]),
    limit=st.sampled_from([128, 4096]),
)
STATES = st.builds(
    StateLayers,
    count=st.integers(1, 40),
    convolution=st.integers(1, 100_000),
    groups=st.integers(0, 8),
    group_values=st.integers(0, 1000),
    recurrence=st.integers(0, 2_000_000),
    dtype=st.sampled_from(["auto", "float32"]),
)
LAYERS = st.one_of(st.tuples(ATTENTION), st.tuples(WINDOWS), st.tuples(ATTENTION, WINDOWS))
SHAPES = st.builds(
    Shape,
    layers=st.integers(1, 40),
    hidden=st.sampled_from([576, 2048, 5120]),
    heads=st.just(16),
    vocabulary=st.sampled_from([49152, 151936]),
    tied=st.booleans(),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    context=st.sampled_from([None, 8192, 131072]),
    dense=st.sampled_from([1536, 11008]),
    attention=LAYERS,
    states=st.one_of(st.none(), STATES),
)
DEMANDS = st.builds(
    Demand,
    shape=SHAPES,
    weights_bytes=st.integers(100 * MIB, 20_000 * MIB),
    weights_from=st.just("a test"),
    total_mib=st.sampled_from([4096.0, LAPTOP_MIB, 24564.0, 81559.0]),
    max_model_len=st.sampled_from([1024, 4096, 32768]),
    max_num_seqs=st.sampled_from([1, 16, 256]),
    max_num_batched_tokens=st.sampled_from([None, 512]),
    captured=st.sampled_from([None, 0, 5]),
    kv_dtype_bytes=st.sampled_from([1, 2, 4]),
)
TARGETS = st.sampled_from([None, 2000.0, 4768.0, 20_000.0])


@given(DEMANDS)
def test_a_larger_share_never_leaves_less_cache(asked: Demand) -> None:
    for (_, less), (_, more) in pairwise(asked.steps()):
        assert less.kv_cache_mib <= more.kv_cache_mib
        assert less.kv_tokens <= more.kv_tokens
        assert less.peak_mib < more.peak_mib


@given(DEMANDS)
def test_what_fits_has_room_and_what_cannot_does_not_fit(asked: Demand) -> None:
    for _, made in asked.steps():
        assert not made.fits or made.kv_cache_mib > 0
        assert not (made.fits and made.cannot_fit)


@given(DEMANDS, TARGETS)
def test_the_advised_share_meets_the_target_and_the_next_step_does_not(asked: Demand, target: float | None) -> None:
    judged = fit_of(asked, asked.total_mib, target)
    assume(judged.verdict == "fits" and judged.advised is not None)
    assert judged.advised is not None

    def good(share: float) -> bool:
        made = asked.at(share)
        return made.peak_mib <= asked.total_mib and (target is None or made.peak_mib + PEAK_ERROR_MIB < target)

    assert good(judged.advised)
    assert not good(round(judged.advised + 0.01, 2))
    assert judged.plan == asked.at(judged.advised)


@given(DEMANDS, TARGETS)
def test_the_verdict_agrees_with_the_shares_and_contexts(asked: Demand, target: float | None) -> None:
    judged = fit_of(asked, asked.total_mib, target)
    between = judged.least is not None and judged.most is not None and judged.least <= judged.most
    assert between == (judged.verdict in ("fits", "fits, over the target"))
    if judged.least is not None:
        assert asked.at(judged.least).fits
        assert judged.least == 0.01 or not asked.at(round(judged.least - 0.01, 2)).fits
    if judged.verdict == "fits only below context":
        assert SHORTEST_CONTEXT <= judged.alone < asked.max_model_len
    if judged.verdict == "does not fit":
        assert judged.advised is None
        assert not judged.plan.fits
    assert judged.each <= judged.alone


@given(DEMANDS, TARGETS)
def test_each_pair_is_held_at_full_length_all_at_once(asked: Demand, target: float | None) -> None:
    for sequences, length, share in pairs(asked, asked.total_mib, target):
        made = asked.model_copy(update={"max_num_seqs": sequences}).at(share)
        assert sequences * request_bytes(asked.shape, length, asked.allocation) <= made.kv_cache_mib * MIB
        assert made.peak_mib <= asked.total_mib


@given(DEMANDS, st.integers(1, 100))
def test_only_what_cannot_start_is_refused_and_what_is_said_to_fit_does(asked: Demand, step: int) -> None:
    refused = hopeless(asked, step / 100)
    assert (refused is not None) == asked.at(step / 100).cannot_fit
    if refused is None:
        return
    why, fitting = refused
    judged = fit_of(asked, asked.total_mib, None)
    assert "\n" not in why + fitting
    assert f"for one request of {asked.max_model_len} tokens" in why
    assert ("serve.gpu_memory_utilization from" in fitting) == (judged.verdict == "fits")
    assert ("serve.max_model_len up to" in fitting) == (judged.verdict == "fits only below context")
    assert ("take a smaller model" in fitting) == (judged.verdict == "does not fit")


def of(repo: str, settings: ServeConfig, total_mib: float = LAPTOP_MIB) -> Demand:
    found = published_shape(repo)
    assert found is not None
    return demand(settings, found, estimated_bytes(found, settings.dtype), "published", total_mib)


@pytest.mark.parametrize(
    ("repo", "verdict"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "fits (by less than the estimate’s error)"),
        ("Qwen/Qwen2.5-3B-Instruct", "does not fit: takes 6978 MiB at least"),
        ("Qwen/Qwen2.5-3B-Instruct-AWQ", "fits"),
        ("Qwen/Qwen2.5-7B-Instruct", "does not fit: takes 15815 MiB at least"),
        ("meta-llama/Llama-3.2-3B-Instruct", "does not fit: takes 7504 MiB at least"),
    ],
)
def test_the_guides_models_on_the_guides_card(repo: str, verdict: str) -> None:
    assert fit_of(of(repo, ServeConfig()), LAPTOP_MIB, 4768).words == verdict


def test_what_others_hold_of_the_device_is_not_planned_with() -> None:
    asked = of("Qwen/Qwen2.5-3B-Instruct-AWQ", ServeConfig())
    free, shared = fit_of(asked, LAPTOP_MIB, None), fit_of(asked, LAPTOP_MIB - 1000, None)
    assert (free.most, shared.most) == (0.91, 0.74)


def test_a_target_that_cannot_be_met_is_told_and_so_is_a_context_that_is_too_long() -> None:
    asked = of("Qwen/Qwen2.5-3B-Instruct", ServeConfig(), 24564)
    assert fit_of(asked, 24564, 4768).words == "fits, over the target: takes 6979 MiB at least"
    long = of("Qwen/Qwen2.5-1.5B-Instruct", ServeConfig(max_model_len=131072))
    assert fit_of(long, LAPTOP_MIB, None).words == "fits only below context 32768"


# Flags.


def test_flags_that_change_the_cache_and_the_graphs_are_counted() -> None:
    plain = of("Qwen/Qwen2.5-1.5B-Instruct", ServeConfig())
    packed = of("Qwen/Qwen2.5-1.5B-Instruct", ServeConfig(extra_args=("--kv-cache-dtype", "fp8")))
    assert plain.at(0.66).kv_bytes_per_token == 2 * packed.at(0.66).kv_bytes_per_token
    few = of("Qwen/Qwen2.5-1.5B-Instruct", ServeConfig(extra_args=('--compilation-config={"cudagraph_capture_sizes":[1,2]}',)))
    assert (plain.at(0.66).graphs_mib, few.at(0.66).graphs_mib) == (50.4, 14.4)
    assert of("Qwen/Qwen2.5-1.5B-Instruct", ServeConfig(enforce_eager=True)).at(0.66).graphs_mib == 0
    wide = of("Qwen/Qwen2.5-1.5B-Instruct", ServeConfig(dtype="float32"))
    assert wide.at(0.66).weights_mib == pytest.approx(2 * plain.at(0.66).weights_mib, abs=0.2)
    assert wide.at(0.66).kv_bytes_per_token == 2 * plain.at(0.66).kv_bytes_per_token


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), None),
        (("--compilation-config={}", "--seed=1"), None),
        (("--kv-cache-dtype=fp8_e4m3",), None),
        (("--kv_cache_dtype", "nvfp4"), "--kv-cache-dtype nvfp4"),
        (("--tensor-parallel-size", "2"), "--tensor-parallel-size"),
        (("-tp", "2"), "-tp"),
        (("--cpu_offload_gb=4",), "--cpu-offload-gb"),
    ],
)
def test_flags_that_are_not_planned_are_named(words: tuple[str, ...], named: str | None) -> None:
    assert unplanned(ServeConfig(extra_args=words)) == named


# Plan against measured.

# Of one H100 (81559 MiB) with vLLM 0.24, max_num_seqs 256 and vLLM's own sizes of graphs: weights as planned, share of the
# memory; KV cache by the log and peak, all in MiB. The third run was with VLLM_BATCH_INVARIANT=1, the last with random weights.
VLLM_0_24 = [
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 256.6, 0.055, 3840.0, 5432.0),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 256.6, 0.042, 2785.3, 4410.0),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 256.6, 0.042, 2867.2, 4290.0),
    ("Qwen/Qwen2.5-3B-Instruct", 5885.5, 0.5, 33341.4, 41508.0),
]


@pytest.mark.parametrize(("repo", "weights_mib", "share", "kv_cache_mib", "peak_mib"), VLLM_0_24)
def test_the_error_bands_held_with_vllm_0_24(repo: str, weights_mib: float, share: float, kv_cache_mib: float, peak_mib: float) -> None:
    found = published_shape(repo)
    assert found is not None
    made = plain_demand(found, int(weights_mib * MIB), 81559, 256).at(share)
    assert abs(made.kv_cache_mib - kv_cache_mib) < ERROR_MIB / 2
    assert abs(made.peak_mib - peak_mib) < PEAK_ERROR_MIB


@pytest.mark.parametrize("example", examples(), ids=lambda path: path.name)
def test_the_error_bands_hold_for_every_example(example: Path) -> None:
    records = (example / "artifacts" / name for name in ("serve.json", "measure-vram.json"))
    served, measured = (json.loads(record.read_text(encoding="utf-8")) for record in records)
    settings, then = ServeConfig.model_validate(served["because"]["serve"]), served["data"]["plan"]
    found = published_shape(f"HuggingFaceTB/{served['data']['model']}")
    assert found is not None
    made = demand(settings, found, int(then["weights_mib"] * MIB), "headers", then["total_mib"]).at(settings.gpu_memory_utilization)
    assert abs(made.kv_cache_mib - measured["data"]["breakdown"]["kv_cache_mib"]) < ERROR_MIB
    assert abs(made.peak_mib - measured["data"]["figures"]["vram_peak_mib"]["value"]) < PEAK_ERROR_MIB


def test_the_plans_error_is_a_figure() -> None:
    made = of("Qwen/Qwen2.5-3B-Instruct-AWQ", ServeConfig()).at(0.65)
    high = plan_error_figure(made, Figure(value=made.peak_mib / 1.1, unit="MiB", n=7))
    assert (high.unit, high.n) == ("%", 1)
    assert high.value == pytest.approx(10)
    low = plan_error_figure(made, Figure(value=made.peak_mib / 0.9, unit="MiB", n=7))
    assert low.value == pytest.approx(-10)


def test_a_plan_or_a_peak_that_is_not_known_leaves_no_error() -> None:
    made = of("Qwen/Qwen2.5-3B-Instruct-AWQ", ServeConfig()).at(0.65)
    assert plan_error_figure(None, Figure(value=1, unit="MiB", n=1)).reason.startswith("nothing was planned")
    unknown = plan_error_figure(made, not_measured("MiB", "the GPU was lost"))
    assert (unknown.value, unknown.reason) == (None, "the GPU was lost")
    assert plan_error_figure(made, Figure(value=0, unit="MiB", n=1)).reason == "the measured peak is 0"
