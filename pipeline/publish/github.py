"""A client for an issue on GitHub and our comment on it, through `gh` or the REST API."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import PublishError
from pipeline.publish.document import MARKER
from pipeline.values import Lenient

TIMEOUT_S = 30.0
PER_PAGE = 100
TOKENS = ("GITHUB_TOKEN", "GH_TOKEN")
REMOTES = (
    r"https?://(?:[^@/]*@)?(?P<host>[^/]+)/",
    r"ssh://(?:[^@/]*@)?(?P<host>[^/:]+)(?::\d+)?/",
    r"[^@/:]+@(?P<host>[^/:]+):",
)
T = TypeVar("T")


class Issue(Lenient):
    """The fields of an issue that we use."""

    html_url: str
    state: str
    locked: bool = False


class Comment(Lenient):
    """The fields of a comment that we use."""

    id: int
    html_url: str
    body: str | None = None

    @property
    def is_ours(self) -> bool:
        return (self.body or "").startswith(MARKER)


@dataclass(frozen=True)
class Reply:
    """A response of the API; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str


class Transport(Protocol):
    """A way to send requests to the API."""

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> Reply: ...


@dataclass(frozen=True)
class HostedRepository:
    """A repository on a GitHub server; the server's URL has no trailing slash."""

    server: str
    repo: str

    @property
    def web(self) -> str:
        return f"{self.server}/{self.repo}"

    @property
    def host(self) -> str:
        return urlsplit(self.server).netloc

    @property
    def api(self) -> str:
        return "https://api.github.com" if self.host == "github.com" else f"{self.server}/api/v3"


def repository_in(remote: str) -> tuple[str, str] | None:
    """Return the host and owner/name in a git remote's URL, or None if there are none."""
    for form in REMOTES:
        found = re.fullmatch(rf"{form}(?P<repo>[^/]+/[^/]+?)(?:\.git)?/?", remote)
        if found:
            return found["host"], found["repo"]
    return None


def target_of(origin: str | None, repo: str | None, environment: Mapping[str, str]) -> HostedRepository:
    """Return the repository named by the setting, else by the remote origin; raise PublishError if neither names one."""
    host, origin_repo = repository_in(origin or "") or ("github.com", None)
    if repo is None and origin_repo is None:
        what = "the git remote origin names no repository on GitHub" if origin else "there is no git remote origin"
        raise PublishError(f"where to publish is not known: {what}", "name one: --repo owner/name, or publish.repo in config.yaml")
    return HostedRepository(environment.get("GITHUB_SERVER_URL", "").rstrip("/") or f"https://{host}", repo or origin_repo or "")


def remote_of(origin: str | None, target: HostedRepository) -> str:
    """Return the URL to push to: origin's if it is the target's, because its login is set up, else the target's own."""
    _, origin_repo = repository_in(origin or "") or ("", "")
    return origin if origin and origin_repo.lower() == target.repo.lower() else f"{target.web}.git"


class ThroughGh:
    """The API through `gh`, with its stored login."""

    def __init__(self, host: str) -> None:
        self.host = host

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> Reply:
        command = ["gh", "api", "--hostname", self.host, "--include", "--method", method, path]
        command += ["--input", "-"] if payload is not None else []
        try:
            result = subprocess.run(command, input=json.dumps(payload or {}), capture_output=True, text=True, timeout=2 * TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise unreachable(self.host, "gh does not end") from None
        head, _, body = result.stdout.replace("\r\n", "\n").partition("\n\n")
        first, *rest = head.splitlines() or [""]
        status = re.match(r"HTTP/[\d.]+ (\d{3})", first)
        if status is None:
            raise unreachable(self.host, (result.stderr.strip().splitlines() or ["gh says nothing"])[-1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        return Reply(int(status.group(1)), headers, body)


class ThroughRest:
    """The REST API, with a token."""

    def __init__(self, api: str, token: str) -> None:
        import requests

        self._requests = requests
        self.api = api.rstrip("/")
        self._session = requests.Session()
        self._session.headers.update({"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"})

        def add_token(request: "requests.PreparedRequest") -> "requests.PreparedRequest":
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        self._session.auth = add_token  # ~/.netrc would override a header of the session

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> Reply:
        try:
            response = self._session.request(method, f"{self.api}/{path}", json=payload, timeout=TIMEOUT_S)
        except self._requests.RequestException as error:
            raise unreachable(self.api, type(error).__name__) from error
        return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.text)


def token_of(environment: Mapping[str, str]) -> str | None:
    """Return the token in the environment, if any."""
    return next((environment[name] for name in TOKENS if environment.get(name)), None)


def transport_to(target: HostedRepository, environment: Mapping[str, str] = os.environ) -> ThroughGh | ThroughRest | None:
    """Return a transport to the API: gh if it has a login, else REST with a token; None without either."""
    if shutil.which("gh"):
        # Unlike `gh auth status` this needs no network, so a network failure is reported as one.
        login = subprocess.run(["gh", "auth", "token", "--hostname", target.host], capture_output=True, stdin=subprocess.DEVNULL)
        if login.returncode == 0:
            return ThroughGh(target.host)
    token = token_of(environment)
    return ThroughRest(environment.get("GITHUB_API_URL") or target.api, token) if token else None


class Thread:
    """One issue and its comments; a refusal by the API raises a PublishError in one line."""

    def __init__(self, transport: Transport, target: HostedRepository, number: int) -> None:
        self.transport = transport
        self.where = f"{target.repo}#{number}"
        self.repo, self.number = target.repo, number

    def issue(self) -> Issue:
        """Return the issue; raise PublishError if it is locked."""
        issue = self._parse(Issue, self._request("GET", f"repos/{self.repo}/issues/{self.number}"))
        if issue.locked:
            raise PublishError(
                f"issue {self.where} is locked, so it takes no comment; nothing was published", "unlock it, or name another issue"
            )
        return issue

    def comment(self) -> Comment | None:
        """Return our comment, if there is one."""
        page, more = 1, True
        while more:
            answer = self._request("GET", f"repos/{self.repo}/issues/{self.number}/comments?per_page={PER_PAGE}&page={page}")
            for comment in self._parse(list[Comment], answer):
                if comment.is_ours:
                    return comment
            page, more = page + 1, 'rel="next"' in answer.headers.get("link", "")
        return None

    def say(self, body: str, earlier: Comment | None) -> Comment:
        """Create our comment with `body`, or update the earlier one."""
        if earlier is not None:
            return self._parse(Comment, self._request("PATCH", f"repos/{self.repo}/issues/comments/{earlier.id}", {"body": body}))
        return self._parse(Comment, self._request("POST", f"repos/{self.repo}/issues/{self.number}/comments", {"body": body}))

    def _request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> Reply:
        answer = self.transport.request(method, path, payload)
        if 200 <= answer.status < 300:
            return answer
        raise refusal(answer, self.where, "read" if method == "GET" else "comment on")

    def _parse(self, kind: type[T], answer: Reply) -> T:
        try:
            return TypeAdapter(kind).validate_json(answer.body)
        except ValidationError as error:
            raise PublishError(
                f"what answers for {self.where} is not GitHub's API: {answer.body[:60]!r}", "check GITHUB_API_URL and the proxy settings"
            ) from error


def unreachable(where: str, why: str) -> PublishError:
    """Return the error for an API that cannot be reached."""
    return PublishError(
        f"GitHub at {where} cannot be reached ({why})", "check the network, the proxy settings and GITHUB_API_URL, then repeat"
    )


def refusal(answer: Reply, where: str, what: str) -> PublishError:
    """Return the error for an unsuccessful response, with what the user can do about it."""
    text = error_text(answer.body)
    status = f"HTTP {answer.status}{f': {text}' if text else ''}"
    limited = "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0" or "rate limit" in text.lower()
    if answer.status == 429 or (answer.status == 403 and limited):
        wait = answer.headers.get("retry-after")
        return PublishError(f"GitHub's rate limit is reached ({status})", f"repeat in {wait} s" if wait else "repeat within an hour")
    if answer.status == 401:
        return PublishError(f"GitHub does not take the login ({status})", "set GITHUB_TOKEN to a valid token, or run `gh auth login`")
    if answer.status == 403:
        return PublishError(f"this login may not {what} {where} ({status})", "it needs the rights Issues: write and Contents: write")
    if answer.status in (404, 410):
        return PublishError(
            f"there is no issue {where} for this login ({status})", "check --issue and --repo, and that the token may see it"
        )
    if answer.status >= 500:
        return PublishError(f"GitHub has trouble of its own ({status})", "repeat later")
    return PublishError(f"GitHub would not let us {what} {where} ({status})", "see the message above")


def error_text(body: str) -> str:
    """Return the API's own error message in one line, or "" if there is none."""
    try:
        text = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return " ".join(str(text).split())[:200]
