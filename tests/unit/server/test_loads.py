"""The notes of a launch's load: written a line at a time, and read whatever a kill left of them."""

from pathlib import Path

from pipeline.server.loads import Loads, Notebook, read_loads


def test_what_is_noted_is_read_by_who_sent_it(tmp_path: Path) -> None:
    path = tmp_path / "loads.jsonl"
    bench, router = Notebook(path, "bench"), Notebook(path, "test-router")
    router.span(1.0004, 2.0)
    bench.span(3.0, 4.5)
    bench.span(5.0, 6.0)
    bench.preemptions(6.1, 3)
    bench.fill(7.0, 2)
    bench.fill(8.0, None)
    made = Loads({"test-router": [(1.0, 2.0)], "bench": [(3.0, 4.5), (5.0, 6.0)]}, [(6.1, 3)], [(7.0, 2), (8.0, None)])
    assert read_loads(path) == made
    assert (made | Loads(fills=[(9.0, 1)])).fills == [(7.0, 2), (8.0, None), (9.0, 1)]


def test_of_a_file_that_a_kill_spoilt_the_whole_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "loads.jsonl"
    Notebook(path, "bench").span(1.0, 2.0)
    with path.open("ab") as file:
        file.write(
            b'\0\xff\n[1]\n"x"\n{"who": "bench"}\n{"who": "bench", "begin": "x", "end": 2}\n{"who": "bench", "begin": 9, "end": 3}\n'
        )
        file.write(b'{"who": "bench", "begin": 3.0, "e')
    assert read_loads(path) == Loads({"bench": [(1.0, 2.0)]}, [])


def test_where_nothing_was_noted_there_is_no_load(tmp_path: Path) -> None:
    assert read_loads(tmp_path / "loads.jsonl") == Loads()


def test_a_folder_that_is_gone_costs_the_note_and_not_the_measurement(tmp_path: Path) -> None:
    Notebook(tmp_path / "gone" / "loads.jsonl", "bench").span(1.0, 2.0)
    assert not (tmp_path / "gone").exists()
