"""One HTTP request as the mock sees it, one HTTP answer as it leaves, and the JSON in both."""
import http
import json
import re
from urllib.parse import unquote

JSON_TYPE = "application/json; charset=utf-8"

LEGACY_TOKEN_PATH = "/open-apis/auth/v3/tenant_access_token/internal"
OAUTH_TOKEN_PATH = "/oauth/v3/token"
SCOPES_PATH = "/open-apis/application/v6/scopes"
EXECUTE_PATH = re.compile(r"/open-apis/apaas/v1/applications/([^/]+)/flows/([^/]+)/execute")


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


def cut(value, most):
    """A JSON value whose strings have at most so many characters, and arrays elements; None: as they are."""
    if most is None:
        return value
    if isinstance(value, str):
        return value[:most]
    if isinstance(value, dict):
        return {name: cut(member, most) for name, member in value.items()}
    if isinstance(value, list):
        return [cut(element, most) for element in value[:most]]
    if isinstance(value, int) and value.bit_length() > 64:
        return str(value)[:20]
    return value


def media_type(request):
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


class Request:
    """One HTTP request, and what the mock makes of it."""
    __slots__ = ("method", "target", "path", "query", "headers", "body", "keep_alive",
                 "kind", "namespace", "flow_id", "json", "key", "entry", "address")

    def __init__(self, method, target, headers, body, keep_alive):
        self.method, self.target, self.headers, self.body, self.keep_alive = method, target, headers, body, keep_alive
        self.path, _, self.query = target.partition("?")
        self.namespace = self.flow_id = self.json = self.key = self.entry = self.address = None
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
        if self.path == SCOPES_PATH:
            return "scopes"
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
