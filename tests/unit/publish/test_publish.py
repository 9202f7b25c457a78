"""What is published: scrubbed, with links that lead somewhere, within GitHub's limits; and what its refusals mean."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.schema import PublishConfig
from pipeline.errors import PublishError
from pipeline.publish import document
from pipeline.publish.github import HostedRepository, Reply, refusal, remote_of, target_of
from pipeline.publish.scrub import Private, scrub, scrubbed_json

SUPERUSERS = "/" + "root"  # no file of ours names a home as it is
TOKEN = "ghp_" + "a1B2" * 9
HERE = Private(
    users=("ada", "root"),
    hosts=("gpu-box", "h100", "127.0.0.1", "localhost"),
    homes=("/var/lib/ada", "/"),
    secrets=("open sesame", "short"),
    project="/srv/made/poc",
)

# Scrubbing.


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"token {TOKEN}", "token [redacted]"),
        ("hf_" + "a1B2" * 8, "[redacted]"),
        ("github_pat_" + "a1B2" * 9, "[redacted]"),
        ("it says open sesame.", "it says [redacted]."),
        ("https://ada:pass@git.example.org/x", "https://[redacted]@git.example.org/x"),
        ("/home/bob/models and -I/home/eve/include", "~/models and -I~/include"),
        (f"file:///Users/bob/x, {SUPERUSERS}/.cache", "file://~/x, ~/.cache"),
        ("/var/lib/ada/models", "~/models"),
        ("/srv/made/poc/venv-vllm/bin/python", "./venv-vllm/bin/python"),
        ("/srv/made/poc-2/x", "/srv/made/poc-2/x"),
        ("pid 7, user ada", "pid 7, user [user]"),
        ("adam and Nevada, ada-like", "adam and Nevada, ada-like"),
        ("http://gpu-box:8000/v1, GPU-Box", "http://[host]:8000/v1, [host]"),
        ("on h100: NVIDIA H100", "on [host]: NVIDIA H100"),
        ("db.corp, ip-10-1-2-3.ec2.internal", "[host], [host]"),
        ("write to ada.l@example.org.", "write to [email]."),
        ("at 10.1.2.3.", "at [address]."),
        ("http://192.168.0.7:8000", "http://[address]:8000"),
        ("fe80::1%eth0, [2001:db8::7]:80, ::ffff:10.0.0.1", "[address], [[address]]:80, [address]"),
        ("fe80::1: no route", "[address]: no route"),
    ],
)
def test_what_says_too_much_is_taken_out(text: str, left: str) -> None:
    assert scrub(text, HERE) == left


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/v1, localhost, --host 0.0.0.0, [::1]:8000",
        "nvidia-cublas-cu12==12.8.4.1, vLLM 0.32.0, 1.2.3.4.5, 300.1.1.1",
        "measured 2026-11-24 12:32:24 UTC, std::vector, c10::Error, a:::b",
        f"TARr@N, `$ref: #{SUPERUSERS}/x`, schema root, user, host gpu, short",
        f"hf_hub_download, /homeless, ..{SUPERUSERS}/x",
    ],
)
def test_what_says_nothing_stays(text: str) -> None:
    assert scrub(text, HERE) == text


pieces = st.sampled_from(
    [
        "/home/",
        "ada",
        "gpu-box",
        "10.0.0.1",
        "fe80::1",
        "::",
        SUPERUSERS,
        TOKEN,
        "open sesame",
        "/srv/made/poc",
        "@x.org",
        "https://",
        "[",
        ".",
        "-",
    ]
)


@given(st.lists(pieces | st.text(max_size=4), max_size=12).map("".join))
def test_scrubbing_again_changes_nothing(text: str) -> None:
    once = scrub(text, HERE)
    assert scrub(once, HERE) == once
    assert TOKEN not in once
    assert "open sesame" not in once


@given(st.text(st.characters(exclude_characters="/@:.", exclude_categories=["Nd"]), max_size=40))
def test_text_without_any_is_unchanged(text: str) -> None:
    nothing_known = Private()
    assert scrub(text, nothing_known) == text


def test_json_is_scrubbed_within_its_strings() -> None:
    data = {"log": "line\nada on 10.0.0.1", "ada": [1.50, None, True], "n": 12}
    text = scrubbed_json(json.dumps(data), HERE)
    assert json.loads(text) == {"log": "line\n[user] on [address]", "[user]": [1.5, None, True], "n": 12}


# Links and images.

REPORT = """# vLLM PoC: tiny

![memory](artifacts/plots/memory.svg "over time") and <img alt="x" src='plots/b.png'>, again ![m](artifacts/plots/memory.svg)
[bench](artifacts/bench.json#L3), [json](report.json), [below](#more), [web](https://example.org/a), [![m](plots/b.png)](artifacts/x.json)
`[code](artifacts/no.json)` [`ttft`](artifacts/bench.json)

```
![not](an/image.svg)
```
"""


def test_images_are_found_each_once_and_not_in_code() -> None:
    assert document.images(REPORT) == ["artifacts/plots/memory.svg", "plots/b.png"]
    assert document.images("![web](https://example.org/a.png) ![a b](<a b.png>) ![c](c%20d.png)") == ["a b.png", "c d.png"]


def test_links_to_what_is_not_published_become_text() -> None:
    left = document.with_links_to(REPORT, "REPORT.md", ["report.json", "plots/b.png"])
    assert "bench, [json](report.json), [below](#more), [web](https://example.org/a), ![m](plots/b.png)" in left
    assert "`[code](artifacts/no.json)` `ttft`" in left
    assert '![memory](artifacts/plots/memory.svg "over time")' in left


def test_links_of_a_comment_lead_into_the_commit() -> None:
    text = document.with_absolute_links(REPORT, "docs/REPORT.md", "https://github.com/acme/poc/blob/abc")
    base = "https://github.com/acme/poc/blob/abc/docs"
    assert f'![memory]({base}/artifacts/plots/memory.svg?raw=true "over time")' in text
    assert f"src='{base}/plots/b.png?raw=true'" in text
    assert f"[bench]({base}/artifacts/bench.json#L3)" in text
    assert f"[below]({base}/REPORT.md#more)" in text
    assert f"[![m]({base}/plots/b.png?raw=true)]({base}/artifacts/x.json)" in text
    assert "[web](https://example.org/a)" in text
    assert "![not](an/image.svg)" in text


def test_a_link_upwards_is_resolved() -> None:
    text = document.with_absolute_links("![m](../plots/a b.svg)![m](<../plots/a b.svg>)", "out/REPORT.md", "B")
    assert text == "![m](../plots/a b.svg)![m](B/plots/a%20b.svg?raw=true)"


# The message and the comment.


def test_the_message_names_what_was_measured_the_verdict_and_the_issue() -> None:
    said = document.message(REPORT, "PASS: all 7 required gates pass.", 132)
    assert said == "Report of vLLM PoC: tiny: PASS (#132)\n\nPASS: all 7 required gates pass.\n"
    assert document.message("no heading", "NOT PASSED: 1 of 2", 7).startswith("Report of a vLLM deployment: NOT PASSED (#7)\n")


def test_a_comment_that_fits_is_whole() -> None:
    text = document.comment(REPORT, "https://x/y")
    assert text.startswith(f"{document.MARKER}\n# vLLM PoC: tiny\n")
    assert REPORT.rstrip() in text
    assert text.endswith("[The report as committed](https://x/y)\n")


def test_a_comment_that_does_not_fit_is_cut_with_a_link_to_the_rest() -> None:
    lines = ["<details><summary>Log</summary>", "", "````", *(f"line {number}" for number in range(9000)), "````", "</details>", "the end"]
    text = document.comment("\n".join(lines), "https://x/y")
    assert document.COMMENT_LIMIT - 100 < len(text) <= document.COMMENT_LIMIT
    assert "the end" not in text
    assert "\n````\n\n</details>\n\n> [!NOTE]\n> The report is too long for a comment and was cut here; [all of it](https://x/y)." in text


@given(st.lists(st.sampled_from(["```", "~~~~", "<details>", "</details>", "text"]) | st.text(string.printable, max_size=30), max_size=60))
def test_a_comment_never_exceeds_the_limit_and_leaves_nothing_open(lines: list[str]) -> None:
    text = document.comment("\n".join(lines), "L", limit=400)
    assert len(text) <= 400
    cut = text.partition("\n\n> [!NOTE]")[0].splitlines()
    if "[!NOTE]" in text:
        assert list(document.still_open(cut))[-1] == ""


# Where to.


@pytest.mark.parametrize(
    ("origin", "web"),
    [
        ("https://github.com/acme/poc.git", "https://github.com/acme/poc"),
        ("https://x:y@github.com/acme/poc", "https://github.com/acme/poc"),
        ("git@github.com:acme/poc.git", "https://github.com/acme/poc"),
        ("ssh://git@ghe.example.org:2222/acme/po.c.git", "https://ghe.example.org/acme/po.c"),
    ],
)
def test_the_target_is_what_the_remote_names(origin: str, web: str) -> None:
    target = target_of(origin, None, {})
    assert target.web == web
    assert remote_of(origin, target) == origin


def test_another_target_has_an_address_of_its_own() -> None:
    target = target_of("git@github.com:acme/poc.git", "other/repo", {"GITHUB_SERVER_URL": "https://ghe.example.org/"})
    assert remote_of("git@github.com:acme/poc.git", target) == "https://ghe.example.org/other/repo.git"
    assert (target.host, target.api) == ("ghe.example.org", "https://ghe.example.org/api/v3")
    assert HostedRepository("https://github.com", "a/b").api == "https://api.github.com"


@pytest.mark.parametrize(("origin", "says"), [(None, "there is no git remote origin"), ("/srv/git/poc", "names no repository on GitHub")])
def test_a_target_that_nobody_names_is_told(origin: str | None, says: str) -> None:
    with pytest.raises(PublishError, match=says):
        target_of(origin, None, {})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"repo": "poc"}, "should match pattern"),
        ({"branch": "--force"}, "should match pattern"),
        ({"path": "../x"}, "expected a folder in the repository"),
        ({"path": "/x"}, "expected a folder in the repository"),
        ({"path": ".git/hooks"}, "expected a folder in the repository"),
    ],
)
def test_settings_that_lead_astray_are_refused(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PublishConfig.model_validate(settings)


# Refusals.


@pytest.mark.parametrize(
    ("status", "headers", "said", "message", "hint"),
    [
        (401, {}, "Bad credentials", "GitHub does not take the login (HTTP 401: Bad credentials)", "gh auth login"),
        (
            403,
            {},
            "Resource not accessible",
            "this login may not comment on acme/poc#1 (HTTP 403: Resource not accessible)",
            "Issues: write",
        ),
        (403, {"retry-after": "60"}, "Slow down", "GitHub's rate limit is reached (HTTP 403: Slow down)", "repeat in 60 s"),
        (403, {"x-ratelimit-remaining": "0"}, "", "GitHub's rate limit is reached (HTTP 403)", "repeat within an hour"),
        (429, {"retry-after": "7"}, "", "GitHub's rate limit is reached (HTTP 429)", "repeat in 7 s"),
        (404, {}, "Not Found", "there is no issue acme/poc#1 for this login (HTTP 404: Not Found)", "check --issue and --repo"),
        (410, {}, "Gone", "there is no issue acme/poc#1 for this login (HTTP 410: Gone)", "check --issue and --repo"),
        (422, {}, "Validation\nFailed", "GitHub would not let us comment on acme/poc#1 (HTTP 422: Validation Failed)", "see the message"),
        (502, {}, "", "GitHub has trouble of its own (HTTP 502)", "repeat later"),
    ],
)
def test_each_refusal_is_one_line_with_a_fix(status: int, headers: dict[str, str], said: str, message: str, hint: str) -> None:
    error = refusal(Reply(status, headers, json.dumps({"message": said})), "acme/poc#1", "comment on")
    assert error.message == message
    assert hint in error.hint


def test_a_refusal_in_other_words_than_json_is_one_line_too() -> None:
    assert refusal(Reply(502, {}, "<html>"), "acme/poc#1", "read").message == "GitHub has trouble of its own (HTTP 502)"
