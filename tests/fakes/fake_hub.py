"""A local stand-in for the Hugging Face hub: model info, file listing and files, with the trouble that a test asks for."""

import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

PART_BYTES = 1024
INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)")
TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
ENDPOINTS = {"info": INFO, "tree": TREE, "resolve": RESOLVE}


@dataclass(frozen=True)
class HubFile:
    """A file of a model; `sent` is what arrives where that is not what the hub states."""

    content: bytes
    lfs: bool = False
    sent: bytes | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """Return git's name for the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Refusal:
    """An answer that is not the thing asked for, with the headers by which huggingface_hub tells errors apart."""

    status: int
    code: str | None = None
    message: str | None = None
    body: bytes = b""
    content_type: str = "application/json"


MISSING = Refusal(404, "RepoNotFound", "Repository not found")
MISSING_TO_STRANGERS = Refusal(401, "RepoNotFound", "Invalid username or password.")
WRONG_TOKEN = Refusal(401, None, "Invalid credentials in Authorization header")
GATED = Refusal(403, "GatedRepo", "Access to model is restricted and you are not in the authorized list.")
GATED_TO_STRANGERS = Refusal(401, "GatedRepo", "Access to model is restricted. You must be authenticated to access it.")
NO_REVISION = Refusal(404, "RevisionNotFound", "Invalid rev id")
NO_FILE = Refusal(404, "EntryNotFound", "Entry not found")
BROKEN = Refusal(500, None, "Internal Server Error")
LOGIN_PAGE = Refusal(200, body=b"<html>Welcome to our WLAN</html>", content_type="text/html")


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    endpoint: str
    method: str
    file: str
    range: str | None
    token: str | None


@dataclass
class FakeHub:
    """The hub with one model: `commits` holds each commit's files by path, `branches` names commits.

    `refusals` answers an endpoint (info, tree, resolve, or GET resolve for the content alone) with trouble.
    `break_after` closes the connection after so many bytes of a file, as often as it is listed. `required_token` hides
    the model from everyone else. `stalled` keeps files back after their first half until `go_on` is set.
    """

    repo: str = "tests/tiny"
    license: str | None = "apache-2.0"
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    break_after: dict[str, list[int]] = field(default_factory=dict)
    required_token: str | None = None
    stalled: set[str] = field(default_factory=set)
    stalling: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> "FakeHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, files: dict[str, HubFile], branch: str = "main") -> str:
        """Add a commit with exactly these files, at the branch's head; return its name."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def gets(self, file: str) -> list[Request]:
        """Return the requests for the file's content."""
        return [request for request in self.requests if request.method == "GET" and request.file == file]


class Handler(BaseHTTPRequestHandler):
    """One connection to the hub."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        endpoint, match = next(((name, match) for name, pattern in ENDPOINTS.items() if (match := pattern.fullmatch(path))), ("", None))
        parts = {name: unquote(value) for name, value in match.groupdict().items()} if match else {}
        token = self.headers.get("Authorization")
        self.hub.requests.append(Request(endpoint, self.command, parts.get("file", ""), self.headers.get("Range"), token))
        refusal = self._refusal(endpoint, parts, token)
        if refusal is not None:
            self._refuse(refusal)
            return
        commit = self.hub.branches.get(parts["revision"], parts["revision"])
        files = self.hub.commits[commit]
        if endpoint == "info":
            self._json(model_info(self.hub, commit, files))
        elif endpoint == "tree":
            self._json([tree_entry(path, file) for path, file in files.items()])
        else:
            self._file(commit, parts["file"], files[parts["file"]])

    def do_HEAD(self) -> None:
        self.do_GET()

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *_words: object) -> None:
        """Say nothing."""

    def _refusal(self, endpoint: str, parts: dict[str, str], token: str | None) -> Refusal | None:
        hub = self.hub
        if not endpoint:
            return Refusal(404)
        scripted = hub.refusals.get(f"{self.command} {endpoint}") or hub.refusals.get(endpoint)
        if scripted is not None:
            return scripted
        if parts["repo"] != hub.repo or (hub.required_token and token != f"Bearer {hub.required_token}"):
            return MISSING if token else MISSING_TO_STRANGERS
        commit = hub.branches.get(parts["revision"], parts["revision"])
        if commit not in hub.commits:
            return NO_REVISION
        return NO_FILE if endpoint == "resolve" and parts["file"] not in hub.commits[commit] else None

    def _refuse(self, refusal: Refusal) -> None:
        self.send_response(refusal.status)
        if refusal.code:
            self.send_header("X-Error-Code", refusal.code)
        if refusal.message:
            self.send_header("X-Error-Message", refusal.message)
        self._body(refusal.body or json.dumps({"error": refusal.message}).encode(), refusal.content_type)

    def _json(self, data: Any) -> None:
        self.send_response(200)
        self._body(json.dumps(data).encode(), "application/json")

    def _body(self, body: bytes, content_type: str) -> None:
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, commit: str, path: str, file: HubFile) -> None:
        body = file.content if file.sent is None else file.sent
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        start, whole = int(first), len(body)
        body = body[: int(last) + 1] if last else body
        self.send_response(206 if start or last else 200)
        if start or last:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{whole}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{file.sha256 if file.lfs else file.blob_id}"')
        if file.lfs:
            self.send_header("X-Linked-Size", str(len(file.content)))
            self.send_header("X-Linked-Etag", f'"{file.sha256}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "GET":
            self._content(path, body, start)

    def _content(self, path: str, body: bytes, start: int) -> None:
        breaks = self.hub.break_after.get(path)
        end = start + breaks.pop(0) if breaks else len(body)
        middle = len(body) // 2 if path in self.hub.stalled else None
        try:
            if middle is not None:
                self.wfile.write(body[start:middle])
                self.hub.stalling.set()
                self.hub.go_on.wait()
                start = middle
            for position in range(start, end, PART_BYTES):
                self.wfile.write(body[position : min(position + PART_BYTES, end)])
        except (BrokenPipeError, ConnectionResetError):
            end = 0
        if end < len(body):
            self.close_connection = True


def model_info(hub: FakeHub, commit: str, files: dict[str, HubFile]) -> dict[str, Any]:
    """Return what the hub tells about the model, with each file's size and name in git or LFS."""
    siblings = []
    for path, file in files.items():
        lfs = {"sha256": file.sha256, "size": len(file.content), "pointerSize": 134}
        siblings.append({"rfilename": path, "size": len(file.content), "blobId": file.blob_id} | ({"lfs": lfs} if file.lfs else {}))
    card = {"cardData": {"license": hub.license}} if hub.license else {}
    return {"id": hub.repo, "sha": commit, "private": False, "gated": False, "siblings": siblings, **card}


def tree_entry(path: str, file: HubFile) -> dict[str, Any]:
    """Return the file as the listing shows it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob_id}
    return entry | ({"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}} if file.lfs else {})
