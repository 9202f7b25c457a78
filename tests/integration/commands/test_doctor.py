"""doctor, as a person meets it."""

import os
import socket

from tests.builders.project import Project
from tests.fakes.fake_hub import GATED, FakeHub, HubFile
from tests.integration.commands.busy import busy, tiny_hub


def test_doctor_names_what_must_be_mended(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = project.invoke("doctor", "--profile", "cpu", "--set", f"serve.port={port}")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "OK    configuration    profile cpu (--profile)"
    assert f"FAIL  port             {port} is taken by pid {os.getpid()}" in done.stdout
    assert [line for line in lines if line.startswith("FAIL")] == [line for line in lines if " is taken by " in line]
    assert not (project.root / "artifacts" / "check-gpu.json").exists(), "a look leaves no record"


def test_doctor_goes_on_with_a_configuration_that_is_wrong(project: Project) -> None:
    done = project.invoke("doctor", "--set", "serve.prot=1")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  configuration    --set serve.prot: serve.prot: unknown setting; did you mean 'port'?")
    assert "\nOK    /dev/shm" in done.stdout or "\nWARN  /dev/shm" in done.stdout


def test_doctor_says_who_is_at_work(project: Project) -> None:
    with tiny_hub() as hub, busy(project, hub) as first:
        assert (
            f"WARN  lock             only one command can run in this folder at a time (pid {first.pid}: download-model)"
            in project.invoke("doctor").stdout
        )


def test_doctor_asks_the_hub_without_downloading(project: Project) -> None:
    hub = FakeHub()
    hub.commit({"config.json": HubFile(b"{}"), "model.safetensors": HubFile(b"0123456789", lfs=True)})
    with hub:
        project.configure(profile="cpu", profiles={"cpu": {"model": {"name": "tiny", "source": "hub", "repo": hub.repo}}})
        assert "OK    model            " + hub.repo in project.invoke("doctor", HF_ENDPOINT=hub.endpoint).stdout
        hub.refusals["resolve"] = GATED
        said = project.invoke("doctor", HF_ENDPOINT=hub.endpoint).stdout
        assert f"FAIL  model            {hub.repo} is gated; no token is set" in said
    assert not (project.root / "models").exists()
