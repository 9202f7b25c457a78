"""A stand-in for the program `gh`: `auth token` and `api --include`, which asks the fake GitHub at FAKE_GH_API with FAKE_GH_TOKEN."""

import argparse
import os
import sys
import urllib.error
import urllib.request


def main(words: list[str]) -> int:
    """Do what the words ask; return the exit code."""
    token = os.environ.get("FAKE_GH_TOKEN")
    if words[:2] == ["auth", "token"]:
        print(token or "no oauth token found", file=sys.stdout if token else sys.stderr)
        return 0 if token else 1
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["api"])
    parser.add_argument("path")
    parser.add_argument("--hostname", required=True, choices=["github.com"])
    parser.add_argument("--include", action="store_true", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--input", choices=["-"])
    asked = parser.parse_args(words)
    request = urllib.request.Request(f"{os.environ['FAKE_GH_API']}/{asked.path}", method=asked.method)
    request.add_header("Authorization", f"Bearer {token}")
    if asked.input:
        request.data = sys.stdin.buffer.read()
    try:
        with urllib.request.urlopen(request) as response:
            return told(response.status, response.headers.items(), response.read().decode())
    except urllib.error.HTTPError as error:
        return told(error.code, error.headers.items(), error.read().decode())
    except urllib.error.URLError as error:
        print(f"error connecting to {asked.hostname}\ncheck your internet connection ({error.reason})", file=sys.stderr)
        return 1


def told(status: int, headers: "list[tuple[str, str]]", body: str) -> int:
    """Print an answer as `gh api --include` does; return its exit code."""
    print(f"HTTP/2.0 {status} Whatever\r")
    for name, value in headers:
        print(f"{name}: {value}\r")
    print(f"\r\n{body}", end="")
    if status < 300:
        return 0
    print(f"gh: {body} (HTTP {status})", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
