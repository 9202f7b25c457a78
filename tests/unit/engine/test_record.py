"""Records: whole or not at all, and never misread."""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import migrations
from pipeline.engine.record import SCHEMA_VERSION, Artifact, Failure, Store, digest, write_atomic
from pipeline.errors import NewerRecordError, RecordError
from pipeline.message import Message, _


class Toy(Artifact):
    value: float


class Newer(Artifact):
    value: float
    unit: str


STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def write(store: Store, result: Artifact | Failure) -> None:
    store.write("toy", {"code": "c"}, STARTED, 1.23456, result)


def change(store: Store, **fields: Any) -> None:
    raw = json.loads(store.path("toy").read_text(encoding="utf-8"))
    store.path("toy").write_text(json.dumps(raw | fields), encoding="utf-8")


def test_written_data_is_read_back(store: Store) -> None:
    write(store, Toy(value=1.5))
    outcome = store.outcome("toy", Toy)
    assert outcome.data == Toy(value=1.5)
    assert outcome.failure is None


def test_envelope_says_who_when_and_why(store: Store) -> None:
    write(store, Toy(value=1))
    envelope = store.read("toy")
    assert envelope is not None
    assert (envelope.stage, envelope.status, envelope.because, envelope.started) == ("toy", "ok", {"code": "c"}, STARTED)
    assert envelope.duration_s == 1.235
    assert envelope.schema_version == SCHEMA_VERSION


def test_stage_without_record_has_neither_data_nor_failure(store: Store) -> None:
    outcome = store.outcome("toy", Toy)
    assert (outcome.data, outcome.envelope, outcome.failure) == (None, None, None)


def test_failure_record_is_read_back_and_has_no_data(store: Store) -> None:
    failure = Failure(kind="server", message="died", hint="look", log="a.log", log_tail=["x", "y"])
    write(store, failure)
    outcome = store.outcome("toy", Toy)
    assert outcome.data is None
    assert outcome.failure == failure
    assert outcome.envelope is not None
    assert outcome.envelope.status == "failed"


def test_new_record_replaces_a_failure(store: Store) -> None:
    write(store, Failure(kind="server", message="died"))
    write(store, Toy(value=2))
    assert store.outcome("toy", Toy).failure is None


def test_removed_record_is_gone_and_removing_again_is_fine(store: Store) -> None:
    write(store, Toy(value=2))
    store.remove("toy")
    store.remove("toy")
    assert store.read("toy") is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 1', b"\xff\xfe"])
def test_unreadable_json_is_refused_with_the_way_out(store: Store, content: bytes) -> None:
    write(store, Toy(value=2))
    store.path("toy").write_bytes(content)
    with pytest.raises(RecordError, match="not readable JSON") as caught:
        store.read("toy")
    assert "remove it" in caught.value.hint


def test_future_schema_is_refused(store: Store) -> None:
    write(store, Toy(value=2))
    change(store, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(RecordError, match=f"record schema {SCHEMA_VERSION + 1}, this program reads {SCHEMA_VERSION}"):
        store.outcome("toy", Toy)


@pytest.mark.parametrize("content", ["[]", "5", "null", "{}"])
def test_json_that_is_no_envelope_is_refused(store: Store, content: str) -> None:
    write(store, Toy(value=2))
    store.path("toy").write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match="record schema None"):
        store.read("toy")


def test_envelope_with_a_field_too_many_is_refused(store: Store) -> None:
    write(store, Toy(value=2))
    change(store, extra=1)
    with pytest.raises(RecordError, match="is not a record"):
        store.read("toy")


def test_data_of_an_older_shape_counts_as_never_made(store: Store) -> None:
    write(store, Toy(value=2))
    outcome = store.outcome("toy", Newer)
    assert (outcome.data, outcome.envelope) == (None, None)


def with_unit(data: dict[str, Any], because: Mapping[str, Any]) -> dict[str, Any]:
    return {"unit": because["code"], **data}


def doubled(data: dict[str, Any], _because: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "value": 2 * data["value"]}


@pytest.mark.parametrize(("form", "value"), [(0, 4), (1, 4), (2, 2)])
def test_data_of_an_older_form_takes_the_steps_that_its_writer_did_not_know(
    store: Store, monkeypatch: pytest.MonkeyPatch, form: int, value: float
) -> None:
    write(store, Newer(value=2, unit="c") if form else Toy(value=2))
    monkeypatch.setattr(migrations, "STEPS", {"toy": (with_unit, doubled)})
    change(store, form=form)
    outcome = store.outcome("toy", Newer)
    assert outcome.data == Newer(value=value, unit="c")
    assert outcome.envelope is not None
    assert outcome.envelope.data is not None
    assert outcome.envelope.data["value"] == 2, "the file stays as it was written"


def test_a_record_names_the_form_of_its_data(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "STEPS", {"toy": (with_unit, doubled)})
    write(store, Newer(value=2, unit="c"))
    assert json.loads(store.path("toy").read_text(encoding="utf-8"))["form"] == 2
    assert store.outcome("toy", Newer).data == Newer(value=2, unit="c")


def test_a_record_from_before_forms_were_named_is_read(store: Store) -> None:
    write(store, Toy(value=2))
    raw = json.loads(store.path("toy").read_text(encoding="utf-8"))
    del raw["form"]
    store.path("toy").write_text(json.dumps(raw | {"schema_version": 1}), encoding="utf-8")
    assert store.outcome("toy", Toy).data == Toy(value=2)


def test_a_form_of_a_later_version_is_refused_with_the_way_out(store: Store) -> None:
    write(store, Toy(value=2))
    change(store, form=1)
    with pytest.raises(NewerRecordError, match="has form 1 of the records of toy, this program reads 0") as caught:
        store.outcome("toy", Toy)
    assert caught.value.hint == "update this program, or remove the file to run the stage again"


@pytest.mark.parametrize("spoilt", [{}, {"levels": 3}, {"levels": [3]}, {"levels": [], "ledger": {}}, {"levels": [{}], "ledger": []}])
def test_data_that_no_version_wrote_is_no_record(store: Store, spoilt: dict[str, Any]) -> None:
    write(store, Toy(value=2))
    raw = json.loads(store.path("toy").read_text(encoding="utf-8"))
    store.path("bench").write_text(json.dumps(raw | {"stage": "bench", "form": 0, "data": spoilt}), encoding="utf-8")
    assert store.outcome("bench", Toy).data is None


def test_a_failure_keeps_what_its_message_knows(store: Store) -> None:
    write(store, Failure(kind="blocked", message=_("needs {stage}, which failed", stage="serve")))
    failure = store.outcome("toy", Toy).failure
    assert failure is not None
    assert failure.message == "needs serve, which failed"
    assert isinstance(failure.message, Message)
    assert failure.message.values == {"stage": "serve"}


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_value_is_read_back_as_it_was_written(store: Store, value: float) -> None:
    write(store, Toy(value=value))  # bench records an infinite first TTFT when its first request fails
    assert store.outcome("toy", Toy).data == Toy(value=value)


def test_write_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a.txt", "ğ")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ğ"


def test_crash_before_the_replace_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def crash(_descriptor: int) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk gone"):
        write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old"


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1, "b": 2}) != digest({"a": 2, "b": 1})


def test_digest_is_pinned() -> None:
    assert digest({"ş": [1, 2.5, None]}) == "2d93b20d087e30a8"


def test_identity_changes_with_the_data_only() -> None:
    assert Toy(value=1).identity() == Toy(value=1).identity()
    assert Toy(value=1).identity() != Toy(value=2).identity()
