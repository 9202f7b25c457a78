"""The report's Markdown, adapted for publication: images, links, the commit message, the comment. Pure."""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, unquote

MARKER = "<!-- vllm-poc:report -->"
COMMENT_LIMIT = 65536  # characters, GitHub's limit
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# A code span, which stays unchanged; a link or an image; an HTML image.
INLINE = re.compile(
    r"(?P<code>(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<bang>!?)\[(?P<text>(?:[^\[\]\\`]|\\.|`[^`]*`|!\[[^\]]*\]\([^)]*\))*)\]\((?P<target><[^>]*>|[^\s()]*)(?P<title>\s+\"[^\"]*\")?\)"
    r"|(?P<tag><(?:img|source)\b[^>]*?\b(?:src|srcset)=)(?P<quote>[\"'])(?P<source>.*?)(?P=quote)",
)
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")
# Takes whether a link is an image, and its target; returns the new target, or None to keep only the text.
Rewrite = Callable[[bool, str], str | None]


def replace_targets(markdown: str, rewrite: Rewrite) -> str:
    """Return the Markdown with each relative target replaced; code stays unchanged."""
    fence, lines = "", []
    for line in markdown.splitlines(keepends=True):
        found = FENCE.match(line)
        if found and (not fence or closes(found.group(1), line, fence)):
            fence = "" if fence else found.group(1)
            lines.append(line)
        else:
            lines.append(line if fence else INLINE.sub(lambda match: replace_target(match, rewrite), line))
    return "".join(lines)


def closes(run: str, line: str, fence: str) -> bool:
    """Tell whether the line closes the code block that `fence` opened."""
    return run[0] == fence[0] and len(run) >= len(fence) and line.strip() == run


def replace_target(match: re.Match[str], rewrite: Rewrite) -> str:
    """Return the replacement for one link, image or code span."""
    if match["code"]:
        return match.group()
    if match["tag"]:
        new = rewrite(True, match["source"]) if is_relative(match["source"]) else match["source"]
        return f"{match['tag']}{match['quote']}{match['source'] if new is None else new}{match['quote']}"
    image, target = bool(match["bang"]), match["target"].strip("<>")
    text = INLINE.sub(lambda inner: replace_target(inner, rewrite), match["text"])  # an image may be a link's text
    new = rewrite(image, target) if is_relative(target) else match["target"]
    return text if new is None else f"{match['bang']}[{text}]({new}{match['title'] or ''})"


def is_relative(target: str) -> bool:
    """Tell whether the target is relative: a file beside the report, or an anchor in it."""
    return bool(target) and not ABSOLUTE.match(target) and not target.startswith("/")


def file_of(target: str) -> str:
    """Return the path in a relative target, without its anchor; "" for an anchor in the report itself."""
    return unquote(re.split(r"[#?]", target, maxsplit=1)[0])


def images(markdown: str) -> list[str]:
    """Return the paths of the relative images, each once, in order."""
    paths: dict[str, None] = {}

    def collect(image: bool, target: str) -> str:
        if image:
            paths[file_of(target)] = None
        return target

    replace_targets(markdown, collect)
    return list(paths)


def resolve(report: str, path: str) -> str:
    """Return a path relative to the report as one relative to the root; "" for an anchor in the report itself."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(report), path)) if path else ""


def with_links_to(markdown: str, report: str, files: Iterable[str]) -> str:
    """Return the Markdown, keeping only those relative links that lead to these files or into the report itself."""
    kept = {"", *files}
    return replace_targets(markdown, lambda image, target: target if image or resolve(report, file_of(target)) in kept else None)


def with_absolute_links(markdown: str, report: str, base: str) -> str:
    """Return the Markdown with absolute targets; `base` is the URL of the folder that `report` is relative to."""

    def absolute(image: bool, target: str) -> str:
        path, anchor = resolve(report, file_of(target)) or report, re.search(r"#.*", target)
        return f"{base}/{quote(path)}{'?raw=true' if image else ''}{anchor.group() if anchor and not image else ''}"

    return replace_targets(markdown, absolute)


def title(markdown: str) -> str:
    """Return the report's first heading."""
    found = re.search(r"^# +(.+?) *#*$", markdown, re.MULTILINE)
    return found.group(1) if found else "a vLLM deployment"


def message(markdown: str, headline: str, issue: int) -> str:
    """Return the commit message: the title, the verdict and the issue."""
    return f"Report of {title(markdown)}: {headline.partition(':')[0]} (#{issue})\n\n{headline}\n"


def comment(markdown: str, link: str, limit: int = COMMENT_LIMIT) -> str:
    """Return the comment's text: the report, cut if it is too long, and a link to the committed report."""
    whole = f"{MARKER}\n{markdown.rstrip()}\n\n[The report as committed]({link})\n"
    if len(whole) <= limit:
        return whole
    ending = f"\n\n> [!NOTE]\n> The report is too long for a comment and was cut here; [all of it]({link}).\n"
    kept: list[str] = [MARKER]
    closing = ""
    room = limit - len(MARKER) - len(ending)
    for line, open_then in zip(lines := markdown.splitlines(), still_open(lines), strict=True):
        room -= len(line) + 1
        if room < len(open_then):
            break
        kept.append(line)
        closing = open_then
    return "\n".join(kept) + closing + ending


def still_open(lines: Iterable[str]) -> Iterator[str]:
    """Yield after each line the text that would close the code block and the foldable sections open at that point."""
    fence, folded = "", 0
    for line in lines:
        found = FENCE.match(line)
        if found and (not fence or closes(found.group(1), line, fence)):
            fence = "" if fence else found.group(1)
        elif not fence:
            folded = max(0, folded + len(re.findall(r"<details\b", line)) - line.count("</details>"))
        yield (f"\n{fence}" if fence else "") + "\n\n</details>" * folded
