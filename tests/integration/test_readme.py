"""The README's generated parts are what the code says now. Write them anew with `python -m tests.integration.test_readme`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def task_table() -> str:
    """Return the tasks as a table, from the collection itself."""
    code = "import tasks; print(*(f'{n}|{tasks.namespace[n].__doc__.splitlines()[0]}' for n in sorted(tasks.namespace.task_names)), sep=chr(10))"
    lines = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [f"| `{name}` | {summary.rstrip('.')} |" for name, summary in (line.split("|", 1) for line in lines)]
    return "\n".join(["| task | does |", "| --- | --- |", *rows])


def graph() -> str:
    """Return the stages' graph as a mermaid block."""
    done = subprocess.run([sys.executable, "-m", "invoke", "graph"], cwd=ROOT, capture_output=True, text=True, check=True)
    return f"```mermaid\n{done.stdout.strip()}\n```"


def excerpt() -> str:
    """Return the committed report's verdict and first table."""
    report = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    head = report[report.index("> [!") : report.index("## Success criteria")]
    return head.replace("## Performance targets\n\n", "").strip()


GENERATED = {"tasks": task_table, "graph": graph, "excerpt": excerpt}


def fill(text: str) -> str:
    """Return `text` with each marked part made anew."""
    for name, make in GENERATED.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        assert begin in text
        text = re.sub(rf"{begin}.*?{end}", lambda _, b=begin, m=make, e=end: f"{b}\n{m()}\n{e}", text, flags=re.DOTALL)  # type: ignore[misc]  # mypy has no type for a lambda with defaults here
    return text


def test_generated_parts_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == fill(text)


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_set_key_and_profile_named_in_the_readme_exists() -> None:
    from pipeline.config import load_layers

    text = README.read_text(encoding="utf-8")
    layers = load_layers(ROOT / "config.yaml", {})
    config = layers.config(None).model_dump()
    for key in re.findall(r"--set ([a-z_]+\.[a-z_]+)=", text):
        section, name = key.split(".")
        assert name in config[section], key
    for profile in re.findall(r"--profile ([a-z0-9.-]+)", text):
        assert profile in layers.profiles or profile == "NAME", profile


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
