"""Publication of a report: a commit on a branch, then one comment on an issue. It is safe to repeat."""

import getpass
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.config.schema import SECRET_NAME, PublishConfig
from pipeline.errors import PublishError
from pipeline.publish import document
from pipeline.publish.github import HostedRepository, Thread, ThroughGh, ThroughRest
from pipeline.publish.repository import Commit, MovedError, Repository, inherited_settings, sign, through_gh
from pipeline.publish.scrub import Private, scrub, scrubbed_json

BESIDE = ("report.json", "report.html")  # files beside the report that are published with it
UNKNOWN = "COMMIT"  # stands for the commit's id in a dry run
RENDER_AGAIN = "./inv report --only"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Publication:
    """What is published, scrubbed: files by their path in the target, the report's path and text, the commit message."""

    files: Mapping[PurePosixPath, bytes]
    report: str
    markdown: str
    message: str


@dataclass(frozen=True)
class PublishOrder:
    """Where and how to publish; without a transport to the API, publishing can only be previewed."""

    target: HostedRepository
    remote: str
    settings: PublishConfig
    issue: int
    project: Path
    transport: ThroughGh | ThroughRest | None
    token: str | None

    @property
    def git_settings(self) -> list[tuple[str, str]]:
        """Return the git settings for the remote, including GitHub's login if the remote is on that server."""
        own = inherited_settings(self.project)
        if not self.remote.startswith(f"{self.target.server}/"):
            return own
        if isinstance(self.transport, ThroughGh):
            return own + through_gh(self.target)
        return own + (sign(self.target, self.token) if self.token else [])


def private_here(project: Path, hosts: Iterable[str], key_file: Path, environment: Mapping[str, str] = os.environ) -> Private:
    """Return the private data of this machine and its environment; `hosts` are those named in the settings."""
    name = socket.gethostname()
    users = [environment.get(variable, "") for variable in ("USER", "LOGNAME", "SUDO_USER")]
    with suppress(KeyError, OSError):  # a user without a name, as in containers
        users.append(getpass.getuser())
    secrets = [value for variable, value in environment.items() if SECRET_NAME.search(variable)]
    with suppress(OSError):
        secrets.append(key_file.read_text(encoding="utf-8").strip())
    return Private(
        users=tuple(users),
        hosts=(name, name.partition(".")[0], *hosts),
        homes=tuple({environment.get("HOME", ""), os.path.expanduser("~")}),  # noqa: PTH111  Path.home() raises if there is none
        secrets=tuple(secrets),
        project=str(project),
    )


def gathered(project: Path, path: str, headline: str, order: PublishOrder, private: Private) -> Publication:
    """Return what to publish of the report at `path`; raise PublishError if a part of it is missing."""
    report = project / path
    # Paths in the target are those in the project; for a report outside it, those in the report's own folder.
    base = (project if report.resolve().is_relative_to(project.resolve()) else report.parent).resolve()
    name = report.resolve().relative_to(base).as_posix()
    try:
        markdown = report.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PublishError(f"{path} is gone", f"render it again: `{RENDER_AGAIN}`") from None
    files = {name: report}
    for image in document.images(markdown):
        file = (report.parent / image).resolve()
        if not file.is_relative_to(base) or not file.is_file():
            where = "is not there" if file.is_relative_to(base) else "lies outside the project"
            raise PublishError(f"the report shows {image}, which {where}; nothing was published", f"render it again: `{RENDER_AGAIN}`")
        files[file.relative_to(base).as_posix()] = file
    for other in BESIDE:
        if report.with_name(other).is_file():
            files[document.resolve(name, other)] = report.with_name(other)
    folder = PurePosixPath(order.settings.path)
    markdown = scrub(document.with_links_to(markdown, name, files), private)
    contents = {folder / key: content_of(file, private) for key, file in files.items()}
    contents[folder / name] = markdown.encode()
    message = document.message(markdown, scrub(headline, private), order.issue)
    return Publication(contents, (folder / name).as_posix(), markdown, message)


def content_of(file: Path, private: Private) -> bytes:
    """Return the file's content, scrubbed if it is text."""
    content = file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    if file.suffix == ".json":
        try:
            return scrubbed_json(text, private).encode()
        except ValueError:
            raise PublishError(f"{file.name} is not readable JSON; nothing was published", f"render it again: `{RENDER_AGAIN}`") from None
    return scrub(text, private).encode()


def comment_of(publication: Publication, target: HostedRepository, commit: str) -> str:
    """Return the comment's text, with links into that commit."""
    base = f"{target.web}/blob/{commit}"
    text = document.with_absolute_links(publication.markdown, publication.report, base)
    return document.comment(text, f"{base}/{publication.report}")


def push_report(publication: Publication, order: PublishOrder, transport: ThroughGh | ThroughRest, say: Say) -> None:
    """Push the report, then create or update the comment; if only the push succeeds, PublishError says so."""
    thread = Thread(transport, order.target, order.issue)
    issue, earlier = thread.issue(), thread.comment()
    with tempfile.TemporaryDirectory(prefix="vllm-poc-publish-") as folder:
        repository = Repository(Path(folder), order.remote, order.settings.branch, order.git_settings)
        commit = push_commit(repository, publication)
    link = f"{order.target.web}/blob/{commit.id}/{publication.report}"
    if commit.is_new:
        subject = publication.message.partition("\n")[0]
        say(f"pushed to {order.settings.branch} of {order.target.repo}: {subject}\n{commit.stat}\n{link}")
    else:
        say(f"{order.settings.branch} of {order.target.repo} holds this report already, no new commit\n{link}")
    try:
        comment = thread.say(comment_of(publication, order.target, commit.id), earlier)
    except PublishError as error:
        repeat = "repeating is safe: it makes no second commit and no second comment"
        raise PublishError(f"the report is pushed, but not the comment: {error.message}", f"{error.hint}; {repeat}") from error
    closed = ", which is closed" if issue.state == "closed" else ""
    say(f"{'updated' if earlier else 'made'} the comment on {thread.where}{closed}\n{comment.html_url}")


def push_commit(repository: Repository, publication: Publication) -> Commit:
    """Return the commit that holds the report, pushed if it is new; try again once if the branch moved meanwhile."""
    for _ in range(2):
        commit = repository.commit(publication.files, publication.message)
        try:
            if commit.is_new:
                repository.push(commit)
            return commit
        except MovedError:
            continue
    raise PublishError(f"the branch {repository.branch} moves faster than we push; nothing was published", "repeat when it is quiet")


def show_report(publication: Publication, order: PublishOrder, say: Say) -> None:
    """Print what publishing would do, without doing it; requests that change nothing are made."""
    with tempfile.TemporaryDirectory(prefix="vllm-poc-publish-") as folder:
        repository = Repository(Path(folder), order.remote, order.settings.branch, order.git_settings)
        commit = repository.commit(publication.files, publication.message)
    where = f"{order.settings.branch} of {order.target.repo}"
    say(f"would push to {where}:\n{commit.stat}" if commit.is_new else f"{where} holds this report already, no new commit")
    if commit.is_new:
        say("with the message:\n" + "\n".join(f"  {line}".rstrip() for line in publication.message.splitlines()))
    say(f"would {comment_plan(order)}:\n{comment_of(publication, order.target, UNKNOWN if commit.is_new else commit.id)}")


def comment_plan(order: PublishOrder) -> str:
    """Return what would happen to the comment, as far as that can be known."""
    where = f"{order.target.repo}#{order.issue}"
    if order.transport is None:
        return f"comment on {where} (or update the comment that is there)"
    thread = Thread(order.transport, order.target, order.issue)
    issue, earlier = thread.issue(), thread.comment()
    closed = ", which is closed" if issue.state == "closed" else ""
    return f"update {earlier.html_url}{closed}" if earlier else f"comment on {where}{closed}"
