"""Two commands at once."""

import signal

from tests.builders.project import Project
from tests.integration.commands.busy import busy, tiny_hub


def test_second_command_says_who_is_at_work_and_leaves_the_first_alone(project: Project) -> None:
    with tiny_hub() as hub, busy(project, hub) as first:
        assert project.refuses("check-gpu") == [
            f"error: only one command can run in this folder at a time (pid {first.pid}: download-model)",
            "  → wait for it, or stop it with Ctrl-C in its terminal",
        ]
        for task in ("clean", "stop", "serve", "restart"):
            assert project.refuses(task)[0].startswith("error: only one command can run in this folder at a time")
        assert project.says("status")[0] == "server: not running"
        hub.go_on.set()
        _, said = first.communicate(timeout=60)
        assert first.returncode == 0, said
    assert project.record("download-model")["status"] == "ok"
    assert project.invoke("check-gpu").returncode == 0


def test_lock_of_a_killed_command_does_not_stay(project: Project) -> None:
    with tiny_hub() as hub, busy(project, hub) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        project.says("check-gpu")
    assert project.says("status")[3].split(maxsplit=1) == ["download-model", "never ran"]
