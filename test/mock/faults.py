"""What the faults do."""
import asyncio
import base64
import functools
import http
import os
import zlib

from .message import JSON_TYPE, Answer, dump, load_or_none
from .platform import rate_headers
from .rules import FAULTS


def set_path(obj, path, value, remove=False):
    """obj["a"]["b"] = value for path "a.b"; members on the way are made."""
    *way, last = path.split(".")
    for name in way:
        if not isinstance(obj.get(name), dict):
            obj[name] = {}
        obj = obj[name]
    if remove:
        obj.pop(last, None)
    else:
        obj[last] = value


@functools.lru_cache(8)
def pack_spaces(size):
    """A JSON object of that size, packed by gzip."""
    packer, block = zlib.compressobj(1, wbits=31), b" " * (1 << 20)
    parts = [packer.compress(b'{"code":0,"msg":"')]
    parts += [packer.compress(block) for _ in range(size >> 20)]
    return b"".join(parts) + packer.compress(b'"}') + packer.flush()


class Faults:
    """One method per fault type: do_TYPE(conn, request, options, answer). answer is what the platform
    said, or None when "started" is false and it was never asked. A coroutine runs as the connection's
    task and is cancelled when the client goes away."""
    BAD_BYTES = {"not_utf8": b"\xff\xfe\xe4\xbd", "nul": b"a\\u0000b", "raw_nul": b"a\0b",
                 "lone_surrogate": b"a\\ud800b"}
    MARK = "<<feishu-mock>>"

    def __init__(self, platform, rules):
        self.platform, self.rules, self.held = platform, rules, set()

    def apply(self, conn, request, fault):
        kind = fault["type"]
        request.entry["fault"] = kind
        judged = fault.get("started", FAULTS[kind][1])
        answer = self.platform.answer(request) if judged else None
        handler = self.do_bad_bytes if kind in self.BAD_BYTES else getattr(self, "do_" + kind)
        conn.run(request, lambda: handler(conn, request, fault, answer))

    def valid(self, answer):
        """Something to spoil when the platform was not asked."""
        return answer or self.platform.ok({"code": 0, "data": {}, "msg": "success"})

    # -- late or never

    async def do_latency(self, conn, request, fault, answer):
        ms = fault.get("ms", 1000)
        if isinstance(ms, list):
            ms = self.rules.random.uniform(*ms)
        await asyncio.sleep(ms / 1000)
        conn.answer(request, answer or self.platform.answer(request))

    async def do_hold(self, conn, request, fault, answer):
        gate = asyncio.get_running_loop().create_future()
        self.held.add(gate)
        try:
            await gate
        finally:
            self.held.discard(gate)
        conn.answer(request, answer or self.platform.answer(request))

    def release(self):
        gates = [gate for gate in self.held if not gate.done()]
        for gate in gates:
            gate.set_result(None)
        return len(gates)

    def do_hang(self, conn, request, fault, answer):
        pass

    def do_headers_hang(self, conn, request, fault, answer):
        answer = self.valid(answer)
        conn.begin(request, answer.status, answer.head())

    def do_half_headers_hang(self, conn, request, fault, answer):
        head = self.valid(answer).head()
        conn.write(head[:len(head) // 2])

    # -- broken connections

    def do_reset_before(self, conn, request, fault, answer):
        conn.drop(request, rst=True)

    do_reset = do_reset_after = do_reset_before

    def do_close_after(self, conn, request, fault, answer):
        conn.drop(request)

    def do_die(self, conn, request, fault, answer):
        os._exit(0)

    async def do_half_answer(self, conn, request, fault, answer):
        answer = self.valid(answer)
        conn.begin(request, answer.status, answer.head() + answer.body[:len(answer.body) // 2])
        await asyncio.sleep(0.02)  # so that the half is read before the reset
        conn.drop(request, rst=fault.get("rst"))

    def do_twice(self, conn, request, fault, answer):
        conn.answer(request, self.platform.answer(request))

    async def do_unasked(self, conn, request, fault, answer):
        conn.answer(request, self.valid(answer))
        await asyncio.sleep(fault.get("interval_ms", 20) / 1000)
        conn.write(self.platform.ok({"code": 0, "data": {}, "msg": "unasked"}).encode(True))
        request.entry["unasked"] = True

    def do_idle_end(self, conn, request, fault, answer):
        answer = self.valid(answer)
        if "announce" in fault:
            answer.headers.append(("Keep-Alive", f"timeout={fault['announce']}"))
        conn.end_when_idle(fault.get("after", 1), fault.get("lag_ms", 0) / 1000)
        conn.answer(request, answer)

    INTERIM = [("X-Tt-Logid", "interim"), ("X-Ogw-Ratelimit-Reset", "60"), ("Retry-After", "60"),
               ("Location", "https://elsewhere.invalid/"), ("Content-Type", "text/html"), ("Content-Encoding", "gzip")]

    def do_interim(self, conn, request, fault, answer):
        heads = [f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in self.INTERIM)
                 for status in ("103 Early Hints", "100 Continue")]
        conn.write("\r\n".join([*heads, ""]).encode())
        conn.answer(request, self.valid(answer))

    def do_garbage(self, conn, request, fault, answer):
        conn.write(b"\x16\x03\x01 SSH-2.0-this is not HTTP\r\n\0\xff\xfe" + bytes(range(256)) + b"\r\n\r\n")
        conn.drop(request)

    async def do_raw(self, conn, request, fault, answer):
        conn.write(base64.b64decode(fault.get("bytes_b64", "")) + fault.get("text", "").encode())
        if fault.get("rst") or fault.get("close", True):
            await asyncio.sleep(0.02)
            conn.drop(request, rst=fault.get("rst"))

    # -- refusals

    def do_status(self, conn, request, fault, answer):
        status, body, content_type = fault.get("status", 500), fault.get("body"), fault.get("content_type")
        if body is None and status >= 500:
            phrase = f"{status} {http.HTTPStatus(status).phrase}" if status in list(http.HTTPStatus) else status
            body = f"<html><head><title>{phrase}</title></head><body><center><h1>{phrase}</h1></center></body></html>"
            content_type = content_type or "text/html"
        data = b"" if body is None else body.encode() if isinstance(body, str) else dump(body)
        if content_type is None and body is not None:
            is_text = isinstance(body, str) and load_or_none(body) is None
            content_type = "text/plain; charset=utf-8" if is_text else JSON_TYPE
        conn.answer(request, Answer(status, b"" if status in (204, 304) else data, fault.get("headers", {}).items(),
                                    content_type))

    def do_code(self, conn, request, fault, answer):
        code, headers = fault.get("code", 1500), list(fault.get("headers", {}).items())
        if code == 99991400:
            headers += rate_headers(50, fault.get("reset", 1))
        conn.answer(request, self.platform.refusal(code, fault.get("msg"), fault.get("http_status"), fault.get("error"),
                                                   self.platform.app_of(request) or "", headers, request.kind))

    def do_inner(self, conn, request, fault, answer):
        conn.answer(request, self.platform.inner(fault.get("code", "k_ec_000001"), fault.get("error_msg"),
                                                 fault.get("status", "")))

    # -- answers that are valid HTTP but no good

    def do_truncated_json(self, conn, request, fault, answer):
        answer = self.valid(answer)
        conn.answer(request, answer.replaced(answer.body[:len(answer.body) // 2]))

    def do_empty(self, conn, request, fault, answer):
        conn.answer(request, Answer(200, b""))

    def do_wrong_types(self, conn, request, fault, answer):
        answer = self.valid(answer)
        obj = answer.json()
        for path, value in fault.get("set", {}).items():
            set_path(obj, path, value)
        for path in fault.get("remove", []):
            set_path(obj, path, None, remove=True)
        conn.answer(request, answer.replaced(obj))

    def do_bad_bytes(self, conn, request, fault, answer):
        answer = self.valid(answer)
        obj = answer.json()
        set_path(obj, fault.get("field", "msg"), self.MARK)
        conn.answer(request, answer.replaced(dump(obj).replace(self.MARK.encode(), self.BAD_BYTES[fault["type"]])))

    def do_big(self, conn, request, fault, answer):
        answer = self.valid(answer)
        obj = answer.json()
        obj.update(values=[""] * fault.get("values", 0), padding="")
        obj["padding"] = "x" * (fault.get("bytes", 16 << 20) - len(dump(obj)))
        conn.answer(request, answer.replaced(obj))

    def do_deep(self, conn, request, fault, answer):
        answer, depth = self.valid(answer), fault.get("depth", 100000)
        obj = answer.json()
        set_path(obj, "data.deep", self.MARK)
        conn.answer(request, answer.replaced(dump(obj).replace(f'"{self.MARK}"'.encode(), b"[" * depth + b"]" * depth)))

    def do_gzip(self, conn, request, fault, answer):
        answer = self.valid(answer)
        answer.headers.append(("Content-Encoding", "gzip"))
        packer = zlib.compressobj(wbits=31)
        conn.answer(request, answer.replaced(packer.compress(answer.body) + packer.flush()))

    async def do_gzip_bomb(self, conn, request, fault, answer):
        answer = self.valid(answer)
        answer.headers.append(("Content-Encoding", "gzip"))
        body = await asyncio.get_running_loop().run_in_executor(None, pack_spaces, fault.get("bytes", 1 << 30))
        conn.answer(request, answer.replaced(body))

    # -- answers in pieces

    def do_no_length(self, conn, request, fault, answer):
        answer = self.valid(answer)
        conn.begin(request, answer.status, answer.head(False, length=False) + answer.body)
        conn.drop(request)

    CHUNKED = [("Transfer-Encoding", "chunked")]

    def do_chunked(self, conn, request, fault, answer):
        answer, half = self.valid(answer), len(self.valid(answer).body) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (answer.body[:half], answer.body[half:])
                          if part)
        conn.begin(request, answer.status, answer.head(request.keep_alive, False, self.CHUNKED) + chunks + b"0\r\n\r\n")
        conn.finish(request)

    async def do_chunked_endless(self, conn, request, fault, answer):
        conn.begin(request, 200, self.valid(answer).head(True, False, self.CHUNKED) + b'11\r\n{"code":0,"msg":"\r\n')
        size = fault.get("bytes", 16)
        while not conn.closed:
            await asyncio.sleep(fault.get("interval_ms", 100) / 1000)
            await conn.writable.wait()
            conn.write(b"%x\r\n%b\r\n" % (size, b"x" * size))

    async def do_chunked_endless_fast(self, conn, request, fault, answer):
        await self.do_chunked_endless(conn, request, {"interval_ms": 0, "bytes": 65536}, answer)

    async def do_slow_drip(self, conn, request, fault, answer):
        answer, step = self.valid(answer), fault.get("bytes", 1)
        head, data = answer.head(request.keep_alive), answer.body
        if fault.get("headers"):
            head, data = b"", head + data
        conn.begin(request, answer.status, head)
        for at in range(0, len(data), step):
            await asyncio.sleep(fault.get("interval_ms", 100) / 1000)
            conn.write(data[at:at + step])
        conn.finish(request)
