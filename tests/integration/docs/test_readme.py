"""The README's generated parts are what the code says now. Write them anew with `python -m tests.integration.docs.test_readme`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.config.layers import load_layers

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "README.md"
TURKISH = ROOT / "README.tr.md"
SHARED = ("excerpt", "graph", "plan", "faults")  # parts that both languages show alike
CARDS = ("card", "profile", "model", "weights", "context", "sequences")
TURKISH_CARDS = ("kart", "profil", "model", "ağırlıklar", "bağlam", "eşzamanlı istek")


def task_table() -> str:
    """Return the tasks as a table, from the collection itself."""
    code = "import tasks\nfor n in sorted(tasks.namespace.task_names): print(n, tasks.namespace[n].__doc__.splitlines()[0], sep='|')"
    lines = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [f"| `{name}` | {summary.rstrip('.')} |" for name, summary in (line.split("|", 1) for line in lines)]
    return "\n".join(["| task | does |", "| --- | --- |", *rows])


def graph() -> str:
    """Return the stages' graph as a mermaid block."""
    done = subprocess.run([sys.executable, "-m", "invoke", "graph"], cwd=ROOT, capture_output=True, text=True, check=True)
    return f"```mermaid\n{done.stdout.strip()}\n```"


def excerpt() -> str:
    """Return the committed report's verdict and first table, without the footnotes' marks, which are defined in the report."""
    report = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    head = report[report.index("> [!") : report.index("## Success criteria")]
    return re.sub(r"\[\^\w+\]", "", head.replace("## Performance targets\n\n", "")).strip()


def plan() -> str:
    """Return what `./inv plan` says of the guide's card where no model is on disk and no hub is asked, which is its second line."""
    with TemporaryDirectory() as folder:
        for name in ("tasks.py", "config.yaml", "pipeline"):
            (Path(folder) / name).symlink_to(ROOT / name)
        words = [sys.executable, "-m", "invoke", "plan", "--total-mib", "6141"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    device, _, *rest = done.stdout.splitlines()
    return "\n".join(["```text", device, *rest, "```"])


def auto(*header: str) -> str:
    """Return the rows of gpu.auto as a table."""
    layers = load_layers(ROOT / "config.yaml", {})
    rows = []
    for choice in layers.config(None).gpu.auto:
        config = layers.config(choice.profile)
        card, repo, serve = choice.profile.rpartition("-")[2].removesuffix("gb"), str(config.model.repo), config.serve
        weights = "4 bit (AWQ)" if repo.endswith("-AWQ") else "bf16"
        rows.append(f"| {card} GB | `{choice.profile}` | {repo} | {weights} | {serve.max_model_len} | {serve.max_num_seqs} |")
    return "\n".join([f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * len(header))} |", *rows])


def part(text: str, name: str) -> str:
    """Return what stands between the marks of `name`."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def fill(text: str, parts: dict[str, str]) -> str:
    """Return `text` with each marked part replaced."""
    for name, content in parts.items():
        before, rest = text.split(f"<!-- {name} -->")
        text = f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{rest.split(f'<!-- /{name} -->')[1]}"
    return text


def test_tasks_and_graph_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert part(text, "tasks") == task_table()
    assert part(text, "graph") == graph()


def test_the_plan_is_what_the_command_says() -> None:
    assert part(README.read_text(encoding="utf-8"), "plan") == plan()


def test_the_table_of_cards_is_the_configurations() -> None:
    assert part(README.read_text(encoding="utf-8"), "auto") == auto(*CARDS)
    assert part(TURKISH.read_text(encoding="utf-8"), "auto") == auto(*TURKISH_CARDS)


def test_the_excerpt_is_of_a_real_run() -> None:
    shown = part(README.read_text(encoding="utf-8"), "excerpt")
    assert "TBD" not in shown
    assert re.search(r"\*\*\d[\d.]* ms\*\* \(n = \d+", shown)


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_every_set_key_and_profile_named_in_the_readme_exists() -> None:
    text = README.read_text(encoding="utf-8")
    layers = load_layers(ROOT / "config.yaml", {})
    config = layers.config(None).model_dump()
    for key in re.findall(r"--set ([a-z_]+\.[a-z_]+)=", text):
        section, name = key.split(".")
        assert name in config[section], key
    for profile in re.findall(r"--profile ([a-z0-9.-]+)", text):
        assert profile in layers.profiles or profile == "NAME", profile


if __name__ == "__main__":
    README.write_text(
        fill(
            README.read_text(encoding="utf-8"),
            {"tasks": task_table(), "graph": graph(), "plan": plan(), "auto": auto(*CARDS), "excerpt": excerpt()},
        ),
        encoding="utf-8",
    )
    english = README.read_text(encoding="utf-8")
    TURKISH.write_text(
        fill(TURKISH.read_text(encoding="utf-8"), {name: part(english, name) for name in SHARED} | {"auto": auto(*TURKISH_CARDS)}),
        encoding="utf-8",
    )
