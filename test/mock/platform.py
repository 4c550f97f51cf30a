"""The platform's API: two token protocols, and the execution of flows."""
import base64
import json
import re
import time
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote_plus

from .codes import BAD_PARAM, CODES, HELPFUL_CODES, INNER_MSGS, NO_SUCH_FLOWS, OAUTH_CODES, OPEN_SITE, SCOPE
from .message import Answer, dump, load, load_or_none, media_type
from .state import Flows, LogIds, RateLimit, Tokens, parse_rate


class Platform:
    """What the real platform would do with a request, faults aside. answer() is the whole of it: when it
    has recorded a flow as started, the platform has accepted it, whatever becomes of the answer."""

    def __init__(self, config, state_file=None, most=None):
        self.config, self.tokens, self.rate = config, Tokens(config), RateLimit()
        self.flows, self.logids = Flows(state_file, most), LogIds()
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
        handler = {("POST", "token"): self.legacy_token, ("POST", "oauth"): self.oauth_token,
                   ("POST", "execute"): self.execute,
                   ("GET", "scopes"): self.scopes}.get((request.method, request.kind))
        if handler is None:
            answer = Answer(404, b"404 page not found", [("X-Tt-Logid", self.logids.next())],
                            "text/plain; charset=utf-8")
        else:
            answer = handler(request)
        if self.config["clock"] is not None:
            answer.headers.append(("Date", formatdate(time.time() + self.config["clock"], usegmt=True)))
        return answer

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
                                    "description": "点击链接申请并开通权限 "
                                                   "(open the link to request the permission)"}]
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

    def scopes(self, request):
        """What the tenant granted to the app; no permission is needed to ask."""
        _, code = self.tokens.check(request.headers.get("authorization", ""))
        if code:
            return self.refusal(code)
        granted = self.config["scopes"]
        names = sorted({SCOPE, *granted})
        return self.ok({"code": 0, "msg": "success", "data": {
            "scopes": [{"scope_name": name, "grant_status": 1 if name in granted else 2} for name in names]}})

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
        if SCOPE not in self.config["scopes"]:
            return self.refusal(99991672, app_id=app_id)
        if self.config["namespaces"] is not None and request.namespace not in self.config["namespaces"]:
            return self.inner("k_ec_000009")
        if request.flow_id in NO_SUCH_FLOWS:
            return self.inner("k_wf_ec_200036")
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
                                params=load_or_none(body.get("params") or "null"),
                                operator=load_or_none(body["operator"]),
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
            return None, self.refusal(99992402,
                                      error={"field_violations": [{"field": field, "description": description}]})

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
        if masks is not None and not (isinstance(masks, list) and len(masks) <= 20
                                      and all(isinstance(m, str) for m in masks)):
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
