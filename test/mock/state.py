"""What the platform remembers: tokens, how much each app asked lately, the flows that started."""
import base64
import collections
import json
import math
import secrets
import time

from .message import cut, dump, load_or_none

FIRST_EXECUTION_ID = 1816970091484211  # the document's example: an int64 beyond a double's 2**53


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
            # earlier than a client asks (25 minutes, or a quarter), whose clock for it began before ours
            if left >= min(1800, self.valid[token][2] * 0.3):
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
        claims = {"iss": "feishu_mock", "client_id": app_id, "iat": int(time.time()),
                  "exp": int(time.time() + lifetime)}
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

    def __init__(self, path=None, most=None):
        self.list, self.keys, self.file, self.most = [], set(), None, most
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
        flow = cut({"execution_id": str(self.next_id), **flow, "time": time.time()}, self.most)
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
