"""`publish` and `env` as a person meets them: real git against a bare remote, a local GitHub, a stand-in for gh."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.client.control import Control
from pipeline.commands.env import env
from pipeline.commands.publish import publish
from pipeline.commands.session import Options
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Outcome
from pipeline.errors import MeasureError, PublishError, ServerError
from pipeline.publish.document import COMMENT_LIMIT, MARKER
from pipeline.publish.github import ThroughRest
from pipeline.redact import KEY_PREFIX
from pipeline.report.stage import Report
from pipeline.server import state
from pipeline.server.keys import make_or_read_key
from pipeline.server.state import Handle
from pipeline.stages.serve import Server
from pipeline.terminal import give
from tests.fakes import fake_gh
from tests.fakes.environment import FakeProject, code_of, simulated_server
from tests.fakes.fake_github import FakeGithub, Refusal
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

BRANCH = "vllm-poc-report"
ORIGIN = "https://github.com/acme/poc.git"
SETTINGS = "profile: cpu\nprofiles: {cpu: {}}\nattach: {url: 'http://gpu-box:8000'}\n"
SECRET = "ghp_" + "a1B2" * 9
MARKDOWN = f"""# vLLM PoC: tiny

![memory](artifacts/plots/memory.svg) [bench](artifacts/bench.json), [json](report.json)
token {SECRET}, /home/lovelace/models, user lovelace, http://gpu-box:8000, 10.1.2.3, http://127.0.0.1:8000
"""
PLANTED = (SECRET, "/home/lovelace", "lovelace", "gpu-box", "10.1.2.3")


class Place:
    """A project with a report, its remote, and the GitHub that both belong to."""

    def __init__(self, folder: Path, github: FakeGithub) -> None:
        self.root, self.remote, self.github = folder / "project", folder / "remote.git", github
        self.git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        self.git(folder, "init", "--quiet", "--initial-branch=main", str(self.root))
        self.git(self.root, "remote", "add", "origin", ORIGIN)
        (self.root / "config.yaml").write_text(SETTINGS, encoding="utf-8")
        (self.root / ".gitignore").write_text("artifacts/\n", encoding="utf-8")
        self.git(self.root, "add", ".")
        self.git(self.root, "commit", "--quiet", "--message", "begun")
        self.git(self.root, "push", "--quiet", "origin", "main")

    def git(self, where: Path, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=where, check=True, capture_output=True, text=True).stdout

    def report(self, markdown: str = MARKDOWN) -> None:
        """Put a report on disk and on record."""
        plot = self.root / "artifacts" / "plots" / "memory.svg"
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text("<svg>user lovelace</svg>", encoding="utf-8")
        (self.root / "REPORT.md").write_text(markdown, encoding="utf-8")
        (self.root / "report.json").write_text(json.dumps({"log": "x\nada 10.1.2.3"}), encoding="utf-8")
        (self.root / "report.html").write_text("<p>lovelace at 10.1.2.3</p>", encoding="utf-8")

    def publish(self, issue: str | None = "132", dry_run: bool = False, repo: str | None = None, branch: str | None = None) -> None:
        assert code_of(publish(self.root, Options(), issue, repo, branch, dry_run)) == 0

    def refuses(self, **given: Any) -> tuple[str, str]:
        """Return what a publish that must fail says, and its hint."""
        with pytest.raises(PublishError) as caught:
            self.publish(**given)
        assert "\n" not in caught.value.message + caught.value.hint
        return caught.value.message, caught.value.hint

    def commits(self, branch: str = BRANCH) -> list[str]:
        """Return the subjects of the commits on the remote's branch, newest first."""
        listed = self.git(self.remote, "for-each-ref", "--format=%(refname)", f"refs/heads/{branch}")
        return self.git(self.remote, "log", "--format=%s", branch).splitlines() if listed else []

    def file(self, path: str, branch: str = BRANCH) -> str:
        return self.git(self.remote, "show", f"{branch}:{path}")


@pytest.fixture
def github() -> Iterator[FakeGithub]:
    with FakeGithub() as made:
        yield made


@pytest.fixture
def place(tmp_path: Path, github: FakeGithub, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place that a token of acme's may publish to; nothing of the machine's own git and GitHub counts."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "GITHUB_", "GH_"))]:
        monkeypatch.delenv(name)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[user]\n  name = Ada\n  email = a@b.example\n[url "{tmp_path}/remote.git"]\n  insteadOf = {ORIGIN}\n', encoding="utf-8"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GITHUB_API_URL", github.api)
    monkeypatch.setenv("GITHUB_TOKEN", github.token)
    monkeypatch.setenv("USER", "lovelace")
    monkeypatch.setattr("pipeline.publish.github.shutil.which", lambda _: None)  # a gh of the machine's own
    made = Place(tmp_path, github)
    made.report()
    record = Report.model_construct(path="REPORT.md", headline="PASS: all 7 required gates pass.", exit_code=0)
    genuine = Pipeline.outcome

    def outcome(self: Pipeline, kind: Any) -> Any:
        found = genuine(self, kind)
        return Outcome("report", record, None) if kind is Report else found

    monkeypatch.setattr(Pipeline, "outcome", outcome)
    return made


def test_publish_commits_and_comments_and_again_changes_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.github.add("hello")
    place.github.add(f"> quoted {MARKER}")
    place.github.add("more")
    place.publish()
    assert place.commits() == ["Report of vLLM PoC: tiny: PASS (#132)", "begun"]
    assert place.git(place.remote, "ls-tree", "-r", "--name-only", BRANCH).split() == [
        *(".gitignore", "REPORT.md", "artifacts/plots/memory.svg", "config.yaml", "report.html", "report.json")
    ]
    (body,) = place.github.bodies(MARKER)
    commit = place.git(place.remote, "rev-parse", BRANCH).strip()
    assert f"![memory](https://github.com/acme/poc/blob/{commit}/artifacts/plots/memory.svg?raw=true)" in body
    assert "made the comment on acme/poc#132\nhttps://github.com/acme/poc/issues/132#issuecomment-4" in capsys.readouterr().out
    place.publish("#132")
    assert len(place.commits()) == 2
    assert place.github.bodies(MARKER) == [body]
    assert len(place.github.comments) == 4
    said = capsys.readouterr().out
    assert f"{BRANCH} of acme/poc holds this report already, no new commit" in said
    assert "updated the comment on acme/poc#132\n" in said


def test_what_is_published_is_scrubbed(place: Place) -> None:
    place.publish()
    everything = "".join(place.file(name) for name in ("REPORT.md", "report.json", "report.html", "artifacts/plots/memory.svg"))
    everything += place.git(place.remote, "log", "-1", "--format=%B", BRANCH) + place.github.bodies(MARKER)[0]
    assert [planted for planted in PLANTED if planted in everything] == []
    assert "token [redacted], ~/models, user [user], http://[host]:8000, [address], http://127.0.0.1:8000" in everything


def test_the_host_of_a_server_on_record_is_scrubbed_too(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `--attach`, which is not remembered."""
    with FakeVllm() as fake:
        server = simulated_server(fake, FakeProject(tmp_path / "other").workspace)
    handle = server.handle.model_copy(update={"base_url": "http://lab-7:8000"})
    genuine, record = Pipeline.outcome, Outcome("serve", server.model_copy(update={"handle": handle}), None)
    monkeypatch.setattr(Pipeline, "outcome", lambda self, kind: record if kind is Server else genuine(self, kind))
    place.report("# Measured at http://lab-7:8000/v1\n")
    place.publish()
    assert place.file("REPORT.md") == "# Measured at http://[host]:8000/v1\n"


def test_a_commit_without_a_name_in_the_settings_tells_nothing_of_the_machine(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Path(os.environ["GIT_CONFIG_GLOBAL"])
    _, _, rest = settings.read_text(encoding="utf-8").partition("[url")
    settings.write_text(f"[url{rest}", encoding="utf-8")
    place.publish()
    assert (
        place.git(place.remote, "log", "-1", "--format=%an %ae %cn %ce", BRANCH)
        == "vllm-poc vllm-poc@localhost vllm-poc vllm-poc@localhost\n"
    )


def test_the_users_work_is_left_alone(place: Place) -> None:
    (place.root / "config.yaml").write_text(SETTINGS + "# changed\n", encoding="utf-8")
    (place.root / "staged").write_text("x", encoding="utf-8")
    place.git(place.root, "add", "staged")
    looked_at = [("status", "--porcelain"), ("for-each-ref",), ("rev-parse", "HEAD"), ("stash", "list"), ("worktree", "list")]
    before = [place.git(place.root, *words) for words in looked_at]
    place.publish()
    assert [place.git(place.root, *words) for words in looked_at] == before
    assert "# changed" not in place.file("config.yaml")


def test_dry_run_shows_all_and_does_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.github.add(f"{MARKER}\nold")
    place.publish(dry_run=True)
    said = capsys.readouterr().out
    assert said.startswith(f"dry run, nothing is published\nwould push to {BRANCH} of acme/poc:\n REPORT.md ")
    assert "with the message:\n  Report of vLLM PoC: tiny: PASS (#132)\n" in said
    assert "would update https://github.com/acme/poc/issues/132#issuecomment-1:\n<!-- vllm-poc:report -->\n# vLLM PoC: tiny\n" in said
    assert place.commits() == []
    assert set(place.github.requests) == {"GET issue", "GET comments"}


def test_without_a_login_it_is_a_dry_run(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GITHUB_TOKEN")
    place.publish()
    said = capsys.readouterr().out
    assert said.startswith("dry run, nothing is published (no login: set GITHUB_TOKEN or GH_TOKEN, or run `gh auth login`)\n")
    assert "would comment on acme/poc#132 (or update the comment that is there):" in said
    assert (place.commits(), place.github.requests) == ([], [])


@pytest.fixture
def gh(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place with a gh that has a login, and no token in the environment."""
    monkeypatch.delenv("GITHUB_TOKEN")
    program = tmp_path / "bin" / "gh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_gh.__file__} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("pipeline.publish.github.shutil.which", lambda _: str(program))
    monkeypatch.setenv("FAKE_GH_API", place.github.api)
    monkeypatch.setenv("FAKE_GH_TOKEN", place.github.token)
    return place


def test_gh_is_the_way_where_it_has_a_login(gh: Place) -> None:
    gh.github.add("one")
    gh.github.add("two")
    gh.publish()
    gh.publish()
    assert gh.github.requests == [
        *("GET issue", "GET comments", "POST comments"),
        *("GET issue", "GET comments", "GET comments", "PATCH comment"),
    ]
    assert len(gh.github.bodies(MARKER)) == 1


def test_gh_without_a_login_gives_way_to_the_token(gh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_GH_TOKEN")
    monkeypatch.setenv("GH_TOKEN", gh.github.token)
    gh.publish()
    assert len(gh.github.bodies(MARKER)) == 1


def test_what_gh_is_refused_is_one_line(gh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gh.github.refusals["GET issue"] = Refusal(429, "Slow down", (("Retry-After", "9"),))
    assert gh.refuses() == ("GitHub's rate limit is reached (HTTP 429: Slow down)", "repeat in 9 s")
    monkeypatch.setenv("FAKE_GH_API", "http://127.0.0.1:1")
    assert gh.refuses()[0].startswith("GitHub at github.com cannot be reached (")


@pytest.mark.parametrize(("given", "says"), [({"issue": None}, "which issue?"), ({"issue": "x"}, "no issue has the number 'x'")])
def test_no_issue_is_one_line(place: Place, given: dict[str, Any], says: str) -> None:
    assert place.refuses(**given) == (says, "for example `./inv publish --issue 132`")


def test_another_issue_is_not_there_and_nothing_is_pushed(place: Place) -> None:
    assert place.refuses(issue="7")[0] == "there is no issue acme/poc#7 for this login (HTTP 404: Not Found)"
    assert place.commits() == []


def test_a_wrong_token_is_one_line_and_nothing_is_pushed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "wrong-token")
    assert place.refuses()[0] == "GitHub does not take the login (HTTP 401: Bad credentials)"
    assert place.commits() == []


def test_a_locked_issue_is_one_line_and_nothing_is_pushed(place: Place) -> None:
    place.github.locked = True
    assert place.refuses()[0] == "issue acme/poc#132 is locked, so it takes no comment; nothing was published"
    assert place.commits() == []


def test_a_closed_issue_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.github.state = "closed"
    place.publish()
    assert "made the comment on acme/poc#132, which is closed\n" in capsys.readouterr().out


def test_no_network_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:1")
    assert place.refuses()[0] == "GitHub at http://127.0.0.1:1 cannot be reached (ConnectionError)"
    assert place.commits() == []


def test_an_answer_that_is_not_githubs_is_one_line(place: Place) -> None:
    place.github.refusals["GET issue"] = Refusal(200, body="<html>Welcome to our WLAN</html>")
    message, hint = place.refuses()
    assert message.startswith("what answers for acme/poc#132 is not GitHub's API: '<html>")
    assert "GITHUB_API_URL" in hint


def test_a_comment_that_fails_leaves_the_push_and_repeating_mends_it(place: Place) -> None:
    place.github.refusals["POST comments"] = Refusal(403, "Resource not accessible")
    message, hint = place.refuses()
    assert message.startswith("the report is pushed, but not the comment: this login may not comment on acme/poc#132 (HTTP 403")
    assert hint.endswith("repeating is safe: it makes no second commit and no second comment")
    assert len(place.commits()) == 2
    place.github.refusals.clear()
    place.publish()
    assert (len(place.commits()), len(place.github.bodies(MARKER))) == (2, 1)


def test_a_report_too_long_for_a_comment_is_committed_whole(place: Place) -> None:
    place.report("# Long\n" + "a line of the report\n" * 5000)
    place.publish()
    (body,) = place.github.bodies(MARKER)
    commit = place.git(place.remote, "rev-parse", BRANCH).strip()
    assert len(body) <= COMMENT_LIMIT
    assert body.endswith(f"was cut here; [all of it](https://github.com/acme/poc/blob/{commit}/REPORT.md).\n")
    assert place.file("REPORT.md").count("a line") == 5000


def test_a_push_that_is_refused_is_one_line(place: Place) -> None:
    hook = place.remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'branch is protected' >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    message, hint = place.refuses()
    assert message.startswith(f"git may not push to {ORIGIN}: ")
    assert "pre-receive hook declined" in message
    assert message.endswith("; nothing was published")
    assert "Contents: write" in hint
    assert (place.commits(), place.github.bodies(MARKER)) == ([], [])


def test_a_remote_that_is_not_there_is_one_line(place: Place) -> None:
    place.remote.rename(place.remote.with_name("gone"))
    assert place.refuses()[0].startswith(f"git may not read {ORIGIN}: ")


def test_a_host_that_cannot_be_reached_is_one_line(place: Place) -> None:
    settings = Path(os.environ["GIT_CONFIG_GLOBAL"])
    settings.write_text('[url "http://127.0.0.1:1/"]\n  insteadOf = https://github.com/\n[http]\n  proxy = ""\n', encoding="utf-8")
    message, hint = place.refuses(dry_run=True)
    assert message.startswith(f"{ORIGIN} cannot be reached: ")
    assert hint == "check the network, then repeat"


MOVER = """#!/bin/sh
# The real git, before whose push (each time, or the first) somebody else pushes.
if [ "$1" = push ] && { [ -n "$ALWAYS" ] || [ ! -e "$MARK" ]; }; then
    touch "$MARK"
    tip=$("$GIT" --git-dir="$REMOTE" rev-parse -q --verify refs/heads/%(branch)s || "$GIT" --git-dir="$REMOTE" rev-parse main)
    new=$(echo "somebody else's $$" | "$GIT" --git-dir="$REMOTE" commit-tree "$tip^{tree}" -p "$tip")
    "$GIT" --git-dir="$REMOTE" update-ref refs/heads/%(branch)s "$new"
fi
exec "$GIT" "$@"
"""


@pytest.fixture
def moving(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place whose remote branch moves just before a push."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(MOVER % {"branch": BRANCH}, encoding="utf-8")
    program.chmod(0o755)
    found = next(path for folder in os.environ["PATH"].split(":") if (path := Path(folder) / "git").exists())
    for name, value in {"GIT": found, "REMOTE": place.remote, "MARK": tmp_path / "mark"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return place


def test_a_branch_that_moved_meanwhile_is_fetched_and_pushed_to_again(moving: Place) -> None:
    moving.publish()
    first, second, _ = moving.commits()
    assert first == "Report of vLLM PoC: tiny: PASS (#132)"
    assert second.startswith("somebody else's")


def test_a_branch_that_moves_each_time_is_one_line(moving: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALWAYS", "1")
    assert moving.refuses()[0] == f"the branch {BRANCH} moves faster than we push; nothing was published"
    assert moving.github.bodies(MARKER) == []


def test_another_branch_and_folder(place: Place) -> None:
    assert code_of(publish(place.root, Options(sets=("publish.path=docs/poc",)), "132", None, "on", False)) == 0
    assert place.file("docs/poc/REPORT.md", "on").startswith("# vLLM PoC: tiny\n")
    assert "/docs/poc/artifacts/plots/memory.svg?raw=true" in place.github.bodies(MARKER)[0]


def test_a_name_that_no_branch_can_have_is_one_line(place: Place) -> None:
    assert place.refuses(branch="a..b")[0] == "'a..b' is no name for a branch"


def test_an_empty_repository_gets_its_first_commit(place: Place) -> None:
    place.git(place.remote, "update-ref", "-d", "refs/heads/main")
    place.publish()
    assert place.commits() == ["Report of vLLM PoC: tiny: PASS (#132)"]


@pytest.mark.parametrize(
    ("markdown", "says"),
    [
        ("![x](plots/no.png)", "shows plots/no.png, which is not there"),
        ("![x](../x.png)", "shows ../x.png, which lies outside the project"),
    ],
)
def test_an_image_that_cannot_be_published_is_one_line(place: Place, markdown: str, says: str) -> None:
    place.report(markdown)
    message, hint = place.refuses()
    assert says in message
    assert hint == "render it again: `./inv report --only`"


def test_a_report_that_is_gone_or_broken_is_one_line(place: Place) -> None:
    (place.root / "report.json").write_text("{", encoding="utf-8")
    assert place.refuses()[0] == "report.json is not readable JSON; nothing was published"
    (place.root / "REPORT.md").unlink()
    assert place.refuses()[0] == "REPORT.md is gone"


def test_no_report_yet_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "outcome", lambda *_: Outcome("report", None, None))
    assert place.refuses()[0] == "there is no report yet"


def test_no_git_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place.root))
    assert place.refuses() == ("git is not installed", "install it (Debian, Ubuntu: `sudo apt install git`)")


def test_the_token_goes_where_netrc_says_otherwise(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    assert ThroughRest(place.github.api, place.github.token).request("GET", "repos/acme/poc/issues/132").status == 200


# env.


def evaluated(text: str, **variables: str) -> dict[str, str]:
    """Return what a shell has after `eval` of the text."""
    script = 'eval "$TEXT"; env'
    environment = {"PATH": os.environ["PATH"], "TEXT": text, **variables}
    done = subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs if name.startswith(("OPENAI_", "VLLM_")) and name != "VLLM_API_KEY"}


def a_launch(**changes: Any) -> state.Launch:
    """Return a launch that lives as long as this process."""
    own = psutil.Process()
    settings = {"host": changes.get("host", "127.0.0.1")}
    return state.Launch.model_validate(
        {
            **{"id": "a", "pid": own.pid, "created": state.created_s(own.pid), "boot": state.boot_id(), "host": "127.0.0.1", "port": 8123},
            **{"model": "a model's name", "log": "", "command": [], "settings": settings, "started": "2026-01-01T00:00:00Z", **changes},
        }
    )


@pytest.fixture
def bare(tmp_path: Path) -> FakeProject:
    made = FakeProject(tmp_path)
    (made.workspace.root / "config.yaml").write_text("profiles: {cpu: {}}\n", encoding="utf-8")
    return made


def printed(project: FakeProject, capsys: pytest.CaptureFixture[str], *sets: str, show_key: bool = False, as_json: bool = False) -> str:
    answer = env(project.workspace.root, Options(sets=sets), show_key)
    assert answer.code == 0
    give(answer, as_json)
    return capsys.readouterr().out


def test_env_of_a_running_server(bare: FakeProject, capsys: pytest.CaptureFixture[str]) -> None:
    state.write(bare.workspace, a_launch())
    expected = {
        "OPENAI_BASE_URL": "http://127.0.0.1:8123/v1",
        "OPENAI_API_KEY": "EMPTY",
        "VLLM_BASE_URL": "http://127.0.0.1:8123",
        "VLLM_MODEL": "a model's name",
    }
    assert evaluated(printed(bare, capsys)) == expected
    assert json.loads(printed(bare, capsys, as_json=True)) == expected


def test_env_of_an_open_server_shows_its_key_only_when_asked(bare: FakeProject, capsys: pytest.CaptureFixture[str]) -> None:
    state.write(bare.workspace, a_launch(host="0.0.0.0"))
    key = make_or_read_key(bare.workspace)
    assert key.startswith(KEY_PREFIX)
    hidden = printed(bare, capsys)
    assert key not in hidden
    assert evaluated(hidden)["OPENAI_API_KEY"] == key
    assert json.loads(printed(bare, capsys, as_json=True))["OPENAI_API_KEY"] is None
    assert f"export OPENAI_API_KEY={key}\n" in printed(bare, capsys, show_key=True)
    assert json.loads(printed(bare, capsys, show_key=True, as_json=True))["OPENAI_API_KEY"] == key


def test_env_of_an_attached_server_asks_it_for_its_model(
    bare: FakeProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "their key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeVllm(Script()) as fake:
        text = printed(bare, capsys, f"attach.url={fake.base_url}")
        found = evaluated(text, VLLM_API_KEY="their key")
    assert "their key" not in text
    assert (found["VLLM_MODEL"], found["VLLM_BASE_URL"], found["OPENAI_API_KEY"]) == (fake.model, fake.base_url, "their key")


def test_env_of_a_server_on_record_says_that_it_does_not_run(
    bare: FakeProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeVllm(Script()) as fake:
        server = simulated_server(fake, bare.workspace)
    assert isinstance(server.handle, Handle)
    genuine = Pipeline.outcome
    monkeypatch.setattr(Pipeline, "outcome", lambda self, kind: Outcome("serve", server, None) if kind is Server else genuine(self, kind))
    assert code_of(env(bare.workspace.root, Options(), False)) == 0
    said = capsys.readouterr()
    assert evaluated(said.out)["VLLM_BASE_URL"] == server.handle.base_url
    assert said.err == "the server is not running: start it with `./inv serve`\n"


def test_env_of_an_attached_server_without_a_model_is_one_line(bare: FakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Control, "models", lambda _: [])
    with pytest.raises(ServerError, match="the server at http://gpu-box:8000 names no model"):
        env(bare.workspace.root, Options(sets=("attach.url=http://gpu-box:8000",)), False)


def test_env_of_an_attached_server_that_is_not_there_is_one_line(bare: FakeProject) -> None:
    with pytest.raises(MeasureError, match=r"http://127\.0\.0\.1:1/v1/models: ConnectionError"):
        env(bare.workspace.root, Options(sets=("attach.url=http://127.0.0.1:1",)), False)


def test_env_without_a_server_is_one_line(bare: FakeProject) -> None:
    with pytest.raises(ServerError, match="there is no server yet") as caught:
        env(bare.workspace.root, Options(), False)
    assert "./inv serve" in caught.value.hint
