"""The stages, in the order of the user's list; their edges come from their signatures."""

from pipeline.engine.record import SOAK_NOTE, SWEEP_NOTE, Artifact
from pipeline.engine.stage import Stage
from pipeline.report.noise import NOISE_NOTE, RunNoise
from pipeline.report.stage import report, report_present
from pipeline.report.sweep import Sweep
from pipeline.server.stop import STOP_NOTE, Closing
from pipeline.stages.bench import bench
from pipeline.stages.check_gpu import check_gpu
from pipeline.stages.download_model import download_model, model_present
from pipeline.stages.install import environment_present, install
from pipeline.stages.measure_vram import Soak, measure_vram
from pipeline.stages.serve import attach_server, serve, server_present
from pipeline.stages.test_determinism import REMEDY_NOTE, Remedied, test_determinism
from pipeline.stages.test_router import test_router

STAGES = (
    Stage(check_gpu, observes=True),
    Stage(install, present=environment_present, exclusive=False),
    Stage(download_model, present=model_present, exclusive=False),
    Stage(serve, present=server_present),
    Stage(test_router),
    Stage(test_determinism),
    Stage(bench),
    Stage(measure_vram),
    Stage(report, present=report_present),
)
ATTACHED = tuple(Stage(attach_server, present=server_present, called="serve") if stage.name == "serve" else stage for stage in STAGES)
MEASURING = tuple(stage.name for stage in STAGES if stage.measures)
NOTES: dict[type[Artifact], str] = {Closing: STOP_NOTE, Remedied: REMEDY_NOTE, Soak: SOAK_NOTE, Sweep: SWEEP_NOTE, RunNoise: NOISE_NOTE}
