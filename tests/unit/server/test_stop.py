"""What a stopped server leaves on the devices, beside what other programs did there meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.words import stop_line
from pipeline.config.schema import ServeConfig
from pipeline.engine.record import now
from pipeline.server.state import Launch
from pipeline.server.stop import TAIL_BYTES, TOLERANCE_MIB, Closing, others_mib


def closing(before: list[float] | None, after: list[float] | None, others: list[float | None] | None) -> Closing:
    return Closing(
        launch_id="L1",
        was_running=True,
        asked_nicely=True,
        killed=[],
        took_s=1.5,
        port_free=True,
        gpu_used_before_mib=before,
        gpu_used_after_mib=after,
        gpu_others_mib=others,
    )


FREED, TOOK = "other programs freed 41815 MiB meanwhile", "other programs took 500 MiB meanwhile"
UNKNOWN = "500 MiB more are held, by the server or by others: the driver does not tell"


@pytest.mark.parametrize(
    ("before", "after", "others", "value", "reason"),
    [
        ([100.0], [100.0], [100.0], 0, ""),
        ([100.0], [417.0], [110.0], 317, ""),
        ([100.0], [97.0], [97.0], 0, ""),
        ([42000.0], [185.0], [185.0], None, FREED),
        ([42000.0], [42000.0], [185.0], None, FREED),  # and came back just now
        ([100.0], [600.0], [600.0], None, TOOK),
        ([100.0], [100.0 + TOLERANCE_MIB], [100.0 + TOLERANCE_MIB], TOLERANCE_MIB, ""),
        ([100.0], [100.0], None, 0, ""),  # WSL2: the driver tells no process's memory
        ([100.0], [600.0], None, None, UNKNOWN),
        ([42000.0], [185.0], None, None, FREED),
        ([100.0, 0.0], [112.0, 5.0], [100.0, 0.0], 17, ""),
        ([100.0, 600.0], [600.0, 100.0], [600.0, 100.0], None, TOOK),  # which together is nothing
        ([100.0, 42000.0], [117.0, 185.0], [100.0, None], 17, ""),  # the second is not ours
        ([100.0, 42000.0], [117.0, 185.0], None, None, FREED),
    ],
)
def test_the_residual_is_against_a_baseline_that_others_did_not_change(
    before: list[float], after: list[float], others: list[float | None] | None, value: float | None, reason: str
) -> None:
    residual = closing(before, after, others).residual()
    assert residual is not None
    assert (residual.value, residual.reason) == (value, reason)


@pytest.mark.parametrize(
    ("before", "after", "others"),
    [(None, [1.0], None), ([1.0], None, [1.0]), ([1.0, 2.0], [1.0], None), ([1.0], [1.0], [1.0, None])],
)
def test_without_both_readings_of_the_same_devices_there_is_nothing_to_compare(
    before: list[float] | None, after: list[float] | None, others: list[float | None] | None
) -> None:
    assert closing(before, after, others).residual() is None


def test_an_old_note_that_knows_nothing_of_others_is_read() -> None:
    old = closing([100.0], [100.0], None).model_dump()
    del old["gpu_others_mib"]
    assert Closing.model_validate(old).residual() == closing([100.0], [100.0], None).residual()


def launch() -> Launch:
    settings = ServeConfig()
    return Launch(
        id="L1", pid=7, created=1, boot="b", host="h", port=8000, model="m", log="l", command=[], settings=settings, started=now()
    )


@pytest.mark.parametrize(
    ("note", "says"),
    [
        (closing(None, None, None), "port 8000 is free"),
        (closing([100.0], [97.0], [97.0]), "port 8000 is free; VRAM residual 0 MiB"),
        (closing([100.0], [600.0], None), f"port 8000 is free; VRAM residual NOT_MEASURED ({UNKNOWN})"),
        (closing([42000.0], [185.0], [185.0]), f"port 8000 is free; VRAM residual NOT_MEASURED ({FREED})"),
    ],
)
def test_a_stop_says_what_is_left(note: Closing, says: str) -> None:
    assert stop_line(launch(), note) == f"stopped pid 7 in 1.5 s; {says}"


def written(path: Path, *samples: dict[str, Any] | str) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in samples), encoding="utf-8")
    return path


def test_others_hold_what_the_last_telling_sample_does_not_count_as_ours(tmp_path: Path) -> None:
    path = written(
        tmp_path / "samples.jsonl",
        {"t": 0, "gpu_used_mib": [100.0, 50.0], "gpu_tree_mib": [None, None]},
        {"t": 1, "processes": 2, "gpu_used_mib": [4100.0, 50.0], "gpu_tree_mib": [3900.0, None]},
        {"t": 2, "processes": 2, "gpu_used_mib": [4200.0, 60.0], "gpu_tree_mib": [3900.0, None]},
        {"t": 3, "processes": 2, "gpu_used_mib": [None, None], "gpu_tree_mib": [None, None], "gpu_error": "GpuIsLost"},
        '{"t": 4, "gpu_us',
    )
    assert others_mib(path) == [300.0, None]


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [{"t": 1, "processes": 2, "rss_mib": 1.0}],
        [{"t": 1, "processes": 2, "gpu_used_mib": [4100.0], "gpu_tree_mib": [None]}],
        ["[]", "null", '{"t": 1, "gpu_used_mib": [4100.0], "gpu_tree_mib": null}'],
    ],
)
def test_what_others_hold_is_not_known_where_no_sample_tells(samples: list[dict[str, Any] | str], tmp_path: Path) -> None:
    assert others_mib(written(tmp_path / "samples.jsonl", *samples)) is None
    assert others_mib(tmp_path / "none.jsonl") is None


def test_of_hours_of_samples_the_end_is_read(tmp_path: Path) -> None:
    many = [{"t": at, "processes": 2, "gpu_used_mib": [500.0], "gpu_tree_mib": [400.0]} for at in range(10_000)]
    path = written(tmp_path / "samples.jsonl", *many, {"t": 10_000, "processes": 2, "gpu_used_mib": [520.0], "gpu_tree_mib": [400.0]})
    assert path.stat().st_size > TAIL_BYTES
    assert others_mib(path) == [120.0]
