"""A local stand-in for GitHub's REST API: one repository with issues and comments, with the trouble that a test asks for."""

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

ISSUE = re.compile(r"/repos/(?P<repo>[^/]+/[^/]+)/issues/(?P<number>\d+)")
COMMENTS = re.compile(r"/repos/(?P<repo>[^/]+/[^/]+)/issues/(?P<number>\d+)/comments")
COMMENT = re.compile(r"/repos/(?P<repo>[^/]+/[^/]+)/issues/comments/(?P<id>\d+)")
LONGEST = 65536


@dataclass(frozen=True)
class Refusal:
    """An answer that is no success."""

    status: int
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None


@dataclass
class FakeGithub:
    """GitHub with issue `number` of `repo`. `refusals` answers "GET issue", "GET comments", "POST comments" or "PATCH comment".

    A page holds at most `page` comments, whatever the client asks for.
    """

    repo: str = "acme/poc"
    number: int = 132
    token: str = "a-token-of-acme"
    state: str = "open"
    locked: bool = False
    page: int = 2
    comments: list[dict[str, Any]] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> "FakeGithub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"github": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, body: str) -> dict[str, Any]:
        """Add a comment."""
        number = len(self.comments) + 1
        comment = {"id": number, "html_url": f"https://github.com/{self.repo}/issues/{self.number}#issuecomment-{number}", "body": body}
        self.comments.append(comment)
        return comment

    def bodies(self, start: str) -> list[str]:
        """Return the comments that begin so."""
        return [comment["body"] for comment in self.comments if comment["body"].startswith(start)]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    github: FakeGithub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def log_message(self, *_words: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        github, path = self.github, urlsplit(self.path).path
        payload = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        patterns = {"comments": COMMENTS, "comment": COMMENT, "issue": ISSUE}
        name, match = next(((name, found) for name, form in patterns.items() if (found := form.fullmatch(path))), ("", None))
        endpoint = f"{self.command} {name}"
        github.requests.append(endpoint)
        if endpoint in github.refusals:
            self._send(github.refusals[endpoint])
        elif self.headers.get("Authorization") != f"Bearer {github.token}":
            self._send(Refusal(401, "Bad credentials"))
        elif match is None or match["repo"] != github.repo or int(match.groupdict().get("number") or github.number) != github.number:
            self._send(Refusal(404, "Not Found"))
        elif payload is not None and len(payload["body"]) > LONGEST:
            self._send(Refusal(422, "Validation Failed"))
        else:
            self._serve(endpoint, match.groupdict(), payload)

    def _serve(self, endpoint: str, parts: dict[str, str], payload: Any) -> None:
        github = self.github
        if endpoint == "GET issue":
            url = f"https://github.com/{github.repo}/issues/{github.number}"
            self._send({"number": github.number, "state": github.state, "locked": github.locked, "html_url": url})
        elif endpoint == "GET comments":
            page = int(parse_qs(urlsplit(self.path).query)["page"][0])
            more = page * github.page < len(github.comments)
            link = (("Link", f'<{github.api}{urlsplit(self.path).path}?page={page + 1}>; rel="next"'),) if more else ()
            self._send(github.comments[(page - 1) * github.page : page * github.page], headers=link)
        elif endpoint == "POST comments":
            self._send(github.add(payload["body"]), 201)
        else:
            comment = github.comments[int(parts["id"]) - 1]
            comment["body"] = payload["body"]
            self._send(comment)

    def _send(self, data: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        body = json.dumps({"message": data.message} if isinstance(data, Refusal) else data)
        if isinstance(data, Refusal):
            body, status, headers = data.body if data.body is not None else body, data.status, data.headers
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())
