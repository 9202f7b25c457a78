"""A command that is at work until its hub answers."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.builders.project import Project
from tests.fakes.fake_hub import FakeHub, HubFile
from tests.fakes.forkserver import Process


@contextmanager
def busy(project: Project, hub: FakeHub) -> Iterator[Process]:
    """Have a command at work that waits for the hub until `go_on` is set."""
    model = {"name": "tiny", "source": "hub", "repo": hub.repo, "min_free_gib": 0.01}
    project.configure(profile="cpu", profiles={"cpu": {"model": model}})
    first = project.start("download-model", HF_ENDPOINT=hub.endpoint)
    try:
        assert hub.stalling.wait(60)
        yield first
    finally:
        first.kill()
        first.communicate(timeout=60)


def tiny_hub() -> FakeHub:
    hub = FakeHub(stalled={"model.safetensors"})
    hub.commit({"config.json": HubFile(b"{}"), "model.safetensors": HubFile(b"0123456789", lfs=True)})
    return hub
