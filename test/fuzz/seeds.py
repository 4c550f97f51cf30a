#!/usr/bin/env python3
"""Usage: seeds.py FOLDER

Writes the first inputs of the fuzz: the response of the API document, what the mock platform (../feishu_mock.py)
answers to good requests and with each of its faults, texts that are hard to show, and arguments of requests. The
corpus was grown from these; run it again when the mock learns a new answer. See script/fuzz."""
import http.client
import itertools
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
sys.dont_write_bytecode = True
from mock.codes import CODES, OAUTH_CODES  # noqa: E402
from mock.message import dump  # noqa: E402

DOCUMENTED = b"""{
    "code": 0,
    "data": {
        "code": "",
        "error_msg": "",
        "execution_id": "1816970091484211",
        "out_params": "[{\\"api_name\\":\\"_flowExecutionID\\",\\"value\\":1816970091484211}]",
        "status": "end"
    },
    "msg": "success"
}
"""
PATHS = {
    "answer": "/open-apis/apaas/v1/applications/package_7344545d87__c/flows/deleteObject_99c656599f/execute",
    "token": "/open-apis/auth/v3/tenant_access_token/internal",
    "oauth": "/oauth/v3/token",
}
KINDS = {"answer": "execute", "token": "token", "oauth": "oauth"}
ENCODINGS = ["UTF8", "SQL_ASCII", "LATIN1", "EUC_CN", "EUC_JIS_2004", "EUC_KR", "WIN1252", "ISO_8859_5"]
INNER = [7, 0, "00", "-0", "k_wf_ec_2001008", "k_wf_ec_200036", "k_ec_000009", "k_wf_ec_2001001", "k_op_ec_20001",
         "k_ec_000054", "k_unknown", "0"]
VALUES = [None, True, 7, -1, 1.5, "0", "text", [], [1], {}, {"a": 1}]
MEMBERS = ["code", "msg", "data", "data.code", "data.error_msg", "data.execution_id", "data.out_params", "data.status"]

TEXTS = [
    b"plain", b"  blanks  ", b"", b"a\0b", b"line\r\n\tline\x7f\xc2\x85.", b"\xff\xfe\xe4\xbd",
    "\u53c2\u6570\u9519\u8bef wrong".encode(),
    "d\u00e9j\u00e0 \u00a3 \u0416 \u3042 \U0001f600 \u202egnp.\u200f\u2066\ufeff".encode(), b"<html>" + b"x" * 600,
    "\u4e2d".encode() * 400, b"\xa4\xa2\x8e\xb1\x8f\xa2\xa1",
]
REQUESTS = [
    {"namespace": "package_7344545d87__c", "flow_id": "deleteObject_99c656599f",
     "operator": {"_id": 1111, "email": "apaas@bytedance.com"},
     "params": {"variable_rgrtgqworiginal": {"_id": 5454545}},
     "is_async": True, "idempotent_key": "iuhg23897489797", "loop_masks": ["a", "b\"\\"]},
    {"namespace": "caf\u00e9/..", "flow_id": "\u6d41\u7a0b %?#&=+", "operator": {"_id": 9223372036854775807},
     "params": {"\u00e9\"\\\n": ["\u4e2d\u6587", 1e-300, {"": None}]}, "idempotent_key": "cl\u00e9\t"},
    {"namespace": "a", "flow_id": "b", "operator": {"_id": 1, "email": "a@b"}, "idempotent_key": ""},
    {"namespace": "..", "flow_id": "", "operator": {"email": "x"}, "params": [], "loop_masks": [1]},
]
# Written by hand: what no JSON writer writes, and values at a limit.
SPECIAL = [
    b"", b" \r\n\t", b"null", b"[]", b"hello", b"<html>hello</html>", b"{", b'{"code": 0,}', b'{"code": 0} x',
    b"{'code': 0}",
    b'{"code": NaN}', b'{"code": 00}', b'\xef\xbb\xbf{"code": 0}', b'{"code": "0"}', b'{"code": 0.000}',
    b'{"code": -0}',
    b'{"code": 9223372036854775807}', b'{"code": -9223372036854775808}', b'{"code": 9223372036854775808}',
    b'{"code": 1e400}', b'{"code": 0, "n": 1e140000}', b'{"code": 0, "n": 1e-17000}',
    b'{"code": 0, "n": ' + b"9" * 1200 + b"}",
    b'{"code": 0, "m": "\\u0000\\ud800\\udc00\\ud800x\\udc00"}',
    b'{"code": 0, "m": "\\u4e2d\\u00e9\\u0416\\ud83d\\ude00"}',
    b'{"code": 0, "data": {"out_params": "' + b'[' * 60 + b']' * 60 + b'"}}',
    b'{"code": 0, "data": {"out_params": "' + b'[' * 130 + b'"}}', b'{"code": 0, "data": {"out_params": "null"}}',
    b'{"code": 0, "data": {"deep": ' + b'[' * 125 + b']' * 125 + b'}}',
    b'{"code": 0, "deep": ' + b'[' * 200 + b']' * 200 + b'}',
    b'{"code": 0, "data": {"out_params": "{\\"a\\":\\"\\\\u0000\\\\u4e2d\\"}"}}',
    b'{"code": 2320001, "code": 0, "data": {"code": ""}, "data": {}}',
    b'{"code": 99991672, "error": {"log_id": "%s", "helps": [1, {}, {"url": 7}, {"url": "javascript:x"}, {"url": '
    b'"https://a/%s"}],'
    b' "troubleshooter": "(see https://b/c?d=e.), please"}}' % (b"l" * 300, b"u" * 100),
    b'{"code": 99991663, "error": {"troubleshooter": "\xe6\x8e\x92\xe6\x9f\xa5 HTTP://x.y/z\xe3\x80\x82"}}',
    b'{"code":0,"msg":"ok","tenant_access_token":"t-' + b"x" * 4090 + b'","expire":7200}',
    b'{"code":0,"tenant_access_token":"a b","access_token":"\xe4\xb8\xad","expire":"604801","expires_in":-1}',
    b'{"code":0,"tenant_access_token":"x","access_token":"x","token_type":"Bearer","expire":7200,"expires_in":7200}',
    b'{"access_token":"?\\ud800","expires_in":7200.5}',
    b'{"error":"invalid_client","error_description":"no such client"}', b'{"error":null,"access_token":"y"}',
]


class Mock:
    """The mock as a child of ours, asked one thing at a time."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, os.path.join(os.path.dirname(HERE), "feishu_mock.py"),
                                         "--port", "0", "--exit-on-eof"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())

    def post(self, path, body, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, kind, fault=None):
        """-> (status, body) of one request of that kind; fault: a rule for it."""
        self.post("/_mock/rules", json.dumps([{"match": {"kind": KINDS[kind]}, "fault": fault}] if fault else []))
        if kind == "oauth":
            return self.post(PATHS[kind], "grant_type=client_credentials&client_id=cli_mock&client_secret=mock-secret",
                             [("Content-Type", "application/x-www-form-urlencoded")])
        if kind == "token":
            return self.post(PATHS[kind], json.dumps({"app_id": "cli_mock", "app_secret": "mock-secret"}),
                             [("Content-Type", "application/json")])
        token = json.loads(self.ask_token())["tenant_access_token"]
        return self.post(PATHS[kind], json.dumps({"operator": '{"_id": 1111}', "params": '{"n": 5}'}),
                         [("Content-Type", "application/json"), ("Authorization", "Bearer " + token)])

    def ask_token(self):
        return self.post(PATHS["token"], json.dumps({"app_id": "cli_mock", "app_secret": "mock-secret"}),
                         [("Content-Type", "application/json")])[1]


def faults():
    """Every fault of the mock that makes a complete answer of reasonable size."""
    yield from ({"type": kind} for kind in ("truncated_json", "empty", "not_utf8", "nul", "raw_nul", "lone_surrogate"))
    yield from ({"type": kind, "field": "data.out_params"} for kind in ("not_utf8", "nul", "lone_surrogate"))
    yield {"type": "deep", "depth": 100}
    yield {"type": "deep", "depth": 150}
    yield {"type": "big", "bytes": 3000}
    yield from ({"type": "status", "status": status}
                for status in (204, 301, 400, 401, 403, 404, 407, 408, 413, 429, 500, 502, 503))
    yield {"type": "status", "status": 500, "body": {"code": 0, "data": {}}}
    yield from ({"type": "code", "code": code} for code in {**CODES, **OAUTH_CODES, 1: None})
    yield from ({"type": "inner", "code": code} for code in INNER)
    yield from ({"type": "wrong_types", "set": {member: value}} for member, value in itertools.product(MEMBERS, VALUES))


def inputs():
    """(kind, number, encoding, body) of every seed."""
    mock = Mock()
    try:
        for encoding in ENCODINGS:
            yield "answer", 200, encoding, DOCUMENTED
        for kind in PATHS:
            yield (kind, *mock_answer(mock, kind, None))
        for fault in faults():
            kinds = PATHS if fault["type"] in ("code", "status", "nul") else ["answer"]
            for kind in kinds:
                if kind != "answer" and fault.get("field"):
                    continue
                yield (kind, *mock_answer(mock, kind, fault))
    finally:
        mock.process.stdin.close()
        mock.process.wait()
    for number, body in enumerate(SPECIAL):
        for kind in PATHS:
            yield kind, 200, "UTF8", body
            yield kind, 200, ENCODINGS[number % len(ENCODINGS)], body
        if b"\\u" in body:
            for encoding in ENCODINGS:
                yield "answer", 200, encoding, body
    for status in (-1, 100, 199, 201, 299, 300, 304, 401, 404, 429, 500):
        yield "answer", status, "UTF8", DOCUMENTED
        yield "token", status, "UTF8", SPECIAL[-4]
        yield "oauth", status, "UTF8", SPECIAL[-4]
    for number, body in enumerate(TEXTS):
        yield "answer", 502, ENCODINGS[number % len(ENCODINGS)], body
        for encoding in ENCODINGS:
            yield "printable", 5 if number % 2 else 512, encoding, body
    for request, encoding in itertools.product(REQUESTS, ENCODINGS):
        yield "request", 0, encoding, dump(request)


def mock_answer(mock, kind, fault):
    status, body = mock.ask(kind, fault)
    return status, "UTF8", body


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    for number, (kind, status, encoding, body) in enumerate(inputs()):
        with open(os.path.join(sys.argv[1], f"seed_{number:03}"), "wb") as file:
            file.write(f"{kind} {status} {encoding}\n".encode() + body)


if __name__ == "__main__":
    main()
