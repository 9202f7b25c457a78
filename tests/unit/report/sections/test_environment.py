"""The environment section."""

from pipeline.report.formats.document import read_document
from pipeline.report.sections.environment import shell_command
from tests.builders.house import House
from tests.builders.records import (
    model,
)


def test_shell_command_has_one_option_a_line_and_is_quoted() -> None:
    command = shell_command({"A": "b c"}, ["python", "-m", "vllm", "--model", "m", "--flag", "--json", '{"a": 1}'])
    assert command.split(" \\\n  ") == ["A='b c'", "python -m vllm", "--model m", "--flag", "--json '{\"a\": 1}'"]


def test_a_licence_that_forbids_commercial_use_stands_beside_the_model(house: House) -> None:
    assert "no commercial use" not in house.text()
    facts = model().facts.model_copy(update={"license": "qwen-research", "non_commercial": True})
    house.results["download-model"] = model().model_copy(update={"facts": facts})
    said = "licence qwen-research: no commercial use"
    assert f"**Model: {said}.**" in house.text()
    assert said in (house.root / "report.html").read_text(encoding="utf-8")
    environment = read_document((house.root / "report.json").read_bytes(), "report.json").environment
    assert (environment.license, environment.non_commercial) == ("qwen-research", True)
    house.language = "tr"
    assert "lisans qwen-research: ticari kullanım yasak" in house.text()
