"""publish: the report on a GitHub branch, and in one comment on an issue."""

import json
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.commands.session import Options, Session, locked
from pipeline.commands.words import say
from pipeline.errors import PublishError
from pipeline.publish import publication as publishing
from pipeline.publish.github import TOKENS, remote_of, target_of, token_of, transport_to
from pipeline.publish.repository import local_setting
from pipeline.report.stage import Report
from pipeline.server.keys import key_file
from pipeline.stages.serve import Server
from pipeline.terminal import Output


def publish(root: Path, options: Options, issue: str | None, repo: str | None, branch: str | None, dry_run: bool) -> Output:
    """Push the report and comment on the issue; with `dry_run`, or without a login, only show what would be published."""
    number = (issue or "").removeprefix("#")
    if not number.isdecimal():
        raise PublishError(f"no issue has the number {issue!r}" if issue else "which issue?", "for example `./inv publish --issue 132`")
    # Quoted as JSON, so that YAML reads a branch named "on" as text.
    sets = [f"publish.{name}={json.dumps(value)}" for name, value in (("repo", repo), ("branch", branch)) if value is not None]
    session = Session(root, replace(options, sets=(*options.sets, *sets)), silent=True)
    settings = session.config.publish
    origin = local_setting(root, "remote.origin.url")
    target = target_of(origin, settings.repo, os.environ)
    transport = transport_to(target, os.environ)
    order = publishing.PublishOrder(target, remote_of(origin, target), settings, int(number), root, transport, token_of(os.environ))
    server = session.pipeline.outcome(Server).data
    urls = [session.config.attach.url or "", server.handle.base_url if server is not None else ""]
    hosts = [session.config.serve.host, *(urlsplit(url).hostname or "" for url in urls)]
    private = publishing.private_here(root, hosts, key_file(session.workspace))
    with locked(session.workspace):  # another command could change the report while it is read
        report = session.pipeline.outcome(Report).data
        if report is None:
            raise PublishError("there is no report yet", "make one: `./inv all`, or `./inv report --only` of what is on record")
        publication = publishing.gathered(root, report.path, report.headline, order, private)
    if dry_run or transport is None:
        login = f" (no login: set {' or '.join(TOKENS)}, or run `gh auth login`)" if transport is None else ""
        say(f"dry run, nothing is published{login}")
        publishing.show_report(publication, order, say)
    else:
        publishing.push_report(publication, order, transport, say)
    return Output(0, [], None)
