"""Settings: who wins, and where a wrong one stands."""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest

from pipeline.config.gates import PLAN, PLANNED_METRIC, Gate, Gates
from pipeline.config.layers import Layers, load_layers
from pipeline.config.schema import Config, ServeConfig
from pipeline.contexts import ActiveWaivers, RequestLimits, active_waivers, request_limits
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = load_layers(ROOT / "config.yaml", {})


def layers(folder: Path, text: str, environment: Mapping[str, str] | None = None, sets: tuple[str, ...] = ()) -> Layers:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_layers(path, environment or {}, sets)


def trouble(
    folder: Path, text: str, environment: Mapping[str, str] | None = None, sets: tuple[str, ...] = (), profile: str | None = None
) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        layers(folder, text, environment, sets).config(profile)
    return caught.value


BASE = "serve:\n  port: 1\nprofiles:\n  small:\n    serve:\n      port: 2\n"


def test_value_of_the_file_beats_the_default(tmp_path: Path) -> None:
    assert ServeConfig().port == 8000
    assert layers(tmp_path, BASE).config(None).serve.port == 1


def test_profile_beats_the_file(tmp_path: Path) -> None:
    assert layers(tmp_path, BASE).config("small").serve.port == 2


def test_environment_beats_the_profile(tmp_path: Path) -> None:
    assert layers(tmp_path, BASE, {"VLLM_POC__SERVE__PORT": "3"}).config("small").serve.port == 3


def test_set_beats_the_environment(tmp_path: Path) -> None:
    made = layers(tmp_path, BASE, {"VLLM_POC__SERVE__PORT": "3"}, ("serve.port=4",))
    assert made.config("small").serve.port == 4


def test_last_set_of_a_key_wins(tmp_path: Path) -> None:
    assert layers(tmp_path, BASE, sets=("serve.port=4", "serve.port=5")).config(None).serve.port == 5


def test_weaker_values_that_nobody_overrides_stay(tmp_path: Path) -> None:
    made = layers(tmp_path, "serve: {port: 1, seed: 7}\nprofiles: {small: {serve: {port: 2}}}\n").config("small")
    assert (made.serve.port, made.serve.seed) == (2, 7)


def test_lists_are_replaced_not_joined(tmp_path: Path) -> None:
    text = "bench: {concurrency: [1, 2, 3]}\nprofiles: {small: {bench: {concurrency: [9]}}}\n"
    assert layers(tmp_path, text).config("small").bench.concurrency == (9,)


def test_variables_without_the_prefix_do_not_count(tmp_path: Path) -> None:
    assert layers(tmp_path, BASE, {"SERVE__PORT": "3", "VLLM_PORT": "3"}).config(None).serve.port == 1


def test_profile_in_force_is_in_the_settings(tmp_path: Path) -> None:
    assert layers(tmp_path, BASE).config("small").profile.root == "small"


def test_asked_profile_and_its_origin_from_the_file(tmp_path: Path) -> None:
    assert layers(tmp_path, "gpu: {}\nprofile: small\n").profile == ("small", "config.yaml:2")


def test_asked_profile_from_the_command_line_beats_environment_and_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("profile: a\n", encoding="utf-8")
    environment = {"VLLM_POC__PROFILE": "b"}
    assert load_layers(path, environment).profile == ("b", "environment VLLM_POC__PROFILE")
    assert load_layers(path, environment, (), "c").profile == ("c", "--profile")


def test_profile_is_auto_when_nobody_asks(tmp_path: Path) -> None:
    assert layers(tmp_path, "").profile == ("auto", "default")


GATE = "gates:\n  a:\n    label: x\n    metric: a.b\n    comparator: '<'\n"


@pytest.mark.parametrize(
    ("text", "where", "near"),
    [
        ("gpu: {}\nserv:\n  port: 1\n", "config.yaml:2: serv:", "'serve'"),
        ("serve:\n  host: x\n  prt: 1\n", "config.yaml:3: serve.prt:", "'port'"),
        ("gpu:\n  auto:\n    - {min_total_mib: 1, profile: x,\n       profil: x}\n", "config.yaml:4: gpu.auto.0.profil:", "'profile'"),
        (f"{GATE}    target: 1\n    jugde_by: point\n", "config.yaml:7: gates.a.jugde_by:", "'judge_by'"),
        (
            "alternatives:\n  - {model: a, size: b, vram: c, use_case: d,\n     profil: e}\n",
            "config.yaml:3: alternatives.0.profil:",
            "'profile'",
        ),
    ],
)
def test_unknown_key_is_told_with_line_and_nearest_name(tmp_path: Path, text: str, where: str, near: str) -> None:
    assert trouble(tmp_path, text).message == f"{where} unknown setting; did you mean {near}?"


def test_misspelt_required_key_is_told_as_unknown_not_as_missing(tmp_path: Path) -> None:
    error = trouble(tmp_path, f"{GATE}    targt: 1\n")
    assert error.message.startswith("config.yaml:6: gates.a.targt: unknown setting; did you mean 'target'?")


def test_unknown_key_of_a_profile_is_told_with_its_line(tmp_path: Path) -> None:
    error = trouble(tmp_path, "profiles:\n  small:\n    serve:\n      sed: 2\n", profile="small")
    assert error.message.startswith("config.yaml:4: serve.sed: unknown setting; did you mean 'seed'?")


def test_unknown_key_of_a_set_names_the_set(tmp_path: Path) -> None:
    assert trouble(tmp_path, "", sets=("serve.prt=1",)).message.startswith("--set serve.prt: serve.prt: unknown setting")


def test_unknown_key_of_the_environment_names_the_variable(tmp_path: Path) -> None:
    error = trouble(tmp_path, "", {"VLLM_POC__SERVE__PRT": "1"})
    assert error.message.startswith("environment VLLM_POC__SERVE__PRT: serve.prt: unknown setting")


def test_unknown_key_far_from_every_name_lists_the_known_ones(tmp_path: Path) -> None:
    error = trouble(tmp_path, "vram: {zzzzzz: 1}\n")
    assert "did you mean" not in error.message
    assert error.hint == "known here: load_s, concurrency, horizon_h, drift_budget_mib, fill_s"


def test_wrong_value_of_the_file_has_its_line(tmp_path: Path) -> None:
    error = trouble(tmp_path, "serve:\n  host: h\n  port: abc\n")
    assert error.message.startswith("config.yaml:3: serve.port: ")
    assert error.message.endswith("got 'abc'")


def test_wrong_value_of_a_profile_has_its_line_there(tmp_path: Path) -> None:
    error = trouble(tmp_path, "serve:\n  port: 1\nprofiles:\n  small:\n    serve:\n      port: 0\n", profile="small")
    assert error.message.startswith("config.yaml:6: serve.port: ")


def test_wrong_value_of_the_environment_names_the_variable(tmp_path: Path) -> None:
    error = trouble(tmp_path, BASE, {"VLLM_POC__SERVE__PORT": "70000"})
    assert error.message.startswith("environment VLLM_POC__SERVE__PORT: serve.port: ")


def test_wrong_value_of_a_set_names_the_set(tmp_path: Path) -> None:
    error = trouble(tmp_path, BASE, sets=("serve.port=-1",))
    assert error.message.startswith("--set serve.port: serve.port: ")
    assert "got -1" in error.message


def test_missing_key_is_told_at_the_nearest_line(tmp_path: Path) -> None:
    assert trouble(tmp_path, "gpu:\n  auto:\n    - {min_total_mib: 4}\n").message.startswith("config.yaml:3: gpu.auto.0.profile: ")


def test_target_that_is_no_number_is_refused(tmp_path: Path) -> None:
    assert trouble(tmp_path, f"{GATE}    target: .inf\n").message == "config.yaml:6: gates.a.target: expected a number, got inf"


@pytest.mark.parametrize(
    ("metric", "comparator", "target", "says"),
    [
        ("bench.ttft_ms_p95", "<", "plan", "`plan` is a target only for measure-vram.vram_peak_mib with < or <=; expected a number"),
        (PLANNED_METRIC, ">", "plan", "`plan` is a target only for measure-vram.vram_peak_mib with < or <=; expected a number"),
        (PLANNED_METRIC, "<", "plans", "expected a number or `plan`, got 'plans'"),
        (PLANNED_METRIC, "<", "true", "expected a number or `plan`, got True"),
        ("bench.ttft_ms_p95", "<", "[4768]", "expected a number, got [4768]"),
    ],
)
def test_a_target_is_a_number_or_what_the_plan_can_tell(tmp_path: Path, metric: str, comparator: str, target: str, says: str) -> None:
    gate = f"gates:\n  a:\n    label: x\n    metric: {metric}\n    comparator: '{comparator}'\n    target: {target}\n"
    assert trouble(tmp_path, gate).message == f"config.yaml:6: gates.a.target: {says}"


def test_the_laptops_profiles_have_the_guides_target_and_the_others_the_plans() -> None:
    targets = {name: SHIPPED.config(name).gates.root["vram_usage"].target for name in SHIPPED.profiles}
    assert {name for name, target in targets.items() if target == 4768} == {"rtx4050-6gb", "qwen2.5-1.5b"}
    assert set(targets.values()) == {4768, PLAN}


@pytest.mark.parametrize(
    ("waiver", "says"),
    [
        ("a: {reason: x}", "config.yaml:8: waivers.a.expires: field required"),
        ("a: {expires: 2027-01-31}", "config.yaml:8: waivers.a.reason: field required"),
        ("a: {reason: ' ', expires: 2027-01-31}", "config.yaml:8: waivers.a.reason: expected the reason why the gate may miss its target"),
        ("a: {reason: x, expires: 20270131}", "config.yaml:8: waivers.a.expires: expected a date as in 2027-01-31, got 20270131"),
        ("a: {reason: x, expires: soon}", "config.yaml:8: waivers.a.expires: expected a date as in 2027-01-31, got 'soon'"),
        ("a: {reason: x, expire: 2027-01-31}", "config.yaml:8: waivers.a.expire: unknown setting; did you mean 'expires'? (and 1 more)"),
        ("aa: {reason: x, expires: 2027-01-31}", "config.yaml:8: waivers.aa: unknown gate; did you mean 'a'?"),
    ],
)
def test_wrong_waiver_is_told_with_its_line(tmp_path: Path, waiver: str, says: str) -> None:
    assert trouble(tmp_path, f"{GATE}    target: 1\nwaivers:\n  {waiver}\n").message == says


def test_waiver_of_an_unknown_gate_lists_the_gates(tmp_path: Path) -> None:
    waiver = "waivers: {zzz: {reason: x, expires: 2027-01-31}}\n"
    error = trouble(tmp_path, f"{GATE}    target: 1\n{waiver}")
    assert (error.message, error.hint) == ("config.yaml:7: waivers.zzz: unknown gate", "gates: a")


def test_waiver_counts_up_to_its_last_day(tmp_path: Path) -> None:
    text = f"{GATE}    target: 1\nwaivers: {{a: {{reason: 'no\n    card', expires: 2027-01-31}}}}\n"
    waivers = layers(tmp_path, text).config(None).waivers
    assert waivers.root["a"].reason == "no card"
    assert active_waivers(waivers, date(2027, 1, 31)) == ActiveWaivers(in_force=waivers.root)
    assert active_waivers(waivers, date(2027, 2, 1)) == ActiveWaivers(expired=waivers.root)


def test_no_waiver_is_shipped_and_the_example_is_one() -> None:
    assert SHIPPED.config(None).waivers.root == {}
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    example = re.search(r"^#   waivers:\n#     (.*)\n", text, re.MULTILINE)
    assert example is not None
    shown = f"waivers={{{example[1]}}}"
    assert list(load_layers(ROOT / "config.yaml", {}, (shown,)).config(None).waivers.root) == ["throughput"]


def test_places_name_the_gate_and_what_stronger_layers_changed(tmp_path: Path) -> None:
    text = f"{GATE}    target: 1\nprofiles:\n  small:\n    gates:\n      a: {{required: false, target: 2}}\n"
    path = ("gates", "a")
    assert layers(tmp_path, text).places(path, None) == {"": "config.yaml:2"}
    assert layers(tmp_path, text).places(path, "small") == {
        "": "config.yaml:2",
        "required": "config.yaml:10 (profile small)",
        "target": "config.yaml:10 (profile small)",
    }
    changed = layers(tmp_path, text, {"VLLM_POC__GATES__A__MIN_N": "3"}, ("gates.a={target: 4}",)).places(path, "small")
    assert changed == {
        "": "config.yaml:2",
        "required": "config.yaml:10 (profile small)",
        "target": "--set gates.a",
        "min_n": "environment VLLM_POC__GATES__A__MIN_N",
    }
    assert layers(tmp_path, text).places(("gates", "b"), "small") == {}


def limits(*gates: tuple[str, str, float]) -> RequestLimits:
    """Return the limits that these (metric, comparator, target) imply."""
    made = {
        str(number): Gate.model_validate({"label": "x", "metric": metric, "comparator": comparator, "target": target})
        for number, (metric, comparator, target) in enumerate(gates)
    }
    return request_limits(Gates(made))


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([], RequestLimits()),
        ([("bench.ttft_ms_p95", "<", 500)], RequestLimits(ttft_ms=500)),
        ([("bench.ttft_ms_p95", "<=", 500), ("bench.ttft_ms_p50", "<", 300)], RequestLimits(ttft_ms=300)),
        ([("bench.ttft_ms_p50", "<", 300), ("bench.ttft_ms_p95", "<=", 500)], RequestLimits(ttft_ms=300)),
        ([("bench.decode_tok_s_p50", ">", 50)], RequestLimits(tpot_ms=20)),
        ([("bench.decode_tok_s_p50", ">=", 50), ("bench.tpot_ms_p50", "<", 25)], RequestLimits(tpot_ms=20)),
        ([("bench.decode_tok_s_p50", ">", 50), ("bench.tpot_ms_p50", "<=", 15)], RequestLimits(tpot_ms=15)),
        ([("bench.e2e_ms_p95", "<", 2000)], RequestLimits(e2e_ms=2000)),
        ([("bench.ttft_ms_p95", ">", 500), ("bench.decode_tok_s_p50", "<", 50), ("bench.e2e_ms_p50", "==", 1)], RequestLimits()),
        ([("bench.decode_tok_s_p50", ">", 0), ("bench.answered", "==", 100), ("test-router.ttft_ms_p50", "<", 1)], RequestLimits()),
    ],
)
def test_limits_are_the_strictest_that_the_gates_imply(gates: list[tuple[str, str, float]], expected: RequestLimits) -> None:
    assert limits(*gates) == expected


def test_limits_of_the_shipped_gates_are_a_section() -> None:
    assert request_limits(SHIPPED.config("cpu").gates) == RequestLimits(ttft_ms=500, tpot_ms=20)


def test_further_complaints_are_counted(tmp_path: Path) -> None:
    assert trouble(tmp_path, "serve: {port: 0, seed: x, max_num_seqs: 0}\n").message.endswith("(and 2 more)")


def test_source_hub_without_repo_says_what_to_write(tmp_path: Path) -> None:
    error = trouble(tmp_path, "gpu: {}\nmodel: {source: hub}\n")
    assert error.message.startswith("config.yaml:2: model: source hub needs model.repo")


def test_source_path_without_path_is_refused(tmp_path: Path) -> None:
    assert "source path needs model.path" in trouble(tmp_path, "model: {source: path}\n").message


def test_duplicate_key_names_both_lines(tmp_path: Path) -> None:
    error = trouble(tmp_path, "serve:\n  port: 1\n  seed: 2\n  port: 3\n")
    assert error.message == "config.yaml:4: serve.port: given twice (first at config.yaml:2)"


def test_duplicate_section_is_refused(tmp_path: Path) -> None:
    assert trouble(tmp_path, "gpu: {}\nserve: {}\ngpu: {}\n").message.startswith("config.yaml:3: gpu: given twice")


def test_bad_yaml_has_its_line(tmp_path: Path) -> None:
    assert trouble(tmp_path, "serve:\n  port: [1, 2\ngpu: {}\n").message.startswith("config.yaml:3: ")


def test_bad_tag_is_told_not_raised(tmp_path: Path) -> None:
    assert trouble(tmp_path, "serve: !!python/object:os.system {}\n").message.startswith("config.yaml")


def test_impossible_date_is_told_not_raised(tmp_path: Path) -> None:
    assert trouble(tmp_path, "report:\n  title: 2026-13-45\n").message.startswith("config.yaml")


def test_impossible_date_in_a_set_is_told_not_raised(tmp_path: Path) -> None:
    assert trouble(tmp_path, "", sets=("report.title=2026-13-45",)).message.startswith("--set report.title: ")


def test_alias_inside_itself_is_told_not_raised(tmp_path: Path) -> None:
    assert trouble(tmp_path, "serve: &s\n  env: *s\n").message.startswith("config.yaml")


def test_control_character_is_told_not_raised(tmp_path: Path) -> None:
    assert trouble(tmp_path, "serve: \x00\n").message.startswith("config.yaml: ")


@pytest.mark.parametrize("text", ["- a\n", "just words\n", "5\n"])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert trouble(tmp_path, text).message == "config.yaml:1: expected settings as `key: value`"


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert layers(tmp_path, "# nothing\n").config(None) == Config()


def test_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^config\.yaml: No such file"):
        load_layers(tmp_path / "config.yaml", {})


def test_file_that_is_not_utf8_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"gpu: {}\n# \xff\n")
    with pytest.raises(ConfigError, match=r"^config\.yaml: not UTF-8 text \(byte 10\)"):
        load_layers(tmp_path / "config.yaml", {})


def test_set_without_equals_is_refused(tmp_path: Path) -> None:
    assert trouble(tmp_path, "", sets=("serve.port",)).message == "--set serve.port: expected key=value"


def test_set_with_bad_yaml_is_refused(tmp_path: Path) -> None:
    assert trouble(tmp_path, "", sets=("serve.extra_args=[",)).message.startswith("--set serve.extra_args: '[' is not a YAML value")


def test_value_of_a_set_may_hold_equals_signs(tmp_path: Path) -> None:
    assert layers(tmp_path, "", sets=("report.title=a=b",)).config(None).report.title == "a=b"


def test_unknown_profile_names_origin_nearest_and_all(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(BASE, encoding="utf-8")
    made = load_layers(tmp_path / "config.yaml", {}, (), "smal")
    with pytest.raises(ConfigError) as caught:
        made.config("smal")
    assert caught.value.message == "--profile: no profile 'smal'; did you mean 'small'?"
    assert caught.value.hint == "profiles: small, auto"


def test_profile_that_is_no_mapping_has_its_line(tmp_path: Path) -> None:
    assert trouble(tmp_path, "profiles:\n  small: 5\n").message.startswith("config.yaml:2: profiles.small: expected a mapping")


def test_a_profile_whose_name_is_no_text_to_yaml_is_refused(tmp_path: Path) -> None:
    refusal = trouble(tmp_path, "profiles:\n  on: 5\n")
    assert (refusal.message, refusal.hint) == ("config.yaml:1: profiles: YAML reads a name as True", "put it in quotes")


def test_profile_named_by_a_number_is_told_not_raised(tmp_path: Path) -> None:
    assert trouble(tmp_path, "profiles:\n  7: 5\n").message.startswith("config.yaml:2: profiles.7: ")


def test_profiles_that_are_no_mapping_have_their_line(tmp_path: Path) -> None:
    assert trouble(tmp_path, "gpu: {}\nprofiles: [a]\n").message.startswith("config.yaml:2: profiles: expected a mapping")


def test_section_finds_by_type() -> None:
    config = Config()
    assert config.section(ServeConfig) is config.serve
    with pytest.raises(TypeError, match="is not a section"):
        config.section(Config)
