"""The sockets of a `ScriptedProvider`: HTTP/1.1 in threads that end when it stops."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Exchange", "Server"]

_JSON = "application/json"
_EVENTS = "text/event-stream"


class Exchange(BaseHTTPRequestHandler):
    """One connection: reads requests, and writes what it is told to."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    body: bytes = b""

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.answer(self)

    def do_GET(self) -> None:
        self.server.answer(self)

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """A whole answer."""
        kind = {"content-type": _JSON, "content-length": str(len(body))}
        self._head(status, kind | {name.lower(): value for name, value in headers.items()})
        self.wfile.write(body)

    def stream(
        self, events: Sequence[bytes], headers: Mapping[str, str], most: int | None = None
    ) -> None:
        """A chunked answer; with ``most``, the connection is closed after so many chunks."""
        given = {name.lower(): value for name, value in headers.items()}
        self._head(200, {"content-type": _EVENTS, "transfer-encoding": "chunked"} | given)
        for event in events[:most]:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        if most is None:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """No more on this connection."""
        self.close_connection = True

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        if "date" not in headers:
            self.send_header("date", self.date_time_string())
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a test's output is the test's."""


class Server(ThreadingHTTPServer):
    daemon_threads = False  # those that are not are joined when it closes
    request_queue_size = 1024  # of the usual five, a test's hundred connections lose most

    def __init__(self, answer: Callable[[Exchange], None]) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.answer = answer
        self._ending = False
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def serve(self) -> None:
        """Accepts connections until `end`; waits without polling."""
        while not self._ending:
            self.handle_request()

    def end(self) -> None:
        """Closes all connections, and has `serve` return."""
        self._ending = True
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.server_port), timeout=1).close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
            if self._ending:
                request.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up whenever they like; anything else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
