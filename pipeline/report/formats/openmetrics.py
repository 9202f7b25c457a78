"""metrics.prom: figures and gates in the OpenMetrics text format. Pure."""

from collections.abc import Iterable

from pipeline.report.formats.document import Document


def openmetrics(document: Document) -> str:
    """Return the figures as gauges and the gates as 0 or 1, in the OpenMetrics text format."""
    facts = document.environment
    run = {
        "run_id": document.run_id,
        "profile": facts.profile,
        "device": facts.device,
        "model": facts.model,
        "vllm": facts.vllm,
        "verdict": document.verdict,
    }
    figures = [figure for figure in document.figures if figure.value is not None and not figure.invalid]
    figure_labels = [{"stage": figure.stage, "figure": figure.name, "unit": figure.unit} for figure in figures]
    value_labels = [{**labels, "simulated": str(figure.simulated).lower()} for labels, figure in zip(figure_labels, figures, strict=True)]
    values = [(labels, figure.value) for labels, figure in zip(value_labels, figures, strict=True)]
    lows = [(labels, figure.low) for labels, figure in zip(figure_labels, figures, strict=True) if figure.low is not None]
    highs = [(labels, figure.high) for labels, figure in zip(figure_labels, figures, strict=True) if figure.high is not None]
    gates = [({"gate": gate.id, "required": str(gate.required).lower(), "verdict": gate.verdict}, gate) for gate in document.gates]
    times: list[tuple[dict[str, str], float]] = [] if document.finished is None else [({}, document.finished.timestamp())]
    families = [
        family("vllm_poc_run", "info", "The run and what it ran on.", [({key: text or "" for key, text in run.items()}, 1)], "_info"),
        family("vllm_poc_exit_code", "gauge", "0 passed, 1 not passed, 2 not measured.", [({}, document.exit_code)]),
        family("vllm_poc_measured_timestamp_seconds", "gauge", "When the last measurement ended.", times),
        family("vllm_poc_gate", "gauge", "1 where the gate passes, else 0.", [(labels, gate.verdict == "PASS") for labels, gate in gates]),
        family("vllm_poc_gate_waived", "gauge", "1 where a waiver covers the gate.", [(labels, gate.waived) for labels, gate in gates]),
        family("vllm_poc_figure", "gauge", "Measured value.", values),
        family("vllm_poc_figure_low", "gauge", "Lower 95 % bound.", lows),
        family("vllm_poc_figure_high", "gauge", "Upper 95 % bound.", highs),
        family(
            "vllm_poc_figure_n",
            "gauge",
            "Sample size.",
            [(labels, figure.n) for labels, figure in zip(figure_labels, figures, strict=True)],
        ),
    ]
    return "".join(families) + "# EOF\n"


def family(name: str, kind: str, help_text: str, samples: Iterable[tuple[dict[str, str], float | None]], suffix: str = "") -> str:
    """Return one metric family."""
    lines = [f"# TYPE {name} {kind}", f"# HELP {name} {help_text}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{escape_label(text)}"' for key, text in labels.items())
        lines.append(f"{name}{suffix}{f'{{{inner}}}' if inner else ''} {value if isinstance(value, float) else int(value or 0)!r}")
    return "\n".join(lines) + "\n"


def escape_label(text: str) -> str:
    """Escape a label's value."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
