#!/usr/bin/python3
"""
A mock of the Feishu (Lark) open platform: the part that starts aPaaS flows.

One process, one port, nothing but the Python standard library; its parts are in mock/.  It speaks the platform's API
with its real codes and shapes, records what it was asked, and misbehaves on demand.

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
  GET  /open-apis/application/v6/scopes                         what the tenant granted to the app
  Anything else, or another method: 404 text/plain, as on the platform.

  A token is handed out again until the last 30 minutes of its life (three tenths of it, if that is less);
  then a new one is made and both stay valid.  A repeated idempotent_key (per app) gets HTTP 200, code 0
  and the inner code k_wf_ec_2001008.  Any namespace and flow_id exist.  But these flow_ids behave:
    echoParams    returns the params as out_params      rejectedFlow  inner code k_wf_ec_2001001
    refusedFlow   HTTP 400, code 2320001                noScope       HTTP 400, code 99991672 and its helps
    noSuchFlow    inner code k_wf_ec_200036

CONTROL API (same port, no authorization, never logged, never faulty)
  GET    /_mock/log      requests in order of arrival; filters ?kind= flow_id= namespace= key= app_id= fault=
                         since=SEQ (seq > SEQ), and count=1 for {"count": N}.  kind is token, oauth, execute,
                         scopes or other.  status is null while no answer was given; aborted is true when the client
                         closed first; time and done are epoch seconds.
  GET    /_mock/stats    counters
  GET    /_mock/started  flows that started on the platform; ?summary=1 for {"started", "distinct_keys",
                         "keys_started_twice", "distinct_params", "params_started_twice"}
  GET    /_mock/rules    fault rules with their counters     POST /_mock/rules      replace all (a list)
  DELETE /_mock/rules    remove all                          POST /_mock/rules/add  append (a list or one)
  POST   /_mock/release  let all requests held by "hold" go on
  POST   /_mock/reset    forget log, rules, started, keys, tokens, counters (configuration stays)
  POST   /_mock/config   {"apps": {id: secret, id: null}, "token_expire": S, "token_length": N, "rate": "50/1",
                         "log": true, "log_limit": N, "idempotency": true, "scopes": [granted ones],
                         "namespaces": [those that authorised the apps] or null for all, "clock": seconds that the
                         header Date is ahead, null: none}; GET shows it
  POST   /_mock/tokens/revoke  all tokens are refused from now on; {"keep_issuing_same": true}: and the token
                         endpoints go on handing out the refused one
  POST   /_mock/wait     {"count": N, "timeout": S, "state": "arrived|done|aborted", and the filters of log}:
                         answers as soon as the log has N such requests; HTTP 408 when the time is up

FAULT RULES
  {"match": {"kind": "execute|token|oauth|scopes|other|any|accept", "namespace", "flow_id", "key", "app_id",
             "address": the one that it came to, "path_regex", "params_regex"},
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
import gc
import os
import re
import resource
import signal
import ssl
import sys

from mock.codes import SCOPE
from mock.message import load
from mock.rules import FAULTS
from mock.server import Connection, Mock


def help_page():
    width = max(map(len, FAULTS)) + 2
    lines = []
    for name, (options, started, text) in FAULTS.items():
        lines.append(f"    {name:<{width}}{text}")
        lines.append(" " * (width + 4) + f"options: {', '.join(options.split()) or 'none'}; started: "
                     f"{str(started).lower()}")
    return __doc__ + "\n".join(lines)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog="feishu_mock.py", description=help_page(),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="append", help="address to listen on (127.0.0.1), may be repeated")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free port; it is printed")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="and this key")
    parser.add_argument("--app", action="append", metavar="ID:SECRET",
                        help="an app, may be repeated (default cli_mock:mock-secret)")
    parser.add_argument("--token-expire", type=float, default=7200, metavar="SECONDS", help="lifetime of tokens (7200)")
    parser.add_argument("--token-length", type=int, default=0, metavar="N",
                        help="characters of a token (42; a JWT: as it comes)")
    parser.add_argument("--rate", default="", metavar="N/WINDOW",
                        help="limit per app, e.g. 50/1 or 1000/min,50/s (none)")
    parser.add_argument("--rules", action="append", default=[], metavar="JSON|@FILE",
                        help="fault rules to start with, may be repeated")
    parser.add_argument("--seed", type=int, help="seed of everything random in rules")
    parser.add_argument("--log-file", metavar="FILE", help="append every finished request as a line of JSON")
    parser.add_argument("--no-log", action="store_true", help="keep no request log in memory (for benchmarks)")
    parser.add_argument("--log-limit", type=int, default=200000, metavar="N", help="requests kept in the log (200000)")
    parser.add_argument("--state-file", metavar="FILE", help="started flows, appended and read again at start")
    parser.add_argument("--cut", type=int, metavar="N", help="strings in both files are cut after so many characters, "
                        "arrays after so many elements (whole)")
    parser.add_argument("--accept-hang", action="store_true",
                        help="a second port (second line of output) that accepts, reads, and never says a word: "
                        "no TLS handshake either")
    parser.add_argument("--exit-on-eof", action="store_true",
                        help="stop when stdin is closed, so that it never outlives a test")
    args = parser.parse_args(argv)
    args.hosts = args.host or ["127.0.0.1"]
    args.apps = dict(app.split(":", 1) if ":" in app else parser.error("--app is ID:SECRET")
                     for app in args.app or ["cli_mock:mock-secret"])
    if bool(args.tls_cert) != bool(args.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    return parser, args


async def run(parser, args):
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    config = {"apps": args.apps, "token_expire": args.token_expire, "token_length": args.token_length,
              "rate": args.rate, "log": not args.no_log, "log_limit": args.log_limit, "idempotency": True,
              "scopes": [SCOPE], "namespaces": None, "clock": None}
    try:
        mock = Mock(config, args.seed, args.state_file, args.log_file, args.cut)
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
    servers, port = [], args.port
    for host in args.hosts:
        servers.append(await loop.create_server(lambda: Connection(mock), host, port, ssl=context, backlog=4096))
        port = servers[0].sockets[0].getsockname()[1]
    print(port, flush=True)
    if sys.stdout.isatty():
        scheme = "https" if context else "http"
        print(f"The mock platform listens at {scheme}://{args.hosts[0]}:{port}; Ctrl+C ends it. "
              f"Its apps: {', '.join(args.apps)}.", file=sys.stderr)
    if args.accept_hang:
        silent = await loop.create_server(asyncio.Protocol, args.hosts[0], 0, backlog=4096)
        print(silent.sockets[0].getsockname()[1], flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if args.exit_on_eof:
        loop.add_reader(sys.stdin, lambda: os.read(sys.stdin.fileno(), 4096)
                        or (loop.remove_reader(sys.stdin), stop.set()))
    gc.set_threshold(100000, 50, 100)  # the log is large and has no cycles
    await stop.wait()
    for server in servers:
        server.close()
    for conn in list(mock.connections):
        conn.transport.abort()
    await asyncio.sleep(0)  # connection_lost runs: the log file gets the last lines


def raise_limit():
    """A connection takes a descriptor, and a test may make a thousand of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main():
    raise_limit()
    try:
        asyncio.run(run(*parse_arguments()))
    except OSError as problem:
        sys.exit(f"feishu_mock.py: {problem}")


if __name__ == "__main__":
    main()
