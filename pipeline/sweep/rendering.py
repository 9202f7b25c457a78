"""Render the report again, with the sweep that has just ended."""

from pipeline.dag import NOTES
from pipeline.engine.fingerprint import differences
from pipeline.engine.pipeline import Pipeline
from pipeline.report.stage import Report

ASIDE = {"schema", "code", *NOTES.values()}  # parts of the fingerprint that may differ, as the sweep's note does


def render_again(pipeline: Pipeline, output: str) -> str:
    """Render the report if only the sweep is new in it; return what was done, or what a person can do."""
    stage = pipeline.stage("report")
    outcome = pipeline.outcome(Report)
    if outcome.data is None or outcome.envelope is None:
        return f"{output}: left alone, as there is no report on record here; `./inv all` makes one, and shows the sweep in it"
    old, new = (
        {key: value for key, value in fingerprint.items() if key not in ASIDE}
        for fingerprint in (outcome.envelope.because, pipeline.because(stage))
    )
    changed = differences(old, new)
    if changed:
        return f"{outcome.data.path}: left alone, as it is of something else ({changed[0]}); `./inv report --only` shows the sweep in it"
    (result,) = pipeline.ensure([stage.name], force=[stage.name], alone=True)
    return f"{outcome.data.path}: {'shows the sweep' if result.state == 'made' else f'not rendered: {result.reason}'}"
