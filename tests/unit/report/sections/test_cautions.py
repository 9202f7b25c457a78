"""What stands above every figure."""

import pytest

from pipeline.engine.record import Failure
from pipeline.errors import MeaninglessError
from pipeline.measure.figures import Figure, not_measured
from pipeline.stages.serve import Server
from pipeline.vllm.ladder import Attempt
from tests.builders.house import House
from tests.builders.records import (
    figure,
    memory_use,
    server,
)
from tests.builders.reports import line

RANDOM_WEIGHTS = "This model has the shape of the real one and random weights: speed and memory are real, its answers are noise."


THROTTLED = {"gpu_throttled": figure(43, "%", 200), "gpu_temperature_c": figure(91, "°C", 200)}


def test_a_throttled_gpu_is_told_above_every_figure(house: House) -> None:
    use = memory_use()
    house.results["measure-vram"] = use.model_copy(
        update={"figures": {**use.figures, **THROTTLED}, "throttled": {"sw_thermal_slowdown": 86}}
    )
    text = house.text()
    head = text[: text.index("## Performance targets")]
    assert (
        "**The GPU was throttled in 43 % of 200 samples under load (sw_thermal_slowdown in 86): better cooled or fed it is faster.**"
        in head
    )
    assert line(text, "| GPU temperature, median under load |").split("|")[2].strip() == "**91 °C** (n = 200)"


@pytest.mark.parametrize("share", [None, figure(4.9, "%", 200), not_measured("%", "the driver does not tell")])
def test_a_moment_of_throttling_is_no_caution(house: House, share: Figure | None) -> None:
    use = memory_use()
    house.results["measure-vram"] = use.model_copy(update={"figures": {**use.figures, **({"gpu_throttled": share} if share else {})}})
    assert "**The GPU was throttled" not in house.text()


def test_random_weights_are_told_first_and_are_no_failure(house: House) -> None:
    assert RANDOM_WEIGHTS not in house.text()
    house.results["serve"] = house.measured_on = server().model_copy(update={"random_weights": True})
    house.results["test-router"] = Failure(kind=MeaninglessError.kind, message="the weights are random")
    text = house.text()
    assert text.index(RANDOM_WEIGHTS) < text.index("## Performance targets")
    assert "## Failures" not in text
    assert "NOT_MEASURED: the weights are random" in text


def test_what_a_reader_must_know_stands_above_every_figure(house: House) -> None:
    server = house.results["serve"]
    assert isinstance(server, Server)
    command = ["python", "-m", "vllm", "--host", "0.0.0.0", "--trust-remote-code"]
    house.results["serve"] = server.model_copy(update={"command": command})
    text = house.text()
    head = text[: text.index("## Performance targets")]
    assert "**The server ran code that came with the model (`serve.trust_remote_code`).**" in head
    assert "**The server listened on 0.0.0.0, open to everyone who reached that machine, with an API key.**" in head


def test_a_closed_server_needs_no_caution(house: House) -> None:
    server = house.results["serve"]
    assert isinstance(server, Server)
    house.results["serve"] = server.model_copy(update={"command": ["python", "--host", "127.0.0.1"]})
    assert "**The server" not in house.text()


def test_another_model_or_setting_than_asked_is_never_hidden(house: House) -> None:
    server = house.results["serve"]
    assert isinstance(server, Server)
    attempt = Attempt(cause="the server did not start: the GPU ran out of memory", changed="max_num_seqs 16 → 8", took_s=30, log="l")
    house.results["serve"] = server.model_copy(update={"attempts": [attempt]})
    house.fallbacks = ("Asked for profile big (A), took profile small: the GPU ran out of memory.",)
    text = house.text()
    head = text[: text.index("## Performance targets")]
    assert "**Asked for profile big (A), took profile small: the GPU ran out of memory.**" in head
    assert "**A start failed and was repeated with max_num_seqs 16 → 8: the server did not start: the GPU ran out of memory.**" in head


def test_an_attached_server_without_warm_up_says_so_and_one_with_it_tells_how_many_requests(house: House) -> None:
    attached = server().model_copy(update={"attached": "http://x", "command": [], "warm_ups": 0})
    house.results["serve"] = house.measured_on = attached
    cold = "That server got no warm-up requests: the first of each kind may have waited for kernels to compile (`attach.warm_up`)."
    assert cold in house.text()
    house.results["serve"] = house.measured_on = attached.model_copy(update={"warm_ups": 120})
    text = house.text()
    assert cold not in text
    assert "120 requests before any was timed" in text
