#!/usr/bin/env python3
"""
A front of the mock platform that speaks HTTP/2 over TLS, with the faults that only a peer of HTTP/2 can have.

    http2_front.py --upstream http://127.0.0.1:PORT --certificate FILE --key FILE [--log FILE] FAULT...

listens on a port of 127.0.0.1 for each fault, prints a line "FAULT PORT" for each, and serves until its standard input
ends; a line of that, "PORT FAULT", changes a port's fault. As a library:
Front(upstream, certificate, key).start(fault); the attribute "fault" can be changed at any time.

A request that is not refused is sent on to the mock over HTTP/1.1, with the header X-Front: "2 CONNECTION STREAM" or
"1.1 CONNECTION", so that the mock's log tells how it came. The faults hit all requests of HTTP/2 unless it says
otherwise; HTTP/1.1, chosen by ALPN, is well.

    none                  no fault
    rst_http11            RST_STREAM with HTTP_1_1_REQUIRED
    goaway_http11         GOAWAY with HTTP_1_1_REQUIRED and last stream 0, and the connection is closed
    goaway_http11_last    the same with the request's own stream as the last
    rst_protocol          RST_STREAM with PROTOCOL_ERROR
    refuse:N              the first N requests of the front: RST_STREAM with REFUSED_STREAM
    refuse_kept:N         the same, but for the first request of each connection
    refuse_all            every request: RST_STREAM with REFUSED_STREAM
    goaway_lower:N        a connection serves N requests, and refuses the next by GOAWAY with a lower last stream
    goaway_reset:N        the first N requests that are not the first of their connection, when all of it has come:
                          GOAWAY with a lower last stream, and the connection is reset
    interim               103 with headers of an answer (log id, rate limit, location, Retry-After) before the answer
    early_413:HOW         answers 413 when the headers have come, and reads nothing more; HOW: none (goes on), no_error,
                          cancel (RST_STREAM with that), goaway (GOAWAY, then closes), close, reset (of the connection).
                          HTTP/1.1 likewise. early_413:HOW:BYTES: only of requests that are so long
    early_413_bare:HOW    the same without a body or a length of it
    stall                 all but the last byte of an answer, which never ends
    idle_close:SECONDS    a connection is closed when it was idle for so long

The log has a line for each request and each fault that hits it: "FAULT VERSION CONNECTION STREAM WHAT".
"""
import argparse
import asyncio
import socket
import ssl
import struct
import sys
import threading
import urllib.parse

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, HTTP_1_1_REQUIRED = 0x0, 0x1, 0x7, 0x8, 0xD
FRAME_SIZE = 16384  # the largest that everybody takes
WINDOW = 1 << 30  # what may be sent to us at once, unless we do not read
LINGER = 1  # seconds
LOOK = 0.05  # seconds after which it is seen that a client of HTTP/1.1 has gone

INTERIM = [("x-tt-logid", "interim"), ("x-ogw-ratelimit-reset", "60"), ("location", "https://elsewhere.invalid/"),
           ("retry-after", "60"), ("content-type", "text/html"), ("link", "</style.css>; rel=preload")]
EARLY = b"the request is larger than this gateway takes"


class Broken(Exception):
    """The other side does not speak HTTP/2 as it should."""


# ---- HPACK (RFC 7541) ----

STATIC = [(name, value) for name, _, value in (line.partition(" ") for line in """\
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate""".split("\n"))]

# Of the codes of Appendix B only the lengths, in bits: they follow one another by length and octet. Only octets below
# 128 are in a request of ours.
LENGTHS = [int(length) for length in """
13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28
6 10 10 12 13 6 8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10
13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 8 7 8 13 19 13 14 6
15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11 14 13 28""".split()]
LONGEST = 15  # of the visible ones, which are all that there should be


def codes():
    """(length, code) -> octet."""
    found, code, before = {}, 0, 0
    for length, octet in sorted((length, octet) for octet, length in enumerate(LENGTHS) if length <= LONGEST):
        code <<= length - before
        found[length, code] = chr(octet)
        code, before = code + 1, length
    return found


CODES = codes()


def huffman(data):
    text, code, length = [], 0, 0
    for octet in data:
        for bit in range(7, -1, -1):
            code, length = code << 1 | octet >> bit & 1, length + 1
            if (length, code) in CODES:
                text.append(CODES[length, code])
                code = length = 0
            elif length > LONGEST:
                raise Broken("a character that no header should have")
    return "".join(text)  # what is left over are ones


class Hpack:
    """The headers of one direction of a connection."""

    def __init__(self):
        self.dynamic, self.size, self.most = [], 0, 4096
        self.data, self.at = b"", 0

    def number(self, bits):
        most = (1 << bits) - 1
        value = self.data[self.at] & most
        self.at += 1
        shift = 0
        while value >= most:
            octet = self.data[self.at]
            self.at += 1
            value += (octet & 127) << shift
            shift += 7
            if octet < 128:
                break
        return value

    def string(self):
        packed = self.data[self.at] & 128
        length = self.number(7)
        text = self.data[self.at:self.at + length]
        self.at += length
        return huffman(text) if packed else text.decode("latin-1")

    def entry(self, index):
        return STATIC[index - 1] if index <= len(STATIC) else self.dynamic[index - len(STATIC) - 1]

    def shrink(self):
        while self.size > self.most:
            name, value = self.dynamic.pop()
            self.size -= len(name) + len(value) + 32

    def decode(self, data):
        self.data, self.at = data, 0
        headers = []
        while self.at < len(data):
            first = data[self.at]
            if first & 0x80:
                headers.append(self.entry(self.number(7)))
                continue
            if first & 0xE0 == 0x20:
                self.most = self.number(5)
                self.shrink()
                continue
            keep = first & 0x40
            index = self.number(6 if keep else 4)
            name = self.entry(index)[0] if index else self.string()
            headers.append((name, self.string()))
            if keep:
                self.dynamic.insert(0, headers[-1])
                self.size += len(name) + len(headers[-1][1]) + 32
                self.shrink()
        return headers


def encode(headers):
    """Literals, which need no table."""
    def string(text):
        data = text.encode("latin-1")
        size = len(data)
        if size < 127:
            return bytes([size]) + data
        size -= 127
        head = [127]
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        return bytes(head + [size]) + data
    return b"".join(b"\0" + string(name) + string(value) for name, value in headers)


# ---- connections ----

class Stream:
    def __init__(self):
        self.headers, self.body, self.done = [], bytearray(), False


class Connection:
    """One connection of HTTP/2."""

    def __init__(self, front, number, reader, writer):
        self.front, self.number, self.reader, self.writer = front, number, reader, writer
        self.hpack, self.streams, self.block = Hpack(), {}, bytearray()
        self.served, self.last, self.tasks, self.going = 0, 0, {}, False

    def frame(self, kind, flags, stream, data=b""):
        if not self.writer.transport.is_closing():
            self.writer.write(struct.pack(">I", len(data))[1:] + bytes([kind, flags])
                              + struct.pack(">I", stream) + data)

    def headers(self, stream, headers, end=False):
        self.frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, encode(headers))

    def give_up(self, stream):
        """Its client does not want it any more: nor is it asked for."""
        self.streams.pop(stream, None)
        if stream in self.tasks:
            self.tasks[stream].cancel()

    def reset_stream(self, stream, code):
        self.streams.pop(stream, None)
        self.frame(RST_STREAM, 0, stream, struct.pack(">I", code))

    def goaway(self, last, code):
        self.going = True
        self.frame(GOAWAY, 0, 0, struct.pack(">II", last, code))

    async def close(self):
        """Behind a GOAWAY: what comes yet is read, for else the kernel would reset the connection."""
        await self.writer.drain()
        try:
            while await asyncio.wait_for(self.reader.read(65536), LINGER):
                pass
        except (OSError, asyncio.TimeoutError):
            pass
        self.writer.close()

    async def run(self):
        if await self.reader.readexactly(len(PREFACE)) != PREFACE:
            raise Broken("no preface")
        # IDs 3 and 4: how many streams at once, and how much of each unasked
        greedy = not self.front.fault.startswith("early_413")
        self.frame(SETTINGS, 0, 0, struct.pack(">HIHI", 3, 128, 4, WINDOW if greedy else 65535))
        if greedy:
            self.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW))
        while True:
            idle = self.front.fault.partition(":")[2] if self.front.fault.startswith("idle_close") else None
            head = self.reader.readexactly(9)
            if idle and not self.streams:
                head = asyncio.wait_for(head, float(idle))
            head = await head
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
            await self.take(kind, flags, stream, await self.reader.readexactly(size))
            if self.going and not self.streams:
                await self.close()
                return

    async def take(self, kind, flags, stream, data):
        if kind in (DATA, HEADERS) and flags & PADDED:
            data = data[1:len(data) - data[0]]
        if kind == HEADERS and flags & WITH_PRIORITY:
            data = data[5:]
        if kind == SETTINGS and not flags & ACK:
            self.frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self.frame(PING, ACK, 0, data)
        elif kind == RST_STREAM:
            self.give_up(stream)
        elif kind in (HEADERS, CONTINUATION):
            self.block += data
            if kind == HEADERS:
                self.streams[stream] = Stream()
                self.streams[stream].done = bool(flags & END_STREAM)
            if flags & END_HEADERS:
                headers, self.block = self.hpack.decode(bytes(self.block)), bytearray()
                if stream in self.streams:
                    self.streams[stream].headers = headers
                    await self.arrived(stream)
        elif kind == DATA and stream in self.streams:
            self.streams[stream].body += data
            self.streams[stream].done = bool(flags & END_STREAM)
        if (stream in self.streams and self.streams[stream].done and self.front.fault.startswith("goaway_reset:")
                and self.front.refused < int(self.front.fault.partition(":")[2])):
            if self.served > 1:
                await self.go_and_reset(stream)
        if stream in self.streams and self.streams[stream].done and kind in (DATA, HEADERS, CONTINUATION):
            task = asyncio.ensure_future(self.serve(stream, self.streams[stream]))
            self.tasks[stream] = task
            task.add_done_callback(lambda _: self.tasks.pop(stream))

    def note(self, stream, what):
        self.front.note("2", self.number, stream, what)

    async def arrived(self, stream):
        """The headers of a request have: is it to be refused?"""
        fault, _, argument = self.front.fault.partition(":")
        if fault in ("rst_http11", "rst_protocol"):
            self.note(stream, "refused")
            self.reset_stream(stream, HTTP_1_1_REQUIRED if fault == "rst_http11" else PROTOCOL_ERROR)
        elif fault in ("goaway_http11", "goaway_http11_last"):
            self.note(stream, "refused")
            self.streams.clear()
            self.goaway(stream if fault == "goaway_http11_last" else 0, HTTP_1_1_REQUIRED)
            await self.close()
        elif (fault == "refuse_all" or fault in ("refuse", "refuse_kept") and self.front.refused < int(argument)
              and (fault == "refuse" or self.served > 0)):
            self.front.refused += 1
            self.note(stream, "refused")
            self.reset_stream(stream, REFUSED_STREAM)
        elif fault == "goaway_lower" and (self.going or self.served >= int(argument)):
            self.note(stream, "refused")
            del self.streams[stream]
            if not self.going:
                self.goaway(self.last, NO_ERROR)
        elif self.front.too_large(self.streams[stream].headers):
            await self.answer_early(stream, argument.partition(":")[0], fault == "early_413_bare")
        if stream in self.streams:
            self.served, self.last = self.served + 1, stream

    async def go_and_reset(self, stream):
        self.front.refused += 1
        self.note(stream, "refused")
        self.streams.clear()
        self.goaway(stream - 2, NO_ERROR)
        await self.writer.drain()
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def answer_early(self, stream, how, bare):
        self.note(stream, "413")
        del self.streams[stream]
        if bare:
            self.headers(stream, [(":status", "413")], how in ("none", "no_error"))
        else:
            self.headers(stream, [(":status", "413"), ("content-type", "text/plain"),
                                  ("content-length", str(len(EARLY)))])
            self.frame(DATA, END_STREAM, stream, EARLY)
        if how in ("no_error", "cancel"):
            self.reset_stream(stream, NO_ERROR if how == "no_error" else CANCEL)
        elif how == "goaway":
            self.goaway(stream, NO_ERROR)
        if how == "goaway":
            await self.close()
        elif how == "close":
            await self.writer.drain()
            self.writer.close()
        elif how == "reset":
            await self.writer.drain()
            self.writer.transport.abort()

    async def serve(self, number, stream):
        """Send a request on, and its answer back."""
        self.note(number, "served")
        status, headers, body = await self.front.ask(stream.headers, bytes(stream.body), f"2 {self.number} {number}")
        if number not in self.streams:
            return  # it was given up
        if self.front.fault == "interim":
            self.headers(number, [(":status", "103")] + INTERIM)
        self.headers(number, [(":status", str(status))] + headers, not body)
        if self.front.fault == "stall":
            for at in range(0, len(body) - 1, FRAME_SIZE):
                self.frame(DATA, 0, number, body[at:min(at + FRAME_SIZE, len(body) - 1)])
            return
        for at in range(0, len(body), FRAME_SIZE):
            self.frame(DATA, END_STREAM if at + FRAME_SIZE >= len(body) else 0, number, body[at:at + FRAME_SIZE])
        del self.streams[number]
        if self.going and not self.streams:
            await self.close()


# ---- the front ----

class Front:
    def __init__(self, upstream, certificate, key, log=None):
        place = urllib.parse.urlsplit(upstream)
        self.upstream = (place.hostname, place.port)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self.fault, self.port, self.log = "none", None, log
        self.connections = self.refused = 0

    def set_fault(self, fault):
        self.fault, self.refused = fault, 0

    def too_large(self, headers):
        """Does a request of these headers meet early_413?"""
        kind, _, least = (self.fault + "::").split(":")[:3]
        size = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        return kind in ("early_413", "early_413_bare") and size >= int(least or 0)

    def note(self, version, connection, stream, what):
        if self.log:
            self.log.write(f"{self.fault} {version} {connection} {stream} {what}\n")
            self.log.flush()

    async def listen(self, fault="none", port=0):
        self.fault = fault
        server = await asyncio.start_server(self.accept, "127.0.0.1", port, ssl=self.context, limit=1 << 24)
        self.port = server.sockets[0].getsockname()[1]

    def start(self, fault="none", port=0):
        """Listen in a thread of its own. Returns the port."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self.listen(fault, port), loop).result()
        return self.port

    async def accept(self, reader, writer):
        self.connections += 1
        number = self.connections
        try:
            if writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                connection = Connection(self, number, reader, writer)
                try:
                    await connection.run()
                finally:
                    for stream in list(connection.tasks):
                        connection.give_up(stream)
            else:
                await self.accept_http1(number, reader, writer)
        except (Broken, OSError, EOFError, asyncio.TimeoutError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def accept_http1(self, number, reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")[:-2]
            method, path, _ = lines[0].split(" ")
            headers = [tuple(line.split(": ", 1)) for line in lines[1:]]
            if self.too_large(headers):
                self.note("1.1", number, 0, "413")
                writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nContent-Length: "
                             + str(len(EARLY)).encode() + b"\r\n\r\n" + EARLY)
                await writer.drain()
                if self.fault.split(":")[1] == "reset":
                    writer.transport.abort()
                    return
                # as servers do: to close with something unread would take back what was answered
                while await asyncio.wait_for(reader.read(65536), LINGER):
                    pass
                return
            self.note("1.1", number, 0, "served")
            size = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            headers += [(":method", method), (":path", path)]
            task = asyncio.ensure_future(self.ask(headers, await reader.readexactly(size), f"1.1 {number}"))
            while not task.done():
                await asyncio.wait({task}, timeout=LOOK)
                if reader.at_eof():
                    task.cancel()
            if task.cancelled():
                return
            status, headers, body = task.result()
            answer = [f"HTTP/1.1 {status} OK"] + [f"{name}: {value}" for name, value in headers]
            if not any(name == "content-length" for name, _ in headers):
                answer.append(f"content-length: {len(body)}")
            writer.write("\r\n".join(answer + ["", ""]).encode("latin-1") + body)
            await writer.drain()

    async def ask(self, headers, body, how):
        """Send a request to the mock. Returns status, headers, body of its answer; 502 when there is none."""
        named = dict(headers)
        lines = [f"{named[':method']} {named[':path']} HTTP/1.1", f"Host: {self.upstream[0]}:{self.upstream[1]}",
                 "Connection: close", f"X-Front: {how}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers
                  if not name.startswith(":") and name.lower() not in ("content-length", "host", "connection", "te")]
        writer = None
        try:
            reader, writer = await asyncio.open_connection(*self.upstream, limit=1 << 24)
            writer.write("\r\n".join(lines + ["", ""]).encode("latin-1") + body)
            answer = await reader.read()
            head, _, rest = answer.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines[1:])]
            return status, [header for header in headers if header[0] not in ("connection", "transfer-encoding",
                                                                               "keep-alive")], rest
        except (OSError, ValueError, IndexError):
            return 502, [("content-type", "text/plain")], b"no answer"
        finally:
            if writer:
                writer.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--log", type=argparse.FileType("a"))
    parser.add_argument("faults", nargs="+", metavar="FAULT")
    options = parser.parse_args()
    fronts = {}
    for fault in options.faults:
        front = Front(options.upstream, options.certificate, options.key, options.log)
        await front.listen(fault)
        fronts[front.port] = front
        print(fault, front.port, flush=True)

    def obey():
        for line in sys.stdin:
            port, fault = line.split()
            fronts[int(port)].set_fault(fault)
    await asyncio.get_running_loop().run_in_executor(None, obey)


if __name__ == "__main__":
    asyncio.run(main())
