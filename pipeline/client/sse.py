"""Server-sent events: bytes in, events out, however the bytes are cut."""


class SseParser:
    """Feed bytes as they came; get the data of each whole event (WHATWG HTML, section 9.2.6, data fields, lines ended by LF or CRLF)."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []

    def feed(self, block: bytes) -> list[bytes]:
        """Return the data of the events that `block` completes."""
        events = []
        *lines, self._pending = (self._pending + block).split(b"\n")
        for line in (raw.removesuffix(b"\r") for raw in lines):
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
