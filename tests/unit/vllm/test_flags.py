"""The flags of a server in older versions of vLLM."""

from pathlib import Path

import pytest

from pipeline.config.schema import ServeConfig
from pipeline.vllm.command import server_command
from pipeline.vllm.releases import numbers_of

STRUCTURED = '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}'


def words(version: str, *extra: str, parser: str | None = None) -> list[str]:
    settings = ServeConfig(extra_args=extra, reasoning_parser=parser)
    return server_command(settings, Path("python"), Path("model"), "name", "vllm", version)


@pytest.mark.parametrize(("version", "drains"), [("0.17.1", False), ("0.9.2", False), ("0.18.0", True), ("0.33.0", True), ("", True)])
def test_requests_are_drained_since_0_18(version: str, drains: bool) -> None:
    made = words(version)
    assert ("--shutdown-timeout" in made) == drains
    assert ("20" in made) == drains


@pytest.mark.parametrize("given", [(STRUCTURED,), tuple(STRUCTURED.split("=", 1))])
def test_structured_outputs_were_guided_decoding_before_0_11(given: tuple[str, ...]) -> None:
    made = words("0.10.2", *given)
    assert not any("structured" in word for word in made)
    assert made[made.index("--guided-decoding-backend") + 1] == "xgrammar"
    assert "--guided-decoding-disable-any-whitespace" in made
    assert words("0.11.0", *given)[-len(given) :] == list(given)


@pytest.mark.parametrize("config", ["nonsense", "[1]", '{"backend":"xgrammar","reasoning_parser":"qwen3"}'])
def test_a_config_that_older_versions_cannot_express_stays_for_vllm_to_refuse(config: str) -> None:
    assert f"--structured-outputs-config={config}" in words("0.10.2", f"--structured-outputs-config={config}")


def test_a_reasoning_parser_had_to_be_enabled_before_0_9() -> None:
    assert "--enable-reasoning" in words("0.8.5.post1", parser="deepseek_r1")
    assert "--enable-reasoning" not in words("0.9.0", parser="deepseek_r1")
    assert "--enable-reasoning" not in words("0.8.5")
    made = words("0.32.0", parser="qwen3")
    assert made[made.index("--reasoning-parser") + 1] == "qwen3"


@pytest.mark.parametrize(("version", "numbers"), [("0.8.5.post1", (0, 8, 5)), ("0.17", (0, 17, 0)), ("0.19.2rc1.dev3+gabc", (0, 19, 2))])
def test_a_version_is_read_by_its_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert numbers_of(version) == numbers


def test_a_build_without_a_version_is_the_newest() -> None:
    assert numbers_of("dev") > (999,)
