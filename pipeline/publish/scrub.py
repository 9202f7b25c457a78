"""Removal of private data from a text: secrets, home folders, user names, hosts and addresses. Pure."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.redact import HIDDEN, redacted

USER, HOST, ADDRESS, EMAIL, HOME, PROJECT = "[user]", "[host]", "[address]", "[email]", "~", "."
# Names that identify nobody: those common to all machines, and our own placeholders.
COMMON_NAMES = {
    *("root", "user", "users", "admin", "runner", "ubuntu", "debian", "docker", "vagrant", "nobody", "app", "home"),
    *("localhost", "localdomain", "local", "host", "server", "main", "vm", "cpu", "gpu", "address", "email", "redacted"),
}
SHORTEST_SECRET = 8
FURTHER_SECRETS = re.compile(r"gh[pousr]_\w{16,}|github_pat_\w{16,}|\bAKIA[0-9A-Z]{16}\b|(?<=://)[^/\s@\[\]]+(?=@)")
HOMES = re.compile(r"/(?:home|Users)/[^/\s\"'`,;:()\[\]{}|<>\\~]+|(?<![\w#.~-])/root(?![\w-])")
EMAILS = re.compile(r"(?<![\w.+-])[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w-])")
PRIVATE_HOSTS = re.compile(r"(?<![\w.-])(?:[\w-]+\.)+(?:lan|internal|intranet|corp|localdomain|home\.arpa)(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?<!==)(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")  # after == it is a package version of four parts
IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4})(?:%[\w-]+)?(?!\w)")
Rule = Callable[[str], str]


@dataclass(frozen=True)
class Private:
    """What is known of this machine and its user, and must not be published."""

    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    project: str = ""


def scrub(text: str, private: Private) -> str:
    """Return `text` without private data; the rules repeat until nothing changes, so scrubbing again changes nothing."""
    ordered = list(rules(private))
    before = None
    while text != before:
        before = text
        for rule in ordered:
            text = rule(text)
    return text


def scrubbed_json(text: str, private: Private) -> str:
    """Return the JSON document with every string scrubbed; in the raw text, escapes would hide where a word begins."""
    return json.dumps(scrubbed_value(json.loads(text), private), indent=1, ensure_ascii=False) + "\n"


def scrubbed_value(value: Any, private: Private) -> Any:
    """Return JSON-like data with every string scrubbed, keys included."""
    if isinstance(value, str):
        return scrub(value, private)
    if isinstance(value, list):
        return [scrubbed_value(item, private) for item in value]
    if isinstance(value, dict):
        return {scrub(key, private): scrubbed_value(item, private) for key, item in value.items()}
    return value


def rules(private: Private) -> Iterator[Rule]:
    """Yield the rules in order: known values before mere patterns, and a home folder before the user name in it."""
    yield redacted
    yield substitution(FURTHER_SECRETS, HIDDEN)
    for secret in longest_first(private.secrets):
        if len(secret) >= SHORTEST_SECRET and secret not in HIDDEN:
            yield substitution(re.compile(re.escape(secret)), HIDDEN)
    folders = {**dict.fromkeys(private.homes, HOME), private.project: PROJECT}
    for folder in longest_first(folders):
        if len(PurePath(folder).parts) > 1:  # "/" is not private
            yield substitution(re.compile(rf"{re.escape(folder.rstrip('/'))}(?![\w-])"), folders[folder])
    yield substitution(HOMES, HOME)
    yield substitution(EMAILS, EMAIL)
    for host in longest_first(private.hosts):
        if host.lower() not in COMMON_NAMES and not is_address(host):
            # A name of one word must match in case, because it may also be a word of the report (h100 and H100).
            yield substitution(whole_word(host, re.IGNORECASE if re.search(r"[.-]", host) else re.NOFLAG), HOST)
    yield substitution(PRIVATE_HOSTS, HOST)
    for user in longest_first(private.users):
        if user.lower() not in COMMON_NAMES:
            yield substitution(whole_word(user), USER)
    yield lambda text: IPV6.sub(lambda match: without_address(match.group()), text)
    yield lambda text: IPV4.sub(lambda match: without_address(match.group()), text)


def substitution(pattern: re.Pattern[str], replacement: str) -> Rule:
    """Return a rule that replaces every match of the pattern."""
    return lambda text: pattern.sub(replacement, text)


def whole_word(word: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Return a pattern that matches the word only where it is not part of another."""
    return re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", flags)


def longest_first(words: Iterable[str]) -> list[str]:
    """Return the distinct words, longest first, so that none comes after its own prefix."""
    return sorted({word for word in words if word}, key=lambda word: (-len(word), word))


def without_address(text: str) -> str:
    """Return the placeholder if the text is an IP address; keep loopback and unspecified addresses, and any other text."""
    if text.endswith(":") and not text.endswith("::"):  # "fe80::1: no route"
        return without_address(text[:-1]) + ":"
    if not is_address(text):
        return text
    address = ipaddress.ip_address(text)
    return text if address.is_loopback or address.is_unspecified else ADDRESS


def is_address(text: str) -> bool:
    """Tell whether the text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
