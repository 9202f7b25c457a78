"""HTTP/1.1 with a thread for each connection: what the fakes of servers need, and imported in a tenth of http.server's time."""

import socketserver
import sys
from contextlib import suppress


class HttpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # which it only prints


class HttpHandler(socketserver.StreamRequestHandler):
    """Takes requests of one connection in turn; `do_GET` and `do_POST` answer them, names of headers in lower case."""

    disable_nagle_algorithm = True
    close_connection = False
    path: str
    headers: dict[str, str]
    body: bytes

    def handle(self) -> None:
        while not self.close_connection:
            words = self.rfile.readline().split()
            if not words:
                return
            self.path = words[1].decode()
            self.headers = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                self.headers[name.lower()] = value.strip()
            self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.close_connection = self.headers.get("connection") == "close"
            {b"GET": self.do_GET, b"POST": self.do_POST}[words[0]]()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        raise NotImplementedError

    def do_POST(self) -> None:
        raise NotImplementedError

    def begin(self, status: int, kind: str, length: str) -> None:
        """Write an answer's head; `length` is the header that says how long the body is."""
        self.wfile.write(f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode())
