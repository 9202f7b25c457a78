"""The generated parts of the pages for people: what the code and the configuration say, between `<!-- name -->` and `<!-- /name -->`."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel

import tasks
from pipeline.config.layers import load_layers
from pipeline.config.schema import Config

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "README.md"
TURKISH = ROOT / "README.tr.md"
DOCS = ROOT / "docs"
GENERATED = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)
CARDS = ("card", "profile", "model", "weights", "context", "sequences")
TURKISH_CARDS = ("kart", "profil", "model", "ağırlıklar", "bağlam", "eşzamanlı istek")


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def said(*words: str, **variables: str) -> str:
    """Return what a command of the project prints."""
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def commands() -> str:
    """Return the commands as a table, from the collection itself."""
    names = sorted(tasks.namespace.task_names)
    return table(("command", "does"), [(f"`{name}`", str(tasks.namespace[name].__doc__).splitlines()[0].rstrip(".")) for name in names])


def options() -> str:
    """Return the options that single commands have beside the common ones."""
    common = re.findall(r"^\| `--([a-z]+)", page_of("commands").split("## Common options")[1], re.MULTILINE)
    rows = []
    for name in sorted(tasks.namespace.task_names):
        for argument in tasks.namespace[name].get_arguments():
            if argument.name not in common:
                value = "" if argument.kind is bool else f" {argument.name.upper().replace('-', '_')}"
                rows.append((f"`{name}`", f"`--{argument.name.replace('_', '-')}{value}`", argument.help))
    return table(("command", "option", "effect"), rows)


def page_of(name: str) -> str:
    """Return the text of a page of the reference."""
    return (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8")


def graph() -> str:
    """Return the stages' graph as a mermaid block."""
    return f"```mermaid\n{said('-m', 'invoke', 'graph')}\n```"


def excerpt() -> str:
    """Return the committed report's verdict and first table, without the footnotes' marks, which are defined in the report."""
    report = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    head = report[report.index("> [!") : report.index("## Success criteria")]
    return re.sub(r"\[\^\w+\]", "", head.replace("## Performance targets\n\n", "")).strip()


def plan() -> str:
    """Return what `./inv plan` says of the guide's card where no model is on disk and no hub is asked, which is its second line."""
    with TemporaryDirectory() as folder:
        for name in ("config.yaml", "pipeline"):
            (Path(folder) / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "tasks.py", folder)  # the project is where this file is: a link would lead to our own models
        words = [sys.executable, "-m", "invoke", "plan", "--total-mib", "6141"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    device, _, *rest = done.stdout.splitlines()
    return "\n".join(["```text", device, *rest, "```"])


def cards(*header: str) -> str:
    """Return the rows of gpu.auto as a table."""
    layers = load_layers(ROOT / "config.yaml", {})
    rows = []
    for choice in layers.config(None).gpu.auto:
        config = layers.config(choice.profile)
        card, repo, serve = choice.profile.rpartition("-")[2].removesuffix("gb"), str(config.model.repo), config.serve
        weights = "4 bit (AWQ)" if repo.endswith("-AWQ") else "bf16"
        rows.append((f"{card} GB", f"`{choice.profile}`", repo, weights, str(serve.max_model_len), str(serve.max_num_seqs)))
    return table(header, rows)


def gates() -> str:
    """Return the default gates as a table."""
    rows = []
    for gate in load_layers(ROOT / "config.yaml", {}).config(None).gates.root.values():
        target = gate.target if isinstance(gate.target, str) else f"{gate.target:g} {gate.unit}"
        required = "yes" if gate.required else "no"
        rows.append(
            (gate.label, f"`{gate.metric}`", gate.statistic, f"`{gate.comparator} {target}`", gate.judge_by, str(gate.min_n), required)
        )
    return table(("gate", "metric", "statistic", "target", "judged by", "least n", "required"), rows)


def sections() -> str:
    """Return the sections of the settings with the names in each."""
    rows = []
    for name, field in Config.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        names = ", ".join(f"`{one}`" for one in kind.model_fields if one != "root") or "–"
        rows.append((f"`{name}`", (kind.__doc__ or "").splitlines()[0].rstrip("."), names))
    return table(("section", "about", "settings"), rows)


def floors() -> str:
    """Return the floors of the house, the highest first, as import-linter checks them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    return "\n".join(f"1. {', '.join(f'`{room.strip()}`' for room in re.split('[:|]', layer))}" for layer in contract["layers"])


PARTS: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"excerpt": excerpt, "graph": graph, "auto": lambda: cards(*CARDS)},
    TURKISH: {"excerpt": excerpt, "graph": graph, "auto": lambda: cards(*TURKISH_CARDS)},
    DOCS / "how-to" / "choose-a-model.md": {"plan": plan},
    DOCS / "explanation" / "architecture.md": {"floors": floors},
    DOCS / "reference" / "commands.md": {"tasks": commands, "options": options},
    DOCS / "reference" / "gates.md": {"gates": gates},
    DOCS / "reference" / "profiles.md": {"auto": lambda: cards(*CARDS)},
    DOCS / "reference" / "settings.md": {"sections": sections},
}


def part(text: str, name: str) -> str:
    """Return what stands between the marks of `name`."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].removesuffix("\n")


def fill(text: str, name: str, content: str) -> str:
    """Return `text` with the marked part replaced."""
    before, rest = text.split(f"<!-- {name} -->")
    return f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{rest.split(f'<!-- /{name} -->')[1]}"
