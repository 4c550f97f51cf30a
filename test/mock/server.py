"""The HTTP server, and what ties the parts of the mock together."""
import asyncio
import collections
import socket
import struct
import traceback
from urllib.parse import urlsplit

from .control import Control
from .faults import Faults
from .journal import Journal
from .message import Answer, Request
from .platform import Platform
from .rules import Rules
from .state import parse_rate

MAX_HEAD, MAX_BODY = 256 * 1024, 256 * 1024 * 1024


class Mock:
    """Ties the parts together; one for the process."""

    def __init__(self, config, seed=None, state_file=None, log_file=None, most=None):
        self.config = config
        self.platform = Platform(config, state_file, most)
        self.journal = Journal(config, log_file, most)
        self.rules = Rules(seed)
        self.faults = Faults(self.platform, self.rules)
        self.control = Control(self)
        self.connections, self.executing, self.last_connection = set(), 0, 0
        self.clear_counters()

    def clear_counters(self):
        self.kinds = dict.fromkeys(("token", "oauth", "scopes", "execute", "other"), 0)
        self.connections_total, self.max_executing = len(self.connections), self.executing

    def handle(self, conn, request):
        if request.kind == "control":
            conn.run(request, lambda: self.control.handle(conn, request))
            return
        self.kinds[request.kind] += 1
        if request.kind == "execute":
            self.executing += 1
            self.max_executing = max(self.max_executing, self.executing)
        self.journal.arrived(request, conn.id)
        request.entry["app_id"] = self.platform.app_of(request)
        if self.journal.waiters:
            self.journal.tell("arrived", request.entry)
        fault = self.rules.pick(request, self.platform.app_of) if self.rules.list else None
        if fault is None:
            conn.answer(request, self.platform.answer(request))
        else:
            self.faults.apply(conn, request, fault)

    def ended(self, request, status=None, aborted=False):
        """A request came to its end: answered, dropped by a fault, or abandoned by the client."""
        if request.entry is not None:
            self.executing -= request.kind == "execute"
            self.journal.ended(request.entry, status, aborted)

    def stats(self):
        platform = self.platform
        return {"requests": sum(self.kinds.values()), "tokens_issued": platform.tokens_issued,
                "token_requests": self.kinds["token"] + self.kinds["oauth"], "executes": self.kinds["execute"],
                "started": len(platform.flows.list), "duplicates": platform.duplicates,
                "rate_limited": platform.rate_limited, "held": len(self.faults.held), "executing": self.executing,
                "max_concurrent_executes": self.max_executing, "connections_open": len(self.connections),
                "connections_total": self.connections_total, "kinds": self.kinds}

    def configure(self, changes):
        unknown = set(changes) - set(self.config)
        if unknown:
            raise ValueError(f"no setting {', '.join(sorted(unknown))}; there are {', '.join(self.config)}")
        changes = dict(changes)
        if "rate" in changes:
            self.platform.rate.rates = parse_rate(changes["rate"])
            self.platform.rate.windows.clear()
        for app_id, secret in changes.pop("apps", {}).items():
            if secret is None:
                self.config["apps"].pop(app_id, None)
            else:
                self.config["apps"][app_id] = secret
        self.config.update(changes)
        if "log_limit" in changes:
            self.journal.entries = collections.deque(self.journal.entries, maxlen=self.config["log_limit"])
        return self.config

    def reset(self):
        self.rules.list = []
        self.faults.release()
        self.journal.clear()
        self.platform.reset()
        self.clear_counters()


class Connection(asyncio.Protocol):
    """HTTP/1.1 on one connection: keep-alive, one request at a time (what a client sends ahead waits)."""

    def __init__(self, mock):
        self.mock, self.buffer = mock, bytearray()
        self.request = self.task = self.id = self.idle_end = None
        self.fresh, self.deaf, self.closed, self.parsing, self.continued = True, False, False, False, False
        self.writable = asyncio.Event()
        self.writable.set()

    # -- the loop's calls

    def connection_made(self, transport):
        mock, self.transport = self.mock, transport
        mock.last_connection += 1
        mock.connections_total += 1
        mock.connections.add(self)
        self.id = mock.last_connection  # asyncio itself sets TCP_NODELAY
        self.address = transport.get_extra_info("sockname")[0]

    def connection_lost(self, problem):
        self.closed = True
        self.writable.set()
        self.mock.connections.discard(self)
        if self.idle_end:
            self.idle_end.cancel()
        if self.task:
            self.task.cancel()
        if self.request is not None:
            request, self.request = self.request, None
            self.mock.ended(request, aborted=True)

    def pause_writing(self):
        self.writable.clear()

    def resume_writing(self):
        self.writable.set()

    def data_received(self, data):
        if self.idle_end:
            self.idle_end.cancel()
            self.idle_end = None
        if self.fresh:
            self.fresh = False
            self.first_bytes(data)
        if self.deaf:
            return
        self.buffer += data
        if self.request is None and not self.parsing:
            self.serve()

    def first_bytes(self, data):
        if b" /_mock/" in data[:32]:  # the test's own connections are not counted and never faulty
            self.mock.connections.discard(self)
            self.mock.connections_total -= 1
            return
        fault = self.mock.rules.pick(None, None) if self.mock.rules.list else None
        if fault:
            self.deaf = True
            if fault["type"] != "hang":
                self.reset()

    # -- requests in

    def serve(self):
        self.parsing = True
        while self.request is None and self.buffer and not self.closed:
            request = self.parse()
            if request is None:
                break
            self.request, request.address = request, self.address
            self.mock.handle(self, request)
        self.parsing = False

    def parse(self):
        """The next request, or None as long as it is not complete."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return self.bad(431) if len(self.buffer) > MAX_HEAD else None
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        try:
            method, target, version = first.split(" ")
            headers = {}
            for line in lines:
                name, colon, value = line.partition(":")
                if not colon:
                    return self.bad(400)
                headers[name.lower()] = value.strip()
            length = int(headers.get("content-length", 0))
            if not 0 <= length <= MAX_BODY:
                return self.bad(413)
            start, stop, body = end + 4, end + 4 + length, None
            if headers.get("transfer-encoding", "").lower() == "chunked":
                body, stop = self.dechunk(start)
            elif len(self.buffer) >= stop:
                body = bytes(self.buffer[start:stop])
        except ValueError:
            return self.bad(400)
        if body is None:
            if headers.get("expect", "").lower() == "100-continue" and not self.continued:
                self.continued = True
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        del self.buffer[:stop]
        self.continued = False
        if target.startswith("http"):  # the absolute form, as sent to a proxy
            parts = urlsplit(target)
            target = parts.path + ("?" + parts.query if parts.query else "")
        keep = headers.get("connection", "keep-alive" if version == "HTTP/1.1" else "close").lower() != "close"
        return Request(method, target, headers, body, keep)

    def dechunk(self, at):
        """-> (body, end), or (None, 0) as long as the last chunk is missing."""
        body = bytearray()
        while True:
            eol = self.buffer.find(b"\r\n", at)
            if eol < 0:
                return None, 0
            size = int(bytes(self.buffer[at:eol]).split(b";")[0], 16)
            at = eol + 2
            if len(self.buffer) < at + size + 2:
                return None, 0
            if size == 0:
                return bytes(body), at + 2
            body += self.buffer[at:at + size]
            at += size + 2

    def bad(self, status):
        self.write(Answer(status, b"").encode(False))
        self.deaf = self.closed = True
        self.transport.close()

    # -- answers out

    def run(self, request, handler):
        """Calls a handler that may be a coroutine; whoever gave it impossible options reads why on stderr."""
        async def guarded(coroutine):
            try:
                await coroutine
            except Exception:
                self.failed(request)
        try:
            result = handler()
        except Exception:
            return self.failed(request)
        if asyncio.iscoroutine(result):
            self.task = asyncio.get_running_loop().create_task(guarded(result))

    def failed(self, request):
        traceback.print_exc()
        self.drop(request)

    def write(self, data):
        if not self.closed:
            self.transport.write(data)

    def answer(self, request, answer):
        """A whole answer in one write."""
        self.write(answer.encode(request.keep_alive))
        self.finish(request, answer.status)

    def begin(self, request, status, data):
        """The beginning of an answer; finish or drop ends it, or nobody does."""
        if request.entry is not None:
            request.entry["status"] = status
        self.write(data)

    def finish(self, request, status=None):
        if self.request is not request:
            return
        self.request = self.task = None
        self.mock.ended(request, status)
        if not request.keep_alive:
            self.closed = True
            self.transport.close()
        elif self.buffer and not self.parsing:
            self.serve()

    def end_when_idle(self, after, lag):
        """From now on: deaf after so many seconds without a byte, and closed a lag later."""
        loop = asyncio.get_running_loop()

        def end():
            self.idle_end, self.deaf = None, True
            self.transport.pause_reading()
            loop.call_later(lag, self.transport.close)
        self.idle_end = loop.call_later(after, end)

    def drop(self, request, rst=False):
        """Ends the connection: cleanly (FIN), or with a reset."""
        if self.request is request:
            self.request = None
            self.mock.ended(request)
        self.closed = True
        if rst:
            self.reset()
        else:
            self.transport.close()

    def reset(self):
        """SO_LINGER with no time makes close() send RST."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
