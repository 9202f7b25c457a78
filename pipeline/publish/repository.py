"""A commit on a branch of a remote repository, made in a temporary repository, without touching the user's own."""

import base64
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import PublishError
from pipeline.publish.github import HostedRepository

TIMEOUT_S = 300.0
# Settings about how to reach remotes and who commits; the rest of a configuration is about its own repository.
CARRIED = re.compile(r"(user|http|url|credential|ssh)\..*|core\.sshcommand|core\.gitproxy")
# Git would otherwise make up an address from the names of the user and the host, and publish it.
NOBODY = {"NAME": "vllm-poc", "EMAIL": "vllm-poc@localhost"}
UNREACHABLE = re.compile(
    r"could not resolve|connection (refused|timed out|reset)|failed to connect|couldn't connect|network is unreachable|no route"
    r"|timed out|ssl|proxy",
    re.IGNORECASE,
)
REFUSED = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|permission to .* denied|error: 40[13]|access denied"
    r"|not found|does not (exist|appear to be a git repository)|protected branch|hook declined|not authorized|insufficient permission",
    re.IGNORECASE,
)
MOVED = re.compile(
    r"rejected\].*\((fetch first|non-fast-forward|stale info|cannot lock ref.*|failed to update ref|reference already exists)\)"
)


class GitError(Exception):
    """A failed git command; the text is git's message."""


class MovedError(Exception):
    """The remote branch has moved meanwhile."""


@dataclass(frozen=True)
class Commit:
    """The commit that holds the report: a new one, or the branch's tip if that has the same content."""

    id: str
    is_new: bool
    stat: str


def local_setting(project: Path, name: str) -> str | None:
    """Return a git setting as seen from the project, or None if it is not set; raise PublishError if git is missing."""
    try:
        result = subprocess.run(
            ["git", "config", "--get", name], cwd=project, env=environment_without_repository(), capture_output=True, text=True
        )
    except FileNotFoundError:
        raise PublishError("git is not installed", "install it (Debian, Ubuntu: `sudo apt install git`)") from None
    return result.stdout.strip() or None


def inherited_settings(project: Path) -> list[tuple[str, str]]:
    """Return the settings of the project's repository that another repository needs to reach the same remotes."""
    result = subprocess.run(
        ["git", "config", "--local", "--list", "-z"], cwd=project, env=environment_without_repository(), capture_output=True, text=True
    )
    pairs = [entry.partition("\n") for entry in result.stdout.split("\0") if entry]
    return [(name, value) for name, _, value in pairs if CARRIED.fullmatch(name)]


def sign(target: HostedRepository, token: str) -> list[tuple[str, str]]:
    """Return the git settings that send the token to the target's server, replacing any header set before."""
    key, credentials = f"http.{target.server}/.extraheader", base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return [(key, ""), (key, f"Authorization: Basic {credentials}")]


def through_gh(target: HostedRepository) -> list[tuple[str, str]]:
    """Return the git settings that make gh the credential helper for the target's server."""
    key = f"credential.{target.server}.helper"
    return [(key, ""), (key, "!gh auth git-credential")]


def environment_without_repository() -> dict[str, str]:
    """Return the environment without variables by which a hook or an alias names its own repository."""
    ours = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"}
    return {name: value for name, value in os.environ.items() if name not in ours}


class Repository:
    """A temporary bare repository in `folder`, whose remote is `url`."""

    def __init__(self, folder: Path, url: str, branch: str, settings: list[tuple[str, str]]) -> None:
        self.folder, self.url, self.branch = folder, url, branch
        self.environment = {**environment_without_repository(), **as_variables(settings, os.environ)}
        self.environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        self._git("init", "--bare", "--quiet", ".")
        if self._try_git("check-ref-format", f"refs/heads/{branch}") is None:
            raise PublishError(f"{branch!r} is no name for a branch", "name another: --branch, or publish.branch")
        for name, value in NOBODY.items():
            if self._try_git("config", f"user.{name.lower()}") is None:
                self.environment = {f"GIT_AUTHOR_{name}": value, f"GIT_COMMITTER_{name}": value, **self.environment}

    def commit(self, files: Mapping[PurePosixPath, bytes], message: str) -> Commit:
        """Return the commit of the files on top of the remote branch; nothing is pushed."""
        tip, exists = self._fetch_base()
        self._git("read-tree", *([tip] if tip else ["--empty"]))
        blobs = {path: self._git("hash-object", "-w", "--stdin", stdin=content) for path, content in files.items()}
        entries = "".join(f"100644 {blob}\t{path}\0" for path, blob in blobs.items())
        self._git("update-index", "-z", "--index-info", stdin=entries.encode())
        tree = self._git("write-tree")
        if exists and tree == self._git("rev-parse", f"{tip}^{{tree}}"):
            return Commit(tip, is_new=False, stat="")
        commit_id = self._git("commit-tree", tree, *(["-p", tip] if tip else []), stdin=message.encode())
        before = tip or self._git("mktree", stdin=b"")
        return Commit(commit_id, is_new=True, stat=self._git("diff", "--stat=100", "--no-color", "--no-ext-diff", before, commit_id))

    def push(self, commit: Commit) -> None:
        """Push the commit to the branch; raise MovedError if the branch has moved meanwhile."""
        try:
            self._run("push", "--quiet", "--no-verify", self.url, f"{commit.id}:refs/heads/{self.branch}")
        except GitError as error:
            if MOVED.search(str(error)):
                raise MovedError from error
            raise self._trouble(error, "push to") from error

    def _fetch_base(self) -> tuple[str, bool]:
        """Return the commit to build on, "" for an empty repository, and whether it is the branch's."""
        lines = self._remote("ls-remote", self.url, "HEAD", f"refs/heads/{self.branch}").splitlines()
        listed = {line.partition("\t")[2] for line in lines}
        ref = next((name for name in (f"refs/heads/{self.branch}", "HEAD") if name in listed), None)
        if ref is None:
            return "", False
        self._remote("fetch", "--quiet", "--no-tags", "--depth", "1", self.url, ref)
        return self._git("rev-parse", "FETCH_HEAD"), ref != "HEAD"

    def _remote(self, *words: str) -> str:
        try:
            return self._run(*words)
        except GitError as error:
            raise self._trouble(error, "read") from error

    def _git(self, *words: str, stdin: bytes = b"") -> str:
        try:
            return self._run(*words, stdin=stdin)
        except GitError as error:
            raise PublishError(f"git {words[0]} failed: {last_line(str(error))}", "nothing was pushed; see git's words") from error

    def _try_git(self, *words: str) -> str | None:
        try:
            return self._run(*words)
        except GitError:
            return None

    def _run(self, *words: str, stdin: bytes = b"") -> str:
        try:
            result = subprocess.run(
                ["git", *words], cwd=self.folder, env=self.environment, input=stdin, capture_output=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise GitError(f"git {words[0]} timed out after {TIMEOUT_S:g} s") from None
        if result.returncode:
            raise GitError(result.stderr.decode(errors="replace").strip())
        return result.stdout.decode(errors="replace").strip("\n")

    def _trouble(self, error: GitError, what: str) -> PublishError:
        output, where = str(error), without_login(self.url)
        if REFUSED.search(output):
            hint = "check its name and your rights there (git's login; GITHUB_TOKEN with Contents: write; the branch's protection)"
            return PublishError(f"git may not {what} {where}: {reason(output, REFUSED)}; nothing was published", hint)
        if UNREACHABLE.search(output):
            return PublishError(
                f"{where} cannot be reached: {reason(output, UNREACHABLE)}; nothing was published", "check the network, then repeat"
            )
        return PublishError(f"git could not {what} {where}: {last_line(output)}; nothing was published", "see git's words, then repeat")


def as_variables(settings: list[tuple[str, str]], environment: Mapping[str, str]) -> dict[str, str]:
    """Return git settings as environment variables, numbered after existing ones; unlike arguments, nobody else can read them."""
    first = int(environment.get("GIT_CONFIG_COUNT") or 0)
    variables = {"GIT_CONFIG_COUNT": str(first + len(settings))}
    for number, (name, value) in enumerate(settings, first):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def without_login(url: str) -> str:
    """Return the URL without user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def reason(output: str, pattern: re.Pattern[str]) -> str:
    """Return the first line of git's output that matches the pattern, else the last line."""
    return next((without_login(line.strip()) for line in output.splitlines() if pattern.search(line)), last_line(output))


def last_line(output: str) -> str:
    """Return the last line that is not blank."""
    return without_login(next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it said nothing"))
