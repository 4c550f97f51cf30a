#!/usr/bin/python3
"""
A mock of the Feishu (Lark) open platform: the part that starts aPaaS flows.

One process, one port, nothing but the Python standard library.  It speaks the platform's API with its
real codes and shapes, records what it was asked, and misbehaves on demand.

  $ feishu_mock.py --port 8080 &          # the first line on stdout is the port (--port 0: any free one)
  8080
  $ TOKEN=$(curl -s localhost:8080/open-apis/auth/v3/tenant_access_token/internal \\
      -H 'Content-Type: application/json' \\
      -d '{"app_id":"cli_mock","app_secret":"mock-secret"}' | jq -r .tenant_access_token)
  $ curl -s localhost:8080/open-apis/apaas/v1/applications/package_1__c/flows/approve/execute \\
      -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json; charset=utf-8' \\
      -d '{"operator":"{\\"_id\\": 1111}","params":"{\\"n\\": 5}","idempotent_key":"k1"}'
  {"code":0,"data":{"code":"","error_msg":"","execution_id":"1816970091484211",...,"status":"end"},"msg":"success"}

PLATFORM ENDPOINTS
  POST /open-apis/auth/v3/tenant_access_token/internal          legacy token (JSON; refusals are HTTP 200)
  POST /oauth/v3/token                                          OAuth 2.0 client credentials (form)
  POST /open-apis/apaas/v1/applications/{namespace}/flows/{flow_id}/execute
  Anything else, or another method: 404 text/plain, as on the platform.

  A token is handed out again until the last 30 minutes of its life (a quarter of it, if that is less);
  then a new one is made and both stay valid.  A repeated idempotent_key (per app) gets HTTP 200, code 0
  and the inner code k_wf_ec_2001008.  Any namespace and flow_id exist.  These flow_ids behave:
    echoParams    returns the params as out_params      rejectedFlow  inner code k_wf_ec_2001001
    refusedFlow   HTTP 400, code 2320001                noScope       HTTP 400, code 99991672 and its helps

CONTROL API (same port, no authorization, never logged, never faulty)
  GET    /_mock/log      requests in order of arrival; filters ?kind= flow_id= namespace= key= app_id= fault=
                         since=SEQ (seq > SEQ), and count=1 for {"count": N}.  kind is token, oauth, execute
                         or other.  status is null while no answer was given; aborted is true when the client
                         closed first; time and done are epoch seconds.
  GET    /_mock/stats    counters
  GET    /_mock/started  flows that started on the platform; ?summary=1 for {"started", "distinct_keys",
                         "keys_started_twice", "distinct_params", "params_started_twice"}
  GET    /_mock/rules    fault rules with their counters     POST /_mock/rules      replace all (a list)
  DELETE /_mock/rules    remove all                          POST /_mock/rules/add  append (a list or one)
  POST   /_mock/release  let all requests held by "hold" go on
  POST   /_mock/reset    forget log, rules, started, keys, tokens, counters (configuration stays)
  POST   /_mock/config   {"apps": {id: secret, id: null}, "token_expire": S, "token_length": N, "rate": "50/1",
                         "log": true, "log_limit": N, "idempotency": true}; GET shows it
  POST   /_mock/tokens/revoke  all tokens are refused from now on; {"keep_issuing_same": true}: and the token
                         endpoints go on handing out the refused one
  POST   /_mock/wait     {"count": N, "timeout": S, "state": "arrived|done|aborted", and the filters of log}:
                         answers as soon as the log has N such requests; HTTP 408 when the time is up

FAULT RULES
  {"match": {"kind": "execute|token|oauth|other|any|accept", "namespace", "flow_id", "key", "app_id",
             "path_regex", "params_regex"},
   "skip": N, "times": N, "every": N, "probability": P, "fault": {"type": ..., ...}}

  All of match must hold (nothing given: any request).  Of the requests that match, the first "skip" are let
  through, then every "every"-th fires, at most "times" times, with "probability".  The first rule that fires
  wins.  regexes are searched, not anchored.  kind accept is tried on a connection's first bytes (hang and
  reset only); control connections are exempt.

  $ curl -s localhost:8080/_mock/rules -d '[{"match": {"kind": "execute", "key": "k1"}, "times": 1,
                                             "fault": {"type": "reset_after"}}]'
  $ curl -s localhost:8080/_mock/rules/add -d '{"probability": 0.1, "fault": {"type": "latency", "ms": [10, 500]}}'
  $ curl -s localhost:8080/_mock/wait -d '{"kind": "execute", "count": 2, "timeout": 10}'
  $ curl -s 'localhost:8080/_mock/started?summary=1'
  $ curl -s localhost:8080/_mock/rules -d '[{"fault": {"type": "status", "status": 301,
                                             "headers": {"Location": "http://localhost:1/"}}}]'

  "started": true on a fault means that the platform received and judged the request as it always does before
  the fault spoils the answer: a valid execute has started its flow and used up its key.  With false it never
  got that far.  The default is per type.  Types and their options:
"""
import argparse
import asyncio
import base64
import collections
import gc
import http
import json
import math
import os
import random
import re
import secrets
import signal
import socket
import ssl
import struct
import sys
import time
import traceback
import zlib
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit

JSON_TYPE = "application/json; charset=utf-8"
MAX_HEAD, MAX_BODY = 256 * 1024, 256 * 1024 * 1024
FIRST_EXECUTION_ID = 1816970091484211  # the document's example: an int64 beyond a double's 2**53
OPEN_SITE = "https://open.feishu.cn"
SCOPE = "app_engine:flow:write"

LEGACY_TOKEN_PATH = "/open-apis/auth/v3/tenant_access_token/internal"
OAUTH_TOKEN_PATH = "/oauth/v3/token"
EXECUTE_PATH = re.compile(r"/open-apis/apaas/v1/applications/([^/]+)/flows/([^/]+)/execute")

# The platform's codes: HTTP status and msg. Clients must not branch on msg; it is here for people.
CODES = {
    1500: (500, "internal error"),
    2200: (500, "internal service error"),
    10003: (200, "invalid param"),
    10014: (200, "app secret invalid"),
    10015: (200, "app_id invalid"),
    2320001: (400, "param is invalid"),
    99991400: (429, "request trigger frequency limit"),
    99991401: (400, "request denied: the IP address is not in the app's allow list"),
    99991403: (429, "the monthly quota of API calls is used up"),
    99991543: (400, "app_id or app_secret error"),
    99991661: (400, "Missing access token for authorization. Please make a request with token attached."),
    99991662: (400, "the app is disabled"),
    99991663: (400, "Invalid access token for authorization. Please make a test attempt with the correct token."),
    99991668: (400, "Invalid access token for authorization. This API does not accept a user_access_token."),
    99991671: (400, "Invalid access token for authorization. Access tokens must start with 't-' or 'u-'."),
    99991672: (400, f"Access denied. One of the following scopes is required: [{SCOPE}]."),
    99991673: (400, "the app is not available in this tenant"),
    99991676: (400, "the token has no permission for this resource"),
    99992402: (400, "field validation failed"),
}
HELPFUL_CODES = {99991401, 99991662, 99991672, 99991673, 99991676}  # refusals that carry error.helps
# OAuth refusals: HTTP status, error, error_description.
OAUTH_CODES = {
    20002: (400, "invalid_client", "The client secret is invalid."),
    20036: (400, "unsupported_grant_type", "The grant type is not supported."),
    20048: (400, "invalid_client", "The app does not exist."),
    20050: (500, "server_error", "An unexpected server error occurred. Please retry your request."),
    20063: (400, "invalid_request", "The request is malformed or lacks a required parameter."),
    20070: (400, "invalid_request", "Basic authentication and client_secret must not be used at once."),
    20072: (503, "temporarily_unavailable", "The server is temporarily unavailable. Please retry your request."),
}
INNER_MSGS = {
    "k_wf_ec_2001008": "the idempotent key has been used",
    "k_wf_ec_2001001": "the parameter of the flow is invalid",
    "k_ec_000054": "the execution timed out",
}
BAD_PARAM = 2320001  # the one code of the document


def dump(value):
    """JSON bytes as the platform writes them: compact, real UTF-8 (escapes only for lone surrogates)."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def reject_constant(name):
    raise ValueError(f"{name} is not JSON")


def load(text, **options):
    """Strict JSON: no NaN or Infinity, bad UTF-8 is an error, and too deep is an error like any other."""
    try:
        return json.loads(text, parse_constant=reject_constant, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def load_or_none(text):
    try:
        return load(text)
    except ValueError:
        return None


def media_type(request):
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


class Request:
    """One HTTP request, and what the mock makes of it."""
    __slots__ = ("method", "target", "path", "query", "headers", "body", "keep_alive",
                 "kind", "namespace", "flow_id", "json", "key", "entry")

    def __init__(self, method, target, headers, body, keep_alive):
        self.method, self.target, self.headers, self.body, self.keep_alive = method, target, headers, body, keep_alive
        self.path, _, self.query = target.partition("?")
        self.namespace = self.flow_id = self.json = self.key = self.entry = None
        self.kind = self._classify()

    def _classify(self):
        if self.path.startswith("/_mock/"):
            return "control"
        if self.path == OAUTH_TOKEN_PATH:
            return "oauth"
        if self.body:
            self.json = load_or_none(self.body)
        if self.path == LEGACY_TOKEN_PATH:
            return "token"
        found = EXECUTE_PATH.fullmatch(self.path)
        if found is None:
            return "other"
        names = [unquote(part) for part in found.groups()]
        if any(name in (".", "..") for name in names):  # a gateway would walk to another endpoint
            return "other"
        self.namespace, self.flow_id = names
        if isinstance(self.json, dict) and isinstance(self.json.get("idempotent_key"), str):
            self.key = self.json["idempotent_key"] or None
        return "execute"


class Answer:
    """One HTTP answer. encode() gives it as one piece, so that it leaves in one write."""
    __slots__ = ("status", "headers", "body")

    def __init__(self, status, body, headers=(), content_type=JSON_TYPE):
        self.status, self.body = status, body
        self.headers = ([("Content-Type", content_type)] if content_type else []) + list(headers)

    def head(self, keep_alive=True, length=None, extra=()):
        """Status line and headers. length None: the body's own; False: no Content-Length at all."""
        try:
            reason = http.HTTPStatus(self.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [f"HTTP/1.1 {self.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"{name}: {value}" for name, value in extra]
        if length is not False and self.status not in (204, 304):
            lines.append(f"Content-Length: {len(self.body) if length is None else length}")
        lines.append("Connection: keep-alive\r\n\r\n" if keep_alive else "Connection: close\r\n\r\n")
        return "\r\n".join(lines).encode("latin-1", "replace")

    def encode(self, keep_alive=True):
        return self.head(keep_alive) + self.body

    def json(self):
        value = load_or_none(self.body)
        return value if isinstance(value, dict) else {"code": 0, "data": {}, "msg": "success"}

    def replaced(self, value):
        """The same answer with another body (bytes, or a value to be written as JSON)."""
        other = Answer(self.status, value if isinstance(value, bytes) else dump(value), content_type=None)
        other.headers = list(self.headers)
        return other


class LogIds:
    """X-Tt-Logid: a timestamp and something unique; it is what the platform's support asks for."""

    def __init__(self):
        self.count, self.tail = 0, secrets.token_hex(5).upper()

    def next(self):
        self.count += 1
        return time.strftime("%Y%m%d%H%M%S") + f"{self.count:08X}{self.tail}"


class Tokens:
    """Both token protocols share the rule of rotation: the same token until its last 30 minutes, then a new
    one while the old one lives on, so a client that refreshes in time never meets a gap."""

    def __init__(self, config):
        self.config = config
        self.clear()

    def clear(self):
        self.current = {}  # (app_id, protocol) -> token
        self.valid = {}    # token -> (app_id, born, lifetime, expires)
        self.revoked = set()

    def issue(self, app_id, protocol):
        """Returns token, seconds left, whether it is new."""
        now = time.time()
        token = self.current.get((app_id, protocol))
        if token is not None:
            left = self.valid[token][3] - now
            if left >= min(1800, self.valid[token][2] / 4):
                return token, int(left), False
        lifetime = self.config["token_expire"]
        token = self._make(app_id, protocol, lifetime)
        self.valid[token] = (app_id, now, lifetime, now + lifetime)
        self.current[app_id, protocol] = token
        return token, max(1, int(lifetime)), True

    def _make(self, app_id, protocol, lifetime):
        length = self.config["token_length"]
        if protocol == "token":
            size = length or 42
            return "t-" + secrets.token_hex(size // 2 + 1)[:max(8, size - 2)]
        claims = {"iss": "feishu_mock", "client_id": app_id, "iat": int(time.time()), "exp": int(time.time() + lifetime)}
        parts = [base64.urlsafe_b64encode(dump(part)).rstrip(b"=").decode()
                 for part in ({"alg": "ES256", "typ": "JWT"}, claims)]
        token = ".".join(parts) + "." + secrets.token_urlsafe(64)
        return (token + secrets.token_urlsafe(length))[:length] if length > len(token) else token

    def revoke(self, keep_issuing_same):
        self.revoked.update(self.valid)
        if not keep_issuing_same:
            self.current.clear()

    def check(self, header):
        """Authorization header -> (app_id, 0) or (None, code)."""
        token = header[7:].strip() if header[:7].lower() == "bearer " else ""
        if not token:
            return None, 99991661
        known = self.valid.get(token)
        if known and token not in self.revoked and known[3] > time.time() and known[0] in self.config["apps"]:
            return known[0], 0
        if token.startswith("u-"):
            return None, 99991668
        return None, 99991663 if token.startswith(("t-", "eyJ")) else 99991671


def parse_rate(text):
    """"50/1", "50/s", "1000/min", or several with commas -> [(count, window seconds)]; empty: no limit."""
    rates = []
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        count, _, window = part.partition("/")
        seconds = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}.get(window) or float(window)
        if int(count) < 1 or not seconds > 0:
            raise ValueError(f"rate {part!r} is not N/WINDOW")
        rates.append((int(count), seconds))
    return rates


class RateLimit:
    """Per app (the platform: per API x app x tenant), windows that open with the first request."""

    def __init__(self):
        self.rates, self.windows = [], {}

    def admit(self, app_id):
        """None, or (limit, seconds until the window ends)."""
        now, opened = time.time(), []
        for count, seconds in self.rates:
            window = self.windows.get((app_id, count, seconds))
            if window is None or now >= window[0] + seconds:
                window = self.windows[app_id, count, seconds] = [now, 0]
            if window[1] >= count:
                return count, max(1, math.ceil(window[0] + seconds - now))
            opened.append(window)
        for window in opened:
            window[1] += 1
        return None


class Flows:
    """Flows that started, and the keys they used up. With a state file they survive the mock's death: a
    platform does not forget. A line is handed to the kernel before the answer leaves."""

    def __init__(self, path=None):
        self.list, self.keys, self.file = [], set(), None
        self.next_id = FIRST_EXECUTION_ID
        if path:
            self.file = open(path, "a+", encoding="utf-8")
            self.file.seek(0)
            text = self.file.read()
            for line in text.splitlines():
                flow = load_or_none(line)  # a torn last line is a flow that never got its answer
                if isinstance(flow, dict):
                    self._remember(flow)
            if text and not text.endswith("\n"):
                self.file.write("\n")

    def _remember(self, flow):
        self.list.append(flow)
        if flow["key"] is not None:
            self.keys.add((flow["app_id"], flow["key"]))
        self.next_id = max(self.next_id, int(flow["execution_id"]) + 1)

    def start(self, **flow):
        flow = {"execution_id": str(self.next_id), **flow, "time": time.time()}
        if self.file:
            self.file.write(json.dumps(flow) + "\n")
            self.file.flush()
        self._remember(flow)
        return flow

    def clear(self):
        self.list, self.keys, self.next_id = [], set(), FIRST_EXECUTION_ID
        if self.file:
            self.file.truncate(0)

    def summary(self):
        keys = collections.Counter((flow["app_id"], flow["key"]) for flow in self.list if flow["key"] is not None)
        params = collections.Counter(json.dumps([flow["namespace"], flow["flow_id"], flow["params"]], sort_keys=True)
                                     for flow in self.list)
        return {"started": len(self.list), "distinct_keys": len(keys),
                "keys_started_twice": [key[1] for key, n in keys.items() if n > 1],
                "distinct_params": len(params),
                "params_started_twice": [json.loads(text) for text, n in params.items() if n > 1][:100]}


class Journal:
    """The request log, and those who wait for something to appear in it."""
    FILTERS = ("kind", "flow_id", "namespace", "key", "app_id", "fault", "connection")

    def __init__(self, config, path=None):
        self.config, self.waiters = config, []
        self.file = open(path, "a", encoding="utf-8", buffering=1) if path else None
        self.clear()

    def clear(self):
        self.seq, self.entries = 0, collections.deque(maxlen=self.config["log_limit"])

    def arrived(self, request, connection_id):
        self.seq += 1
        request.entry = entry = {
            "seq": self.seq, "time": time.time(), "connection": connection_id, "method": request.method,
            "path": request.target, "headers": request.headers, "body": request.body, "json": request.json,
            "kind": request.kind, "namespace": request.namespace, "flow_id": request.flow_id, "key": request.key,
            "app_id": None, "status": None, "fault": None, "done": None, "aborted": False}
        if self.config["log"]:
            self.entries.append(entry)

    def ended(self, entry, status=None, aborted=False):
        entry["done"], entry["aborted"] = time.time(), aborted
        if status is not None:
            entry["status"] = status
        if self.waiters:
            self.tell("done", entry)
            if aborted:
                self.tell("aborted", entry)
        if self.file:
            self.file.write(json.dumps(self.readable(entry)) + "\n")

    def tell(self, state, entry):
        for waiter in self.waiters:
            waiter(state, entry)

    @staticmethod
    def readable(entry):
        return {**entry, "body": entry["body"].decode("utf-8", "replace")}

    def predicate(self, wanted):
        """A test of entries from a dict of filters (a query string's or a JSON body's)."""
        pairs = [(name, str(wanted[name])) for name in self.FILTERS if wanted.get(name) is not None]
        since = int(wanted.get("since") or 0)
        return lambda entry: entry["seq"] > since and all(str(entry[name]) == value for name, value in pairs)

    def select(self, wanted):
        test = self.predicate(wanted)
        return [entry for entry in self.entries if test(entry)]

    async def wait(self, wanted):
        """Until `count` entries that match have reached `state`; returns how many and whether in time."""
        state, count = wanted.get("state", "arrived"), int(wanted.get("count", 1))
        reached = {"arrived": lambda e: True, "done": lambda e: e["done"], "aborted": lambda e: e["aborted"]}[state]
        test, enough = self.predicate(wanted), asyncio.get_running_loop().create_future()
        seen = sum(1 for entry in self.select(wanted) if reached(entry))

        def waiter(event, entry):
            nonlocal seen
            if event == state and test(entry):
                seen += 1
                if seen >= count and not enough.done():
                    enough.set_result(True)
        if seen >= count:
            return seen, True
        self.waiters.append(waiter)
        try:
            await asyncio.wait_for(enough, float(wanted.get("timeout", 30)))
            return seen, True
        except asyncio.TimeoutError:
            return seen, False
        finally:
            self.waiters.remove(waiter)


# Fault types: options, default of "started", what it does.
FAULTS = {
    "latency": ("ms", True, "waits ms (a number or [min, max]), then answers as usual"),
    "hold": ("", True, "waits for /_mock/release, then answers as usual"),
    "hang": ("", False, "never answers"),
    "reset": ("", False, "TCP reset (for kind accept; same as reset_before)"),
    "reset_before": ("", False, "TCP reset on arrival"),
    "reset_after": ("", True, "accepted, then TCP reset instead of an answer"),
    "close_after": ("", True, "accepted, then a clean close (FIN) without a byte"),
    "half_answer": ("rst", True, "headers and half of the body, then FIN (rst true: RST)"),
    "truncated_json": ("", True, "a complete HTTP message, its JSON cut in the middle"),
    "garbage": ("", False, "bytes that are not HTTP, then FIN"),
    "raw": ("bytes_b64 text close rst", False, "these bytes; close (default true), rst: how it ends"),
    "status": ("status body content_type headers", False, "canned answer (default 500); body: text, or JSON to be encoded; "
               "no body and >= 500: an HTML page"),
    "code": ("code msg http_status error headers reset", False, "platform refusal; error is merged into the error member; "
             "reset: x-ogw-ratelimit-reset of 99991400"),
    "inner": ("code error_msg status", False, "HTTP 200, code 0, this data.code"),
    "wrong_types": ("set remove", True, 'members replaced, e.g. {"set": {"code": "0", "data.status": 7}, "remove": ["data.code"]}'),
    "big": ("bytes", True, "a valid answer of that size (default 16 MiB)"),
    "deep": ("depth", True, "a valid answer, data.deep holds that many nested arrays (default 100000)"),
    "chunked": ("", True, "a valid answer, Transfer-Encoding: chunked"),
    "chunked_endless": ("interval_ms bytes", True, "a chunk of bytes (16) every interval_ms (100), for ever"),
    "chunked_endless_fast": ("", True, "chunks as fast as they are read, for ever"),
    "slow_drip": ("interval_ms bytes headers", True, "the body by bytes (1) every interval_ms (100); headers true: them too"),
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
    MATCH = {"kind", "namespace", "flow_id", "key", "app_id", "path_regex", "params_regex"}
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
                raise ValueError(f"{what} has no {', '.join(sorted(set(given) - known))}; it has {', '.join(sorted(known))}")
        self.kind = self.match.get("kind", "any")
        if self.kind not in ("execute", "token", "oauth", "other", "any", "accept"):
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
        for name in ("namespace", "flow_id", "key"):
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


class Platform:
    """What the real platform would do with a request, faults aside. answer() is the whole of it: when it
    has recorded a flow as started, the platform has accepted it, whatever becomes of the answer."""

    def __init__(self, config, state_file=None):
        self.config, self.tokens, self.rate = config, Tokens(config), RateLimit()
        self.flows, self.logids = Flows(state_file), LogIds()
        self.rate.rates = parse_rate(config["rate"])
        self.clear_counters()

    def clear_counters(self):
        self.tokens_issued = self.duplicates = self.rate_limited = 0

    def reset(self):
        self.tokens.clear()
        self.flows.clear()
        self.rate.windows.clear()
        self.clear_counters()

    def answer(self, request):
        handler = {"token": self.legacy_token, "oauth": self.oauth_token, "execute": self.execute}.get(request.kind)
        if handler is None or request.method != "POST":
            return Answer(404, b"404 page not found", [("X-Tt-Logid", self.logids.next())], "text/plain; charset=utf-8")
        return handler(request)

    def ok(self, value, headers=()):
        return Answer(200, dump(value), [("X-Tt-Logid", self.logids.next()), *headers])

    def refusal(self, code, msg=None, status=None, error=None, app_id="", headers=(), kind="execute"):
        """An error body as the platform writes it: error.log_id, a troubleshooter, and helps when an
        administrator can put it right."""
        logid = self.logids.next()
        if kind == "oauth":
            default, name, text = OAUTH_CODES.get(code, (400, "invalid_request", "error"))
            body = {"error": name, "error_description": msg or text, "code": code, **(error or {})}
            return Answer(status or default, dump(body), [("X-Tt-Logid", logid), *headers])
        default, text = CODES.get(code, (400, "error"))
        body = {"code": code, "msg": msg if msg is not None else text}
        if kind != "token":
            search = f"{OPEN_SITE}/search?from=openapi&log_id={logid}&code={code}"
            detail = {"log_id": logid, "troubleshooter": f"排查建议查看(Troubleshooting suggestions): {search}"}
            if code == 99991672:
                detail["permission_violations"] = [{"type": "action_scope_required", "subject": SCOPE}]
            if code in HELPFUL_CODES:
                detail["helps"] = [{"url": f"{OPEN_SITE}/app/{app_id}/auth?q={SCOPE}&op_from=openapi&token_type=tenant",
                                    "description": "点击链接申请并开通权限 (open the link to request the permission)"}]
            body["error"] = {**detail, **(error or {})}
        elif error:
            body["error"] = error
        return Answer(status or default, dump(body), [("X-Tt-Logid", logid), *headers])

    # -- tokens

    def legacy_token(self, request):
        body = request.json if isinstance(request.json, dict) else {}
        app_id, secret = body.get("app_id"), body.get("app_secret")
        if not (isinstance(app_id, str) and app_id and isinstance(secret, str) and secret):
            return self.refusal(10003, kind="token")
        if app_id not in self.config["apps"]:
            return self.refusal(10015, kind="token")
        if self.config["apps"][app_id] != secret:
            return self.refusal(10014, kind="token")
        token, left, new = self.tokens.issue(app_id, "token")
        self.tokens_issued += new
        return self.ok({"code": 0, "msg": "ok", "tenant_access_token": token, "expire": left})

    def oauth_credentials(self, request):
        """-> (id, secret, code): from the body or from Basic, never from both."""
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        scheme, _, basic = request.headers.get("authorization", "").partition(" ")
        if media_type(request) != "application/x-www-form-urlencoded":
            return None, None, 20063
        app_id, secret = form.get("client_id"), form.get("client_secret")
        if scheme.lower() == "basic":
            if secret is not None:
                return None, None, 20070
            try:
                app_id, _, secret = base64.b64decode(basic, validate=True).decode().partition(":")
            except ValueError:
                return None, None, 20063
            app_id, secret = unquote_plus(app_id), unquote_plus(secret)
        if not form.get("grant_type") or not app_id or not secret:
            return None, None, 20063
        return app_id, secret, 0 if form["grant_type"] == "client_credentials" else 20036

    def oauth_token(self, request):
        app_id, secret, code = self.oauth_credentials(request)
        if not code and app_id not in self.config["apps"]:
            code = 20048
        if not code and self.config["apps"][app_id] != secret:
            code = 20002
        if code:
            return self.refusal(code, kind="oauth")
        token, left, new = self.tokens.issue(app_id, "oauth")
        self.tokens_issued += new
        return self.ok({"code": 0, "access_token": token, "token_type": "Bearer", "expires_in": left},
                       [("Cache-Control", "no-store")])

    def app_of(self, request):
        """Which app asks (for the log and the rules); None when that cannot be told."""
        if request.kind == "token":
            return request.json.get("app_id") if isinstance(request.json, dict) else None
        if request.kind == "oauth":
            return self.oauth_credentials(request)[0]
        known = self.tokens.valid.get(request.headers.get("authorization", "")[7:].strip())
        return known and known[0]

    # -- flows

    def execute(self, request):
        app_id, code = self.tokens.check(request.headers.get("authorization", ""))
        if code:
            return self.refusal(code)
        limited = self.rate.admit(app_id)
        if limited:
            self.rate_limited += 1
            return self.refusal(99991400, headers=rate_headers(*limited))
        body, problem = self.check_body(request)
        if problem:
            return problem
        if request.flow_id == "refusedFlow":
            return self.refusal(BAD_PARAM)
        if request.flow_id == "noScope":
            return self.refusal(99991672, app_id=app_id)
        if request.flow_id == "rejectedFlow":
            return self.inner("k_wf_ec_2001001")
        if request.key and self.config["idempotency"] and (app_id, request.key) in self.flows.keys:
            self.duplicates += 1
            return self.inner("k_wf_ec_2001008")
        flow = self.flows.start(app_id=app_id, key=request.key, namespace=request.namespace, flow_id=request.flow_id,
                                params=load_or_none(body.get("params") or "null"), operator=load_or_none(body["operator"]),
                                is_async=bool(body.get("is_async")), loop_masks=body.get("loop_masks"))
        out_params = '[{"api_name":"_flowExecutionID","value":%s}]' % flow["execution_id"]
        if request.flow_id == "echoParams":
            out_params = echo(body.get("params") or "{}")
        data = {"code": "", "error_msg": "", "execution_id": flow["execution_id"], "out_params": out_params,
                "status": "wait" if flow["is_async"] else "end"}
        return self.ok({"code": 0, "data": data, "msg": "success"})

    def inner(self, code, error_msg=None, status=""):
        """A flow that failed inside: HTTP 200 and code 0 outside, which every SDK takes for a success."""
        data = {"code": code, "error_msg": INNER_MSGS.get(code, "the flow failed") if error_msg is None else error_msg,
                "execution_id": "", "out_params": "", "status": status}
        return self.ok({"code": 0, "data": data, "msg": "success"})

    def check_body(self, request):
        """-> (body, None), or (None, refusal)."""
        def missing(field, description):
            return None, self.refusal(99992402, error={"field_violations": [{"field": field, "description": description}]})

        def invalid(field, text):
            return None, self.refusal(BAD_PARAM, error={"message": f"{field} {text}"})

        if media_type(request) != "application/json":
            return missing("Content-Type", "Content-Type must be application/json")
        body = request.json
        if not isinstance(body, dict):
            return missing("body", "the body must be a JSON object")
        if body.get("operator") is None:
            return missing("operator", "operator is required")
        # operator and params are strings that hold JSON, not JSON objects.
        for field in ("operator", "params"):
            value = body.get(field)
            if value is None:
                continue
            if not isinstance(value, str) or not isinstance(load_or_none(value), dict):
                return invalid(field, "is not a string that holds a JSON object")
        who = load_or_none(body["operator"])
        if not who.get("_id") and not who.get("email"):
            return invalid("operator", "has neither _id nor email")
        if not isinstance(body.get("is_async", False), (bool, type(None))):
            return invalid("is_async", "is not a boolean")
        if not isinstance(body.get("idempotent_key", ""), (str, type(None))):
            return invalid("idempotent_key", "is not a string")
        masks = body.get("loop_masks")
        if masks is not None and not (isinstance(masks, list) and len(masks) <= 20 and all(isinstance(m, str) for m in masks)):
            return invalid("loop_masks", "is not an array of at most 20 strings")
        return body, None


def rate_headers(limit, reset):
    return [("x-ogw-ratelimit-limit", limit), ("x-ogw-ratelimit-reset", reset)]


def echo(params):
    """params as out_params. Numbers keep their text (1.10, 1e400, 30 digits): they go through as marks."""
    pairs = load(params, parse_float=lambda text: f"\ue000{text}\ue001", parse_int=lambda text: f"\ue000{text}\ue001")
    text = json.dumps([{"api_name": name, "value": value} for name, value in pairs.items()],
                      separators=(",", ":"), ensure_ascii=False)
    return re.sub("\"\ue000([-+.0-9eE]+)\ue001\"", r"\1", text)


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


class Faults:
    """One method per fault type: do_TYPE(conn, request, options, answer). answer is what the platform
    said, or None when "started" is false and it was never asked. A coroutine runs as the connection's
    task and is cancelled when the client goes away."""
    BAD_BYTES = {"not_utf8": b"\xff\xfe\xe4\xbd", "nul": b"a\\u0000b", "raw_nul": b"a\0b", "lone_surrogate": b"a\\ud800b"}
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

    async def do_half_answer(self, conn, request, fault, answer):
        answer = self.valid(answer)
        conn.begin(request, answer.status, answer.head() + answer.body[:len(answer.body) // 2])
        await asyncio.sleep(0.02)  # so that the half is read before the reset
        conn.drop(request, rst=fault.get("rst"))

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
            content_type = "text/plain; charset=utf-8" if isinstance(body, str) and load_or_none(body) is None else JSON_TYPE
        conn.answer(request, Answer(status, b"" if status in (204, 304) else data, fault.get("headers", {}).items(), content_type))

    def do_code(self, conn, request, fault, answer):
        code, headers = fault.get("code", 1500), list(fault.get("headers", {}).items())
        if code == 99991400:
            headers += rate_headers(50, fault.get("reset", 1))
        conn.answer(request, self.platform.refusal(code, fault.get("msg"), fault.get("http_status"), fault.get("error"),
                                                   self.platform.app_of(request) or "", headers, request.kind))

    def do_inner(self, conn, request, fault, answer):
        conn.answer(request, self.platform.inner(fault.get("code", "k_ec_000001"), fault.get("error_msg"), fault.get("status", "")))

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
        obj["padding"] = ""
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
        def pack(size):
            packer, block = zlib.compressobj(1, wbits=31), b" " * (1 << 20)
            parts = [packer.compress(b'{"code":0,"msg":"')]
            parts += [packer.compress(block) for _ in range(size >> 20)]
            return b"".join(parts) + packer.compress(b'"}') + packer.flush()
        answer = self.valid(answer)
        answer.headers.append(("Content-Encoding", "gzip"))
        body = await asyncio.get_running_loop().run_in_executor(None, pack, fault.get("bytes", 1 << 30))
        conn.answer(request, answer.replaced(body))

    # -- answers in pieces

    def do_no_length(self, conn, request, fault, answer):
        answer = self.valid(answer)
        conn.begin(request, answer.status, answer.head(False, length=False) + answer.body)
        conn.drop(request)

    CHUNKED = [("Transfer-Encoding", "chunked")]

    def do_chunked(self, conn, request, fault, answer):
        answer, half = self.valid(answer), len(self.valid(answer).body) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (answer.body[:half], answer.body[half:]) if part)
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


class Control:
    """The test's side: /_mock/..."""

    def __init__(self, mock):
        self.mock = mock

    async def handle(self, conn, request):
        try:
            result = self.command(request)
            if asyncio.iscoroutine(result):
                result = await result
        except (ValueError, TypeError, KeyError, AttributeError, re.error) as problem:
            result = Answer(400, dump({"error": f"{type(problem).__name__}: {problem}"}))
        conn.answer(request, result if isinstance(result, Answer) else Answer(200, json.dumps(result).encode()))

    def command(self, request):
        """What to answer: an Answer, a value to be written as JSON, or a coroutine that gives one of these."""
        mock, path, method = self.mock, request.path[len("/_mock/"):].rstrip("/"), request.method
        query = dict(parse_qsl(request.query))
        body = load(request.body) if request.body else {}
        if path == "log" and method == "GET":
            entries = mock.journal.select(query)
            return {"count": len(entries)} if query.get("count") else [mock.journal.readable(entry) for entry in entries]
        if path == "stats" and method == "GET":
            return mock.stats()
        if path == "started" and method == "GET":
            return mock.platform.flows.summary() if query.get("summary") else mock.platform.flows.list
        if path == "rules" and method in ("POST", "PUT", "DELETE"):
            old, mock.rules.list = mock.rules.list, []
            try:
                mock.rules.add(body if method != "DELETE" and request.body else [])
            except (ValueError, re.error):
                mock.rules.list = old
                raise
            return mock.rules.show()
        if path == "rules" and method == "GET":
            return mock.rules.show()
        if path == "rules/add" and method == "POST":
            mock.rules.add(body)
            return mock.rules.show()
        if path == "release" and method == "POST":
            return {"released": mock.faults.release()}
        if path == "reset" and method == "POST":
            mock.reset()
            return {}
        if path == "config" and method in ("GET", "POST"):
            return mock.configure(body)
        if path == "tokens/revoke" and method == "POST":
            mock.platform.tokens.revoke(body.get("keep_issuing_same", False))
            return {"revoked": len(mock.platform.tokens.revoked)}
        if path == "wait" and method == "POST":
            return self.wait(body)
        return Answer(404, dump({"error": f"no {method} {request.path}; see feishu_mock.py --help"}))

    async def wait(self, wanted):
        count, in_time = await self.mock.journal.wait(wanted)
        return Answer(200 if in_time else 408, dump({"count": count, "timed_out": not in_time}))


class Mock:
    """Ties the parts together; one for the process."""

    def __init__(self, config, seed=None, state_file=None, log_file=None):
        self.config = config
        self.platform = Platform(config, state_file)
        self.journal = Journal(config, log_file)
        self.rules = Rules(seed)
        self.faults = Faults(self.platform, self.rules)
        self.control = Control(self)
        self.connections, self.executing, self.last_connection = set(), 0, 0
        self.clear_counters()

    def clear_counters(self):
        self.kinds = dict.fromkeys(("token", "oauth", "execute", "other"), 0)
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
        self.request = self.task = self.id = None
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

    def connection_lost(self, problem):
        self.closed = True
        self.writable.set()
        self.mock.connections.discard(self)
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
            self.request = request
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


def help_page():
    width = max(map(len, FAULTS)) + 2
    lines = []
    for name, (options, started, text) in FAULTS.items():
        lines.append(f"    {name:<{width}}{text}")
        lines.append(" " * (width + 4) + f"options: {', '.join(options.split()) or 'none'}; started: {str(started).lower()}")
    return __doc__ + "\n".join(lines)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog="feishu_mock.py", description=help_page(),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free port; it is printed")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="and this key")
    parser.add_argument("--app", action="append", metavar="ID:SECRET", help="an app, may be repeated (default cli_mock:mock-secret)")
    parser.add_argument("--token-expire", type=float, default=7200, metavar="SECONDS", help="lifetime of tokens (7200)")
    parser.add_argument("--token-length", type=int, default=0, metavar="N", help="characters of a token (42; a JWT: as it comes)")
    parser.add_argument("--rate", default="", metavar="N/WINDOW", help="limit per app, e.g. 50/1 or 1000/min,50/s (none)")
    parser.add_argument("--rules", action="append", default=[], metavar="JSON|@FILE", help="fault rules to start with, may be repeated")
    parser.add_argument("--seed", type=int, help="seed of everything random in rules")
    parser.add_argument("--log-file", metavar="FILE", help="append every finished request as a line of JSON")
    parser.add_argument("--no-log", action="store_true", help="keep no request log in memory (for benchmarks)")
    parser.add_argument("--log-limit", type=int, default=200000, metavar="N", help="requests kept in the log (200000)")
    parser.add_argument("--state-file", metavar="FILE", help="started flows, appended and read again at start")
    parser.add_argument("--accept-hang", action="store_true",
                        help="a second port (second line of output) that accepts, reads, and never says a word: no TLS handshake either")
    parser.add_argument("--exit-on-eof", action="store_true", help="stop when stdin is closed, so that it never outlives a test")
    args = parser.parse_args(argv)
    args.apps = dict(app.split(":", 1) if ":" in app else parser.error("--app is ID:SECRET")
                     for app in args.app or ["cli_mock:mock-secret"])
    if bool(args.tls_cert) != bool(args.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    return parser, args


async def run(parser, args):
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    config = {"apps": args.apps, "token_expire": args.token_expire, "token_length": args.token_length, "rate": args.rate,
              "log": not args.no_log, "log_limit": args.log_limit, "idempotency": True}
    try:
        mock = Mock(config, args.seed, args.state_file, args.log_file)
        for text in args.rules:
            if text.startswith("@"):
                with open(text[1:], encoding="utf-8") as file:
                    text = file.read()
            mock.rules.add(load(text))
    except (ValueError, OSError, re.error) as problem:
        parser.error(str(problem))
    context = None
    if args.tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(args.tls_cert, args.tls_key)
        context.set_alpn_protocols(["http/1.1"])
    server = await loop.create_server(lambda: Connection(mock), args.host, args.port, ssl=context, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    if args.accept_hang:
        silent = await loop.create_server(asyncio.Protocol, args.host, 0, backlog=4096)
        print(silent.sockets[0].getsockname()[1], flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if args.exit_on_eof:
        loop.add_reader(sys.stdin, lambda: os.read(sys.stdin.fileno(), 4096) or (loop.remove_reader(sys.stdin), stop.set()))
    gc.set_threshold(100000, 50, 100)  # the log is large and has no cycles
    await stop.wait()
    server.close()
    for conn in list(mock.connections):
        conn.transport.abort()
    await asyncio.sleep(0)  # connection_lost runs: the log file gets the last lines


def main():
    try:
        asyncio.run(run(*parse_arguments()))
    except OSError as problem:
        sys.exit(f"feishu_mock.py: {problem}")


if __name__ == "__main__":
    main()
