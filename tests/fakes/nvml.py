"""The driver's NVML library, replaced by one that plays a script; what asks it is the real pynvml in a process of its own.

A script has one statement a line, numbers in MiB, milliwatts, °C and MHz (clock=1500); a device's instances and processes follow it:

    driver 580.65.06
    cuda 13000
    device uuid=GPU-a name=A_100 total=6141 used=100,200 reserved=300 cc=8.9 display=1 mig=1 util=5 temp=60 power=9000 throttle=0x24
    instance uuid=MIG-a name=A_100_1g total=1000 used=10
    process pid=7 used=50 kind=G
    error fn=nvmlDeviceGetPowerUsage code=15 from=3 until=9 device=0
    hang fn=nvmlDeviceGetMemoryInfo_v2

`used` names the answer of each next call and stays at the last; `used=-` of a process is not told. An error holds for all
calls unless from, until and device (devices and instances counted from 0) say which. What hangs returns when the script changes.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.stages.check_gpu import Machine
from tests.fakes.forkserver import start

SOURCE = Path(__file__).with_name("nvml.c")
ROOT = SOURCE.parents[2]
LIBRARY = "libnvidia-ml.so.1"
SYSTEM = "driver 580.65.06\ncuda 13000\n"
RTX_4050 = "device uuid=GPU-a1b2 name=RTX_4050 total=6141 used=100 reserved=300 cc=8.9 util=37 temp=61 power=35250 clock=1755\n"
LOOK = """
import sys
from pipeline.gpu import nvml
from pipeline.config.schema import AutoProfile, GpuConfig
from pipeline.contexts import VisibleDevices
from pipeline.stages.check_gpu import check_gpu
nvml.READ_S = float(sys.argv[2])
auto = (AutoProfile(min_total_mib=3600, profile="small"), AutoProfile(min_total_mib=5600, profile="large"))
print(check_gpu(GpuConfig(auto=auto), VisibleDevices(devices=sys.argv[1] or None)).model_dump_json())
"""


class FakeNvml:
    """A compiled library in a folder, and the script that it plays there."""

    def __init__(self, folder: Path, *flags: str) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler (cc) to compile the stand-in for NVML with")
        self.folder = folder
        self.script = folder / "script"
        command = [compiler, "-O1", "-shared", "-fPIC", "-D_GNU_SOURCE", *flags, "-o", str(folder / LIBRARY), str(SOURCE)]
        subprocess.run(command, check=True)

    def play(self, script: str) -> None:
        """Make this the script, also of a process that plays another one."""
        new = self.script.with_suffix(".new")
        new.write_text(script, encoding="utf-8")
        new.replace(self.script)

    def environment(self, visible: str | None = None) -> dict[str, str]:
        """Return the environment of a process that is to find this library."""
        inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        chosen = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        return {**inherited, **chosen, "LD_LIBRARY_PATH": str(self.folder), "NVML_SCRIPT": str(self.script)}

    def check_gpu(self, script: str, visible: str | None = None, of_server: str = "") -> Machine:
        """Return what check-gpu sees where the library plays this."""
        self.play(script)
        return look(self.environment(visible), of_server)


def look(environment: Mapping[str, str], of_server: str = "", read_s: float = 30) -> Machine:
    """Return what check-gpu sees in this environment, where serve.env has `of_server` as CUDA_VISIBLE_DEVICES."""
    process = start(["-c", LOOK, of_server, str(read_s)], ROOT, environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return Machine.model_validate_json(out)
