"""The test application: tells who answers, and fails or dawdles when asked to.

Environment: VERSION, POD_NAME, ERROR_RATE (0..1, share of answers that are
500), LATENCY_MS and LATENCY_RATE (0..1, share of answers that take so long; all
unless told), STARTUP_SECONDS (wait before listening), ON_TERM (`exit` at once,
or `drain`: serve 5 more seconds first), VERSION_ENDPOINT (`yes`, or `no`:
/version is not found). A share is met exactly: of 0.01, every hundredth.

A request's header X-Fault asks for one: `500`, `hang` (never answers), `close`
(closes the connection instead), `close-once` (does so every other time).
"""

import asyncio
import os
import signal
from fractions import Fraction


class Share:
    """Every so many times: by counting, so that no run is an unlucky one."""

    def __init__(self, rate: str) -> None:
        self.rate = Fraction(rate)
        self.due = Fraction(0)

    def hits(self) -> bool:
        self.due += self.rate
        if self.due < 1:
            return False
        self.due -= 1
        return True


VERSION = os.environ.get("VERSION", "v1")
POD_NAME = os.environ.get("POD_NAME") or os.uname().nodename
ERRORS = Share(os.environ.get("ERROR_RATE") or "0")
LATENCY = float(os.environ.get("LATENCY_MS") or 0) / 1000
LATE = Share(os.environ.get("LATENCY_RATE") or "1")
STARTUP_SECONDS = float(os.environ.get("STARTUP_SECONDS") or 0)
ON_TERM = os.environ.get("ON_TERM") or "exit"
VERSION_ENDPOINT = os.environ.get("VERSION_ENDPOINT") or "yes"
PORT = 8080
DRAIN_SECONDS = 5
LARGEST_HEAD = 64 * 1024


def answer(status: str, text: str) -> tuple[bytes, bytes]:
    """The whole answer and its head alone, for HEAD."""
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"X-Version: {VERSION}\r\nX-Pod: {POD_NAME}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    return head + body, head


PAGE = answer("200 OK", f"{POD_NAME} {VERSION}\n")
VERSION_PAGE = answer("200 OK", f"{VERSION}\n") if VERSION_ENDPOINT == "yes" else answer("404 Not Found", "not found\n")
HEALTHY = answer("200 OK", "ok\n")
FAILED = answer("500 Internal Server Error", f"{POD_NAME} {VERSION}\nERROR_RATE asked for this error\n")
BAD_REQUEST = answer("400 Bad Request", "bad request\n")


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive; a request's body is skipped."""

    every_other = Share("1/2")

    def __init__(self) -> None:
        self.buffer = b""
        self.body_left = 0
        self.busy = False
        self.closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.advance()

    def advance(self) -> None:
        """Answers, one after another, what has arrived in full."""
        while not self.busy and not self.closing:
            if self.body_left:
                skipped = min(self.body_left, len(self.buffer))
                self.buffer = self.buffer[skipped:]
                self.body_left -= skipped
                if self.body_left:
                    return
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                if len(self.buffer) > LARGEST_HEAD:
                    self.refuse()
                return
            self.buffer = rest
            self.handle(head)

    def handle(self, head: bytes) -> None:
        request, *lines = head.split(b"\r\n")
        words = request.split(b" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip().lower()
        length = headers.get(b"content-length", b"0")
        if len(words) != 3 or not length.isdigit() or b"transfer-encoding" in headers:
            self.refuse()
            return
        self.body_left = int(length)
        if headers.get(b"expect") == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection = headers.get(b"connection", b"")
        last = connection == b"close" or (words[2] == b"HTTP/1.0" and connection != b"keep-alive")

        fault = headers.get(b"x-fault")
        if fault == b"hang":
            self.busy = True
            return
        if fault == b"close" or (fault == b"close-once" and not self.every_other.hits()):
            self.closing = True
            self.transport.close()
            return

        path = words[1].partition(b"?")[0]
        delay = 0.0
        if path == b"/healthz":
            page = HEALTHY
        else:
            if fault == b"500" or ERRORS.hits():
                page = FAILED
            elif path == b"/version":
                page = VERSION_PAGE
            else:
                page = PAGE
            if LATE.hits():
                delay = LATENCY
        data = page[1] if words[0] == b"HEAD" else page[0]
        if words[2] == b"HTTP/1.0" and not last:
            data = data.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1)
        if delay:
            self.busy = True
            asyncio.get_running_loop().call_later(delay, self.send_late, data, last)
        else:
            self.send(data, last)

    def send(self, data: bytes, last: bool) -> None:
        self.transport.write(data)
        if last:
            self.closing = True
            self.transport.close()

    def send_late(self, data: bytes, last: bool) -> None:
        self.busy = False
        if not self.transport.is_closing():
            self.send(data, last)
            self.advance()

    def refuse(self) -> None:
        self.send(BAD_REQUEST[0], True)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if STARTUP_SECONDS:
        try:
            await asyncio.wait_for(stop.wait(), STARTUP_SECONDS)
            return
        except asyncio.TimeoutError:
            pass
    await loop.create_server(Connection, "0.0.0.0", PORT, backlog=1024)
    print(f"{POD_NAME} {VERSION} listens on port {PORT}", flush=True)
    await stop.wait()
    if ON_TERM == "drain":
        await asyncio.sleep(DRAIN_SECONDS)


asyncio.run(serve())
