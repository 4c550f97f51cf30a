#!/usr/bin/python3
"""
Proves that feishu_mock.py does what its help says.  Standard library only; a few seconds.

  $ test/mock_selftest.py
"""
import base64
import gzip
import http.client
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from urllib.parse import urlencode

MOCK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "feishu_mock.py")
LEGACY = "/open-apis/auth/v3/tenant_access_token/internal"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json; charset=utf-8"}


class Mock:
    """A mock process and a client for it."""

    def __init__(self, *args, ports=1):
        self.process = subprocess.Popen([sys.executable, MOCK, "--exit-on-eof", *args],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ports = [int(self.process.stdout.readline()) for _ in range(ports)]
        self.port, self.context = self.ports[0], None

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(5)
        self.process.stdin.close()
        self.process.stdout.close()
        return status

    def connect(self, timeout=5):
        if self.context:
            return http.client.HTTPSConnection("localhost", self.port, timeout=timeout, context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, headers=None, conn=None, timeout=5):
        """-> (status, headers, body bytes)"""
        conn, own = conn or self.connect(timeout), conn is None
        try:
            conn.request(method, path, body, headers or {})
            response = conn.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            if own:
                conn.close()

    def control(self, method, path, body=None, status=200):
        got, _, data = self.ask(method, "/_mock/" + path, None if body is None else json.dumps(body), timeout=15)
        assert got == status, (got, data)
        return json.loads(data)

    def rules(self, *rules):
        return self.control("POST", "rules", list(rules))

    def token(self, secret="mock-secret", app="cli_mock"):
        status, _, data = self.ask("POST", LEGACY, json.dumps({"app_id": app, "app_secret": secret}), JSON)
        assert status == 200
        return json.loads(data)

    def oauth(self, headers=None, **form):
        status, _, data = self.ask("POST", "/oauth/v3/token", urlencode(form), {**FORM, **(headers or {})})
        return status, json.loads(data)

    def execute(self, token, flow="flow", body=None, conn=None, namespace="ns__c", headers=None, timeout=5, **members):
        """-> (status, headers, body bytes)"""
        if body is None:
            body = json.dumps({"operator": '{"_id": 1}', **members})
        headers = {**JSON, "Authorization": "Bearer " + token, **(headers or {})}
        path = f"/open-apis/apaas/v1/applications/{namespace}/flows/{flow}/execute"
        return self.ask("POST", path, body, headers, conn, timeout)

    def call(self, *args, **members):
        status, _, data = self.execute(*args, **members)
        return status, json.loads(data)


class Base(unittest.TestCase):
    ARGS = ()

    @classmethod
    def setUpClass(cls):
        cls.mock = Mock(*cls.ARGS)

    @classmethod
    def tearDownClass(cls):
        cls.mock.stop()

    def setUp(self):
        self.mock.control("POST", "reset")
        self.mock.control("POST", "config", {"rate": "", "token_expire": 7200, "token_length": 0, "idempotency": True})
        self.token = self.mock.token()["tenant_access_token"]

    def fails(self, *errors, **members):
        with self.assertRaises(errors):
            self.mock.execute(self.token, timeout=0.15, **members)


class TokenTest(Base):
    def test_same_token_until_the_last_part_then_both_valid(self):
        self.mock.control("POST", "reset")
        self.mock.control("POST", "config", {"token_expire": 2})
        first = self.mock.token()
        self.assertEqual((first["code"], first["msg"], first["expire"]), (0, "ok", 2))
        self.assertEqual(self.mock.token()["tenant_access_token"], first["tenant_access_token"])
        time.sleep(1.6)
        second = self.mock.token()["tenant_access_token"]
        self.assertNotEqual(second, first["tenant_access_token"])
        for token in (first["tenant_access_token"], second):
            self.assertEqual(self.mock.call(token)[0], 200)
        time.sleep(0.5)
        self.assertEqual(self.mock.call(first["tenant_access_token"])[1]["code"], 99991663)
        self.assertEqual(self.mock.call(second)[0], 200)

    def test_legacy_refusals_are_http_200(self):
        self.assertEqual(self.mock.token("wrong"), {"code": 10014, "msg": "app secret invalid"})
        self.assertEqual(self.mock.token(app="cli_none")["code"], 10015)
        self.assertEqual(self.mock.token("")["code"], 10003)
        self.assertEqual(json.loads(self.mock.ask("POST", LEGACY, "{", JSON)[2])["code"], 10003)

    def test_oauth(self):
        good = {"grant_type": "client_credentials", "client_id": "cli_mock", "client_secret": "mock-secret"}
        status, body = self.mock.oauth(**good)
        self.assertEqual((status, body["code"], body["token_type"], body["expires_in"]), (200, 0, "Bearer", 7200))
        self.assertEqual(self.mock.call(body["access_token"])[0], 200)
        basic = {"Authorization": "Basic " + base64.b64encode(b"cli_mock:mock-secret").decode()}
        self.assertEqual(self.mock.oauth(basic, grant_type="client_credentials")[1]["access_token"],
                         body["access_token"])
        for headers, changes, code in ((basic, {}, 20070), ({}, {"client_secret": "x"}, 20002),
                                       ({}, {"client_id": "x"}, 20048),
                                       ({}, {"grant_type": "password"}, 20036), ({}, {"client_secret": ""}, 20063)):
            status, body = self.mock.oauth(headers, **{**good, **changes})
            self.assertEqual((status, body["code"], sorted(body)), (400, code, ["code", "error", "error_description"]))

    def test_length_apps_and_revocation(self):
        self.mock.control("POST", "reset")
        self.mock.control("POST", "config", {"token_length": 4000, "apps": {"cli_2": "s"}})
        token = self.mock.token("s", "cli_2")["tenant_access_token"]
        jwt = self.mock.oauth(grant_type="client_credentials", client_id="cli_2", client_secret="s")[1]["access_token"]
        self.assertEqual((len(token), len(jwt), token[:2], jwt[:3]), (4000, 4000, "t-", "eyJ"))
        self.assertEqual(self.mock.call(token)[0], 200)
        self.mock.control("POST", "tokens/revoke", {"keep_issuing_same": True})
        self.assertEqual(self.mock.token("s", "cli_2")["tenant_access_token"], token)
        self.assertEqual(self.mock.call(token)[1]["code"], 99991663)
        self.mock.control("POST", "tokens/revoke", {})
        self.assertNotEqual(self.mock.token("s", "cli_2")["tenant_access_token"], token)
        self.mock.control("POST", "config", {"apps": {"cli_2": None}})
        self.assertEqual(self.mock.token("s", "cli_2")["code"], 10015)

    def test_authorization(self):
        for token, code in (("", 99991661), ("t-none", 99991663), ("eyJx", 99991663), ("u-x", 99991668),
                            ("x", 99991671)):
            status, body = self.mock.call(token)
            self.assertEqual((status, body["code"]), (400, code))
            self.assertIn("log_id", body["error"])


class ExecuteTest(Base):
    def test_answers_like_the_document(self):
        status, headers, data = self.mock.execute(self.token, params='{"a": 1}', idempotent_key="k")
        self.assertEqual(
            data, b'{"code":0,"data":{"code":"","error_msg":"","execution_id":"1816970091484211","out_params":'
            b'"[{\\"api_name\\":\\"_flowExecutionID\\",\\"value\\":1816970091484211}]","status":"end"},'
            b'"msg":"success"}')
        self.assertEqual((status, headers["content-type"]), (200, "application/json; charset=utf-8"))
        second = self.mock.execute(self.token, is_async=True)
        self.assertEqual(json.loads(second[2])["data"]["status"], "wait")
        self.assertEqual(json.loads(second[2])["data"]["execution_id"], "1816970091484212")
        self.assertNotEqual(headers["x-tt-logid"], second[1]["x-tt-logid"])

    def test_keys_start_once_per_app(self):
        self.assertEqual(self.mock.call(self.token, idempotent_key="k")[1]["data"]["code"], "")
        status, body = self.mock.call(self.token, idempotent_key="k")
        self.assertEqual((status, body["code"], body["data"]["code"]), (200, 0, "k_wf_ec_2001008"))
        self.assertEqual(body["data"]["execution_id"] + body["data"]["out_params"] + body["data"]["status"], "")
        self.mock.control("POST", "config", {"apps": {"cli_2": "s"}})
        self.assertEqual(self.mock.call(self.mock.token("s", "cli_2")["tenant_access_token"],
                                        idempotent_key="k")[1]["data"]["code"], "")
        self.assertEqual(self.mock.control("GET", "stats")["duplicates"], 1)
        self.assertEqual(self.mock.control("GET", "started?summary=1")["keys_started_twice"], [])
        self.mock.control("POST", "config", {"idempotency": False})
        self.mock.call(self.token, idempotent_key="k")
        self.assertEqual(self.mock.control("GET", "started?summary=1")["keys_started_twice"], ["k"])

    def test_validation(self):
        bad = 2320001
        for code, members in ((99992402, {"operator": None}), (bad, {"operator": {"_id": 1}}), (bad, {"operator": ""}),
                              (bad, {"operator": "[]"}), (bad, {"operator": "{}"}), (bad, {"params": {"a": 1}}),
                              (bad, {"params": "{"}), (bad, {"params": '{"a": NaN}'}), (bad, {"is_async": "true"}),
                              (bad, {"idempotent_key": 5}), (bad, {"loop_masks": "x"}), (bad, {"loop_masks": [1]}),
                              (bad, {"loop_masks": ["x"] * 21}), (bad, {"params": "[" * 100000})):
            status, body = self.mock.call(self.token, **members)
            self.assertEqual((status, body["code"]), (400, code), members)
        body = self.mock.call(self.token, operator=None)[1]
        self.assertEqual(body["error"]["field_violations"],
                         [{"field": "operator", "description": "operator is required"}])
        for members in ({"body": "{"}, {"body": "[]"}, {"headers": {"Content-Type": "text/plain"}}):
            self.assertEqual(self.mock.call(self.token, **members)[1]["code"], 99992402)
        self.assertEqual(self.mock.call(self.token, operator='{"email": "a@b.c"}', loop_masks=["x"] * 20)[0], 200)
        self.assertEqual(self.mock.control("GET", "stats")["started"], 1)

    def test_special_flows_and_paths(self):
        out = self.mock.call(self.token, "echoParams",
                             params='{"a": 1.10, "b": {"c": 12345678901234567890123}, "d": "é", "e": 1e400}')
        self.assertEqual(out[1]["data"]["out_params"],
                         '[{"api_name":"a","value":1.10},{"api_name":"b","value":{"c":12345678901234567890123}},'
                         '{"api_name":"d","value":"é"},{"api_name":"e","value":1e400}]')
        self.assertEqual(self.mock.call(self.token, "rejectedFlow")[1]["data"]["code"], "k_wf_ec_2001001")
        self.assertEqual(self.mock.call(self.token, "refusedFlow")[1]["code"], 2320001)
        body = self.mock.call(self.token, "noScope")[1]
        self.assertEqual(body["error"]["permission_violations"][0]["subject"], "app_engine:flow:write")
        self.assertTrue(body["error"]["helps"][0]["url"].startswith("https://open.feishu.cn/app/cli_mock/"))
        self.assertEqual(self.mock.execute(self.token, "a%2Fb%20%E6%B5%81", namespace="n%3Fs")[0], 200)
        last = self.mock.control("GET", "started")[-1]
        self.assertEqual((last["namespace"], last["flow_id"]), ("n?s", "a/b 流"))
        for method, path in (("POST", "/x"), ("GET", LEGACY), ("GET", "/oauth/v3/token")):
            status, headers, data = self.mock.ask(method, path)
            self.assertEqual((status, data, headers["content-type"]),
                             (404, b"404 page not found", "text/plain; charset=utf-8"))
        self.assertEqual(self.mock.execute(self.token, "%2e%2e")[0], 404)

    def test_rate_limit(self):
        self.mock.control("POST", "config", {"rate": "3/1"})
        answers = [self.mock.execute(self.token) for _ in range(4)]
        self.assertEqual([answer[0] for answer in answers], [200, 200, 200, 429])
        self.assertEqual(json.loads(answers[3][2])["code"], 99991400)
        self.assertEqual((answers[3][1]["x-ogw-ratelimit-limit"], answers[3][1]["x-ogw-ratelimit-reset"]), ("3", "1"))
        self.assertEqual(self.mock.control("GET", "stats")["rate_limited"], 1)
        time.sleep(1.05)
        self.assertEqual(self.mock.execute(self.token)[0], 200)


class ControlTest(Base):
    def test_log_and_wait(self):
        box = []
        waiter = threading.Thread(target=lambda: box.append(self.mock.control(
            "POST", "wait", {"kind": "execute", "key": "k", "count": 2, "timeout": 5})))
        waiter.start()
        for key in ("k", "other", "k"):
            self.mock.call(self.token, idempotent_key=key, params='{"a": 1}')
        waiter.join()
        self.assertEqual(box, [{"count": 2, "timed_out": False}])
        self.assertEqual(self.mock.control("POST", "wait", {"kind": "execute", "count": 9, "timeout": 0.05},
                                           408)["count"], 3)
        self.assertEqual(self.mock.control("GET", "log?kind=execute&key=k&count=1"), {"count": 2})
        entry = self.mock.control("GET", "log?kind=execute")[0]
        self.assertEqual((entry["namespace"], entry["flow_id"], entry["app_id"], entry["status"], entry["fault"],
                          entry["method"]),
                         ("ns__c", "flow", "cli_mock", 200, None, "POST"))
        self.assertEqual(entry["headers"]["authorization"], "Bearer " + self.token)
        self.assertEqual(json.loads(entry["body"]), entry["json"])
        self.assertEqual(len(self.mock.control("GET", f"log?kind=execute&since={entry['seq']}")), 2)
        self.mock.control("POST", "config", {"log": False})
        self.mock.call(self.token)
        self.mock.control("POST", "config", {"log": True})
        self.assertEqual(self.mock.control("GET", "log?kind=execute&count=1")["count"], 3)

    def test_stats_and_keep_alive(self):
        conn = self.mock.connect()
        for _ in range(5):
            self.mock.execute(self.token, conn=conn)
        stats = self.mock.control("GET", "stats")
        self.assertEqual((stats["executes"], stats["started"], stats["token_requests"], stats["tokens_issued"]),
                         (5, 5, 1, 1))
        self.assertEqual((stats["connections_open"], stats["connections_total"], stats["max_concurrent_executes"]),
                         (1, 2, 1))
        conn.close()

    def test_bad_control_requests(self):
        for path, body in (("rules", [{"fault": {"type": "nonsense"}}]),
                           ("rules", [{"fault": {"type": "hang", "x": 1}}]),
                           ("rules", [{"match": {"flow": 1}, "fault": {"type": "hang"}}]), ("config", {"rat": 1}),
                           ("config", {"rate": "x"}), ("wait", 7),
                           ("rules", [{"match": {"path_regex": "("}, "fault": {"type": "hang"}}])):
            self.assertIn("error", self.mock.control("POST", path, body, 400))
        self.mock.control("GET", "nothing", status=404)

    def test_rule_matching(self):
        code = {"type": "code", "code": 1500}

        def codes(n, **members):
            return [self.mock.call(self.token, **members)[0] for _ in range(n)]
        self.mock.rules({"skip": 1, "times": 2, "fault": code, "match": {"kind": "execute"}})
        self.assertEqual(codes(5), [200, 500, 500, 200, 200])
        self.assertEqual([(r["matched"], r["fired"]) for r in self.mock.control("GET", "rules")], [(5, 2)])
        self.mock.rules({"every": 2, "fault": code,
                         "match": {"flow_id": "flow", "namespace": "ns__c", "app_id": "cli_mock"}})
        self.assertEqual(codes(4), [200, 500, 200, 500])
        self.mock.rules({"match": {"params_regex": '"n": *7'}, "fault": code},
                        {"match": {"key": "x"}, "fault": {"type": "inner"}})
        self.assertEqual(codes(1, params='{"n": 7}') + codes(1, params='{"n": 8}') + codes(1), [500, 200, 200])
        self.assertEqual(self.mock.call(self.token, idempotent_key="x")[1]["data"]["code"], "k_ec_000001")
        self.mock.rules({"match": {"kind": "token"}, "fault": {"type": "code", "code": 10014}})
        self.assertEqual(self.mock.token()["code"], 10014)
        self.mock.rules({"match": {"path_regex": "/flows/f.*w/"}, "probability": 0.5, "fault": code})
        self.assertEqual(set(codes(40)), {200, 500})
        self.mock.control("DELETE", "rules")
        self.assertEqual(codes(1), [200])
        self.assertEqual(len(self.mock.control("POST", "rules/add", {"fault": code})), 1)


class FaultTest(Base):
    def started(self):
        return self.mock.control("GET", "stats")["started"]

    def test_lost_answers_and_exact_starts(self):
        lost = (ConnectionResetError, http.client.RemoteDisconnected, http.client.IncompleteRead, TimeoutError,
                http.client.BadStatusLine)
        for fault, starts in (("reset_before", 0), ("reset_after", 1), ("close_after", 1), ("half_answer", 1),
                              ("hang", 0),
                              ("headers_hang", 1), ("half_headers_hang", 1), ("garbage", 0)):
            for started, expected in ((None, starts), (True, 1), (False, 0)):
                options = {} if started is None else {"started": started}
                self.mock.rules({"times": 1, "fault": {"type": fault, **options}})
                before, key = self.started(), f"{fault}{started}"
                self.fails(*lost, idempotent_key=key)
                self.assertEqual(self.started() - before, expected, key)
                again = self.mock.call(self.token, idempotent_key=key)[1]["data"]["code"]
                self.assertEqual(again, "k_wf_ec_2001008" if expected else "", key)
        self.mock.rules({"fault": {"type": "reset_after"}})
        before = self.started()
        self.fails(*lost, operator="no")  # the platform would have refused it
        self.assertEqual(self.started(), before)

    def test_reset_is_a_reset_and_close_is_not(self):
        for fault, error in (("reset_after", ConnectionResetError), ("close_after", http.client.RemoteDisconnected)):
            self.mock.rules({"fault": {"type": fault}})
            with self.assertRaises(error) as caught:
                self.mock.execute(self.token)
            self.assertIs(type(caught.exception), error)
        self.mock.rules({"fault": {"type": "half_answer", "rst": True}})
        self.fails(ConnectionResetError)

    def test_log_of_the_abandoned(self):
        self.mock.rules({"fault": {"type": "hang"}})
        self.fails(TimeoutError)
        self.mock.control("POST", "wait", {"kind": "execute", "state": "aborted", "timeout": 2})
        entry = self.mock.control("GET", "log?fault=hang")[0]
        self.assertEqual((entry["status"], entry["aborted"]), (None, True))
        self.assertEqual(self.mock.control("GET", "stats")["executing"], 0)

    def test_hold_release_latency(self):
        self.mock.rules({"fault": {"type": "hold"}})
        threads = [threading.Thread(target=self.mock.call, args=(self.token,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        self.mock.control("POST", "wait", {"kind": "execute", "count": 3, "timeout": 5})
        stats = self.mock.control("GET", "stats")
        self.assertEqual((stats["held"], stats["started"], stats["executing"]), (3, 3, 3))
        self.assertEqual(self.mock.control("POST", "release"), {"released": 3})
        for thread in threads:
            thread.join()
        self.assertEqual(self.mock.control("GET", "stats")["max_concurrent_executes"], 3)
        for ms in (100, [100, 120]):
            self.mock.rules({"fault": {"type": "latency", "ms": ms}})
            start = time.time()
            self.assertEqual(self.mock.call(self.token)[0], 200)
            self.assertGreaterEqual(time.time() - start, 0.1)

    def test_canned_answers(self):
        for fault, status, data, header in (
                ({"status": 502}, 502, b"502 Bad Gateway</h1>", ("content-type", "text/html")),
                ({"status": 204}, 204, b"", None),
                ({"status": 301, "headers": {"Location": "http://x/"}}, 301, b"", ("location", "http://x/")),
                ({"status": 404, "body": "404 page not found"}, 404, b"404 page",
                 ("content-type", "text/plain; charset=utf-8")),
                ({"status": 429, "headers": {"Retry-After": "7"}, "body": {"code": 99991400}}, 429,
                 b'{"code":99991400}', ("retry-after", "7"))):
            self.mock.rules({"fault": {"type": "status", **fault}})
            got, headers, body = self.mock.execute(self.token)
            self.assertEqual(got, status)
            self.assertIn(data, body)
            if header:
                self.assertEqual(headers[header[0]], header[1])
        self.mock.rules({"fault": {"type": "code", "code": 99991400, "reset": 9, "http_status": 400,
                                   "error": {"details": []}}})
        got, headers, body = self.mock.execute(self.token)
        self.assertEqual((got, headers["x-ogw-ratelimit-reset"], json.loads(body)["error"]["details"]), (400, "9", []))
        self.mock.rules({"fault": {"type": "code", "code": 20050}})
        self.assertEqual(self.mock.oauth(grant_type="x")[0], 500)
        self.mock.rules({"fault": {"type": "inner", "code": "k_ec_000054", "started": True}})
        self.assertEqual(self.mock.call(self.token, idempotent_key="i")[1]["data"]["code"], "k_ec_000054")
        self.assertEqual(self.started(), 1)

    def test_useless_answers(self):
        def get(type, **options):
            self.mock.rules({"fault": {"type": type, **options}})
            return self.mock.execute(self.token)
        self.assertEqual(len(get("big", bytes=3000000)[2]), 3000000)
        self.assertIn(b"[" * 5000 + b"]" * 5000, get("deep", depth=5000)[2])
        self.assertRaises(UnicodeDecodeError, get("not_utf8")[2].decode)
        self.assertIn(b"\\u0000", get("nul", field="data.status")[2])
        self.assertIn(b"\0", get("raw_nul")[2])
        self.assertIn(b"\\ud800", get("lone_surrogate")[2])
        self.assertRaises(ValueError, json.loads, get("truncated_json")[2])
        self.assertEqual(get("empty")[::2], (200, b""))
        self.assertEqual(json.loads(gzip.decompress(get("gzip")[2]))["code"], 0)
        status, headers, body = get("gzip_bomb", bytes=8 << 20)
        self.assertGreater(len(gzip.decompress(body)), 8 << 20)
        body = json.loads(get("wrong_types", set={"code": "0", "data.status": 7, "data.out_params": [1]},
                              remove=["data.code"])[2])
        self.assertEqual((body["code"], body["data"]["status"], body["data"]["out_params"], "code" in body["data"]),
                         ("0", 7, [1], False))
        self.mock.rules({"fault": {"type": "wrong_types", "set": {"expire": "x"}}})
        self.assertEqual(self.mock.token()["expire"], "x")

    def test_gateway_that_sends_twice(self):
        self.mock.rules({"times": 1, "fault": {"type": "twice"}})
        self.assertEqual(self.mock.call(self.token, idempotent_key="k")[1]["data"]["code"], "k_wf_ec_2001008")
        self.assertEqual(self.mock.control("GET", "stats")["started"], 1)

    def test_answer_that_nobody_asked_for(self):
        self.mock.rules({"times": 1, "fault": {"type": "unasked", "interval_ms": 1}})
        conn = self.mock.connect()
        conn.request("POST", "/open-apis/apaas/v1/applications/n/flows/f/execute", "{}")
        self.assertNotIn(b"unasked", conn.getresponse().read())
        conn.sock.settimeout(2)
        self.assertIn(b"HTTP/1.1 200", conn.sock.recv(65536))
        conn.close()
        self.assertTrue(self.mock.control("GET", "log")[-1]["unasked"])

    def test_connection_that_ends_when_idle(self):
        self.mock.rules({"fault": {"type": "idle_end", "after": 0.1, "lag_ms": 50, "announce": 7}})
        conn = self.mock.connect()
        for _ in range(2):
            status, headers, _ = self.mock.ask("GET", "/x", conn=conn)
            self.assertEqual((status, headers["keep-alive"]), (404, "timeout=7"))
        begun = time.monotonic()
        self.assertEqual(conn.sock.recv(1), b"")
        self.assertGreater(time.monotonic() - begun, 0.14)
        conn.close()

    def test_interim_answers(self):
        self.mock.rules({"fault": {"type": "interim"}})
        with socket.create_connection(("127.0.0.1", self.mock.port), 5) as conn:
            conn.sendall(b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")
            data = b"".join(iter(lambda: conn.recv(65536), b""))
        self.assertEqual([int(line.split()[1]) for line in data.split(b"\r\n") if line.startswith(b"HTTP/")],
                         [103, 100, 404])

    def test_answers_in_pieces(self):
        for fault in ({"type": "chunked"}, {"type": "no_length"}, {"type": "slow_drip", "interval_ms": 1, "bytes": 9},
                      {"type": "slow_drip", "interval_ms": 1, "bytes": 9, "headers": True}):
            self.mock.rules({"fault": fault})
            self.assertEqual(self.mock.call(self.token)[1]["data"]["status"], "end", fault)
        self.mock.rules({"fault": {"type": "raw", "text": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"}})
        self.assertEqual(self.mock.call(self.token)[1], {})
        for fault, least in (("chunked_endless", 17), ("chunked_endless_fast", 5 << 20)):
            self.mock.rules({"fault": {"type": fault}})
            conn = self.mock.connect()
            conn.request("POST", "/open-apis/apaas/v1/applications/n/flows/f/execute", "{}")
            response = conn.getresponse()
            self.assertEqual(len(response.read(least)), least)
            response.close()
            conn.close()
            self.mock.control("POST", "wait", {"fault": fault, "state": "aborted", "timeout": 2})

    def test_accept_faults_spare_the_control_api(self):
        self.mock.rules({"match": {"kind": "accept"}, "times": 1, "fault": {"type": "hang"}},
                        {"match": {"kind": "accept"}, "times": 1, "fault": {"type": "reset"}})
        self.fails(TimeoutError)
        self.fails(ConnectionResetError)
        self.assertEqual(self.mock.call(self.token)[0], 200)
        self.assertEqual(self.mock.control("GET", "stats")["executes"], 1)


class HttpTest(Base):
    def test_split_pipelined_chunked_expect(self):
        path = b"/open-apis/apaas/v1/applications/n/flows/f/execute"
        body = b'{"operator":"{\\"_id\\":1}"}'
        head = (b"POST " + path + b" HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer "
                + self.token.encode())
        plain = head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        with socket.create_connection(("127.0.0.1", self.mock.port), 5) as sock:
            for at in range(len(plain)):
                sock.sendall(plain[at:at + 1])
            sock.sendall(plain * 3)
            sock.sendall(head + b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + body[:5]
                         + b"\r\n%x\r\n" % len(body[5:])
                         + body[5:] + b"\r\n0\r\n\r\n")
            sock.sendall(head + b"\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                         % len(body))
            data = b""
            while b"100 Continue" not in data:
                data += sock.recv(65536)
            sock.sendall(body)
            while chunk := sock.recv(65536):
                data += chunk
        self.assertEqual(data.count(b"HTTP/1.1 200 OK"), 6)
        self.assertEqual(self.mock.control("GET", "stats")["started"], 6)
        for junk, status in ((b"nonsense\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
                             (b"GET / HTTP/1.1\r\nx: " + b"x" * 300000, b"431"),
                             (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400")):
            with socket.create_connection(("127.0.0.1", self.mock.port), 5) as sock:
                sock.sendall(junk)
                self.assertIn(status, sock.recv(100).split(b"\r\n")[0])

    def test_many_connections_at_once(self):
        self.mock.rules({"match": {"kind": "execute"}, "fault": {"type": "hold"}})
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        conns = [self.mock.connect() for _ in range(1000)]
        for conn in conns:
            conn.request("POST", "/open-apis/apaas/v1/applications/n/flows/f/execute", '{"operator":"{\\"_id\\":1}"}',
                         {**JSON, "Authorization": "Bearer " + self.token})
        self.mock.control("POST", "wait", {"kind": "execute", "count": 1000, "timeout": 5})
        self.mock.control("POST", "release")
        self.assertEqual({conn.getresponse().status for conn in conns}, {200})
        self.assertEqual(self.mock.control("GET", "stats")["max_concurrent_executes"], 1000)
        for conn in conns:
            conn.close()


class ProcessTest(unittest.TestCase):
    def test_says_where_it_listens_to_who_started_it_in_a_terminal(self):
        ours, its = os.openpty()
        process = subprocess.Popen([sys.executable, MOCK, "--exit-on-eof", "--port", "0", "--app", "cli_x:y"],
                                   stdin=subprocess.PIPE, stdout=its, stderr=subprocess.PIPE, text=True)
        os.close(its)
        line = process.stderr.readline()
        port = int(os.read(ours, 100).decode().split()[0])
        process.communicate("")
        os.close(ours)
        self.assertIn(f"listens at http://127.0.0.1:{port};", line)
        self.assertIn("Its apps: cli_x.", line)

    def test_several_addresses(self):
        mock = Mock("--host", "127.0.0.1", "--host", "127.0.0.2")
        mock.rules({"match": {"address": "127.0.0.2"}, "fault": {"type": "status", "status": 503}})
        found = []
        for host in ("127.0.0.1", "127.0.0.2"):
            conn = http.client.HTTPConnection(host, mock.port, timeout=5)
            conn.request("GET", "/x")
            found.append(conn.getresponse().status)
            conn.close()
        mock.stop()
        self.assertEqual(found, [404, 503])

    def test_state_survives_a_kill(self):
        with tempfile.TemporaryDirectory() as folder:
            args = ("--state-file", os.path.join(folder, "state"), "--log-file", os.path.join(folder, "log"),
                    "--rules", '[{"match": {"key": "lost"}, "fault": {"type": "reset_after"}}]', "--app", "a:b",
                    "--app", "c:d:e")
            mock = Mock(*args)
            token = mock.token("d:e", "c")["tenant_access_token"]
            mock.call(token, idempotent_key="k")
            with self.assertRaises(ConnectionResetError):
                mock.call(token, idempotent_key="lost")
            mock.stop(signal.SIGKILL)
            with open(args[1], "a") as file:
                file.write('{"torn')
            for _ in range(2):
                mock = Mock(*args[:2], "--app", "c:d:e")
                token = mock.token("d:e", "c")["tenant_access_token"]
                for key in ("k", "lost"):
                    self.assertEqual(mock.call(token, idempotent_key=key)[1]["data"]["code"], "k_wf_ec_2001008")
                self.assertEqual(mock.call(token)[1]["data"]["code"], "")
                self.assertEqual(mock.stop(), 0)
            mock = Mock(*args[:2])
            self.assertEqual(len({flow["execution_id"] for flow in mock.control("GET", "started")}), 4)
            mock.control("POST", "reset")
            mock.stop(signal.SIGINT)
            self.assertEqual(os.path.getsize(args[1]), 0)
            with open(args[3]) as file:
                self.assertEqual([json.loads(line)["kind"] for line in file], ["token", "execute", "execute"])

    def test_files_are_cut(self):
        with tempfile.TemporaryDirectory() as folder:
            state, log = os.path.join(folder, "state"), os.path.join(folder, "log")
            mock = Mock("--state-file", state, "--log-file", log, "--cut", "60")
            token = mock.token()["tenant_access_token"]
            params = json.dumps({"n": 5, "padding": "x" * 100000})
            for inner in ("", "k_wf_ec_2001008"):
                answer = mock.call(token, params=params, idempotent_key="k", loop_masks=["y" * 5000])[1]
                self.assertEqual(answer["data"]["code"], inner)
            self.assertEqual(mock.stop(), 0)
            with open(state) as file:
                flow, = map(json.loads, file)
            self.assertEqual((flow["key"], flow["params"]), ("k", {"n": 5, "padding": "x" * 60}))
            self.assertEqual(flow["loop_masks"], ["y" * 60])
            with open(log) as file:
                line = [json.loads(line) for line in file][-1]
            self.assertEqual((line["key"], line["json"]["params"], len(line["body"])), ("k", params[:60], 60))

    def test_stops_with_its_parent(self):
        mock = Mock()
        mock.process.stdin.close()
        self.assertEqual(mock.process.wait(5), 0)
        mock.process.stdout.close()

    def test_tls_and_silent_port(self):
        with tempfile.TemporaryDirectory() as folder:
            cert, key = os.path.join(folder, "cert"), os.path.join(folder, "key")
            made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                                   "-nodes",
                                   "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext",
                                   "subjectAltName=DNS:localhost"],
                                  capture_output=True)
            self.assertEqual(made.returncode, 0, made.stderr)
            mock = Mock("--tls-cert", cert, "--tls-key", key, "--accept-hang", ports=2)
            try:
                mock.context = ssl.create_default_context(cafile=cert)
                token = mock.token()["tenant_access_token"]
                self.assertEqual(mock.call(token)[0], 200)
                for fault, error in (("reset_after", ConnectionResetError),
                                     ("close_after", http.client.RemoteDisconnected)):
                    mock.rules({"fault": {"type": fault}})
                    with self.assertRaises(error):
                        mock.execute(token)
                with socket.create_connection(("127.0.0.1", mock.ports[1]), 0.2) as sock:
                    with self.assertRaises(TimeoutError):
                        mock.context.wrap_socket(sock, server_hostname="localhost")
            finally:
                self.assertEqual(mock.stop(), 0)


if __name__ == "__main__":
    unittest.main()
