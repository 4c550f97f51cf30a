"""Fault rules: which faults there are, and which request meets one."""
import math
import random
import re

# Fault types: options, default of "started", what it does.
FAULTS = {
    "latency": ("ms", True, "waits ms (a number or [min, max]), then answers as usual"),
    "hold": ("", True, "waits for /_mock/release, then answers as usual"),
    "hang": ("", False, "never answers"),
    "reset": ("", False, "TCP reset (for kind accept; same as reset_before)"),
    "reset_before": ("", False, "TCP reset on arrival"),
    "reset_after": ("", True, "accepted, then TCP reset instead of an answer"),
    "close_after": ("", True, "accepted, then a clean close (FIN) without a byte"),
    "die": ("", False, "accepted, and then there is no mock any more"),
    "half_answer": ("rst", True, "headers and half of the body, then FIN (rst true: RST)"),
    "twice": ("", True, "a gateway sends the request twice and passes on the second answer (the key is used then)"),
    "unasked": ("interval_ms", True,
                "answers as usual, and after interval_ms (20) once more (member unasked of the log: it did)"),
    "truncated_json": ("", True, "a complete HTTP message, its JSON cut in the middle"),
    "idle_end": ("after lag_ms announce", True,
                 "answers as usual, and ends the connection when no request came after (1) seconds: "
                 "lag_ms (0) before the FIN, nothing is read any more; announce N: with Keep-Alive: timeout=N"),
    "interim": ("", True, "103 and 100 with headers of another's answer, then answers as usual"),
    "garbage": ("", False, "bytes that are not HTTP, then FIN"),
    "raw": ("bytes_b64 text close rst", False, "these bytes; close (default true), rst: how it ends"),
    "status": ("status body content_type headers", False,
               "canned answer (default 500); body: text, or JSON to be encoded; "
               "no body and >= 500: an HTML page"),
    "code": ("code msg http_status error headers reset", False,
             "platform refusal; error is merged into the error member; "
             "reset: x-ogw-ratelimit-reset of 99991400"),
    "inner": ("code error_msg status", False, "HTTP 200, code 0, this data.code"),
    "wrong_types": ("set remove", True,
                    'members replaced, e.g. {"set": {"code": "0", "data.status": 7}, "remove": ["data.code"]}'),
    "big": ("bytes values", True, "a valid answer of that size (default 16 MiB), of which some are so many (0) values"),
    "deep": ("depth", True, "a valid answer, data.deep holds that many nested arrays (default 100000)"),
    "chunked": ("", True, "a valid answer, Transfer-Encoding: chunked"),
    "chunked_endless": ("interval_ms bytes", True, "a chunk of bytes (16) every interval_ms (100), for ever"),
    "chunked_endless_fast": ("", True, "chunks as fast as they are read, for ever"),
    "slow_drip": ("interval_ms bytes headers", True,
                  "the body by bytes (1) every interval_ms (100); headers true: them too"),
    "no_length": ("", True, "a valid answer without Content-Length, ended by FIN"),
    "gzip": ("", True, "a valid answer, Content-Encoding: gzip"),
    "gzip_bomb": ("bytes", True, "gzip that unpacks to bytes (default 1 GiB)"),
    "not_utf8": ("field", True, "a string (default: msg; dots go down) with bytes that are not UTF-8"),
    "nul": ("field", True, "a string with the escape \\u0000"),
    "raw_nul": ("field", True, "a string with a NUL byte"),
    "lone_surrogate": ("field", True, "a string with the escape \\ud800"),
    "empty": ("", True, "200 with Content-Length: 0"),
    "headers_hang": ("", True, "status line and headers, then nothing"),
    "half_headers_hang": ("", True, "half of the headers, then nothing"),
}


class Rule:
    MATCH = {"kind", "namespace", "flow_id", "key", "app_id", "address", "path_regex", "params_regex"}
    MEMBERS = {"match", "skip", "times", "every", "probability", "fault"}

    def __init__(self, spec):
        if not isinstance(spec, dict) or not isinstance(spec.get("fault"), dict):
            raise ValueError("a rule is an object with a fault")
        self.spec, self.match, self.fault = spec, spec.get("match") or {}, spec["fault"]
        kind = self.fault.get("type")
        if kind not in FAULTS:
            raise ValueError(f"no fault type {kind!r}; there are {', '.join(FAULTS)}")
        for what, given, known in (("rule", spec, self.MEMBERS), ("match", self.match, self.MATCH),
                                   (kind, self.fault, {"type", "started", *FAULTS[kind][0].split()})):
            if set(given) - known:
                raise ValueError(f"{what} has no {', '.join(sorted(set(given) - known))}; "
                                 f"it has {', '.join(sorted(known))}")
        self.kind = self.match.get("kind", "any")
        if self.kind not in ("execute", "token", "oauth", "scopes", "other", "any", "accept"):
            raise ValueError(f"no kind {self.kind!r}")
        if self.kind == "accept" and kind not in ("hang", "reset", "reset_before"):
            raise ValueError("kind accept knows the faults hang and reset")
        self.path_regex = re.compile(self.match.get("path_regex", ""))
        self.params_regex = re.compile(self.match["params_regex"]) if "params_regex" in self.match else None
        self.matched = self.fired = 0

    def applies(self, request, app_of):
        match = self.match
        if self.kind not in ("any", request.kind):
            return False
        for name in ("namespace", "flow_id", "key", "address"):
            if name in match and match[name] != getattr(request, name):
                return False
        if "app_id" in match and match["app_id"] != app_of(request):
            return False
        if self.params_regex:
            params = request.json.get("params") if isinstance(request.json, dict) else None
            if not isinstance(params, str) or not self.params_regex.search(params):
                return False
        return bool(self.path_regex.search(request.target))

    def fires(self, random_number):
        self.matched += 1
        spec, turn = self.spec, self.matched - int(self.spec.get("skip", 0))
        if turn < 1 or turn % int(spec.get("every", 1)) or self.fired >= spec.get("times", math.inf):
            return False
        if "probability" in spec and random_number() >= spec["probability"]:
            return False
        self.fired += 1
        return True


class Rules:
    def __init__(self, seed=None):
        self.list, self.random = [], random.Random(seed)

    def add(self, specs):
        self.list += [Rule(spec) for spec in (specs if isinstance(specs, list) else [specs])]

    def pick(self, request, app_of):
        """The fault for this request (None for request: for a new connection), or None."""
        for rule in self.list:
            fits = rule.kind == "accept" if request is None else rule.kind != "accept" and rule.applies(request, app_of)
            if fits and rule.fires(self.random.random):
                return rule.fault
        return None

    def show(self):
        return [{**rule.spec, "matched": rule.matched, "fired": rule.fired} for rule in self.list]
