"""bundle: a folder with everything that a machine without a network needs to run a profile."""

from pathlib import Path

from pipeline.bundle import make, wheels
from pipeline.commands.session import Options, Session, locked
from pipeline.config.schema import Config
from pipeline.errors import BundleError
from pipeline.measure.units import MIB
from pipeline.planning import on_processor
from pipeline.terminal import Output
from pipeline.vllm.sets import CPU_SET, ON_GPU, SETS, VllmSet, set_named


def bundle(root: Path, options: Options, python: str | None, platform: str | None, output: str, part_mib: str | None) -> Output:
    """Make the bundle in the folder `output`, in parts of at most `part_mib` MiB; BundleError for what a bundle cannot hold."""
    session = Session(root, options)
    name = session.layers.profile[0]
    if name == "auto":
        raise BundleError("which profile the other machine takes is not known here", "name it, as in `./inv bundle --profile cpu`")
    config = session.layers.config(name)
    if config.install.cpu_wheel or config.install.python:
        raise BundleError("install.cpu_wheel and install.python name what a bundle cannot hold", "leave both empty for a bundle")
    vllm_set = set_for(config)
    if part_mib is not None and not (part_mib.isdecimal() and int(part_mib) > 0):
        raise BundleError(f"--part-mib: {part_mib!r} is no number of MiB", "as in --part-mib 4000")
    target = wheels.Platform(wheels.target_python(python, vllm_set), wheels.target_platform(platform, vllm_set))
    order = make.BundleOrder(name, config.model, vllm_set, target, int(part_mib) if part_mib else None)
    folder = root / output
    with locked(session.workspace):
        content = make.make(order, folder, session.workspace)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parts = f" in {content.parts} parts" if content.parts else ""
    facts = f"profile {content.profile}, {content.vllm}, {content.wheels} wheels, model {content.model.origin}"
    return Output(0, [f"{folder}: {size / MIB:.0f} MiB{parts}: {facts}", make.aim(content)], None)


def set_for(config: Config) -> VllmSet:
    """Return the vLLM set for the other machine: install.set, or with auto the set for the kind of device that the profile needs."""
    if config.install.set == "auto":
        return CPU_SET if on_processor(config) else ON_GPU[0]
    vllm_set = set_named(config.install.set)
    if vllm_set is None:
        raise BundleError(f"install.set: no set {config.install.set!r}", f"sets: {', '.join(entry.name for entry in SETS)}")
    return vllm_set
