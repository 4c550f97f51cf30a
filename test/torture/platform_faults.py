"""
The mock platform of a campaign, and its bad luck: phases of random faults, revoked tokens, rotated secrets, kill -9.

What it has started survives its death (--state-file), and so does the log of requests (--log-file).
"""
import collections
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time

import hostile
import peers
import servers
import wire

# app -> SQL name of its server
APPS = {"cli_a": "feishu", "cli_b": "oauth", "cli_c": "limited", "cli_d": "narrow", "cli_e": "http2", "cli_f": "moves"}

EXECUTE = {"kind": "execute"}
TOKENS = [{"kind": "token"}, {"kind": "oauth"}]


FILES_CUT = 1000  # characters of a string that matter


def chance(probability, match, **fault):
    return {"match": match, "probability": probability, "fault": fault}


# In every phase: these take time, so that others wait for their place.
ALWAYS = [chance(1, {"kind": "execute", "flow_id": "slowCall"}, type="latency", ms=[300, 900]),
          chance(0.5, {"kind": "execute", "flow_id": "laneFlow"}, type="latency", ms=[50, 500])]

# Name -> rules. None of them is a refusal for good, so that what is lost can be told from what was refused. A request
# is only sent twice by a gateway if its key was made by enqueue_flow: of a key of its own a client would have to
# think that another flow had used it.
PHASES = {
    "calm": [],
    "slow": [chance(0.5, EXECUTE, type="latency", ms=[5, 400])],
    "lost answers": [
        chance(0.15, EXECUTE, type="reset_after"),
        chance(0.15, EXECUTE, type="half_answer"),
        chance(0.1, EXECUTE, type="close_after"),
        chance(0.1, EXECUTE, type="status", status=502, started=True),
        chance(0.05, EXECUTE, type="truncated_json"),
        chance(0.03, EXECUTE, type="headers_hang"),
        chance(0.05, {"kind": "execute", "flow_id": "plainFlow"}, type="twice")],
    "never arrived": [
        chance(0.15, EXECUTE, type="reset_before"),
        chance(0.1, EXECUTE, type="garbage"),
        chance(0.1, EXECUTE, type="status", status=503),
        chance(0.1, EXECUTE, type="code", code=1500),
        chance(0.1, EXECUTE, type="inner", code="k_op_ec_20001"),
        chance(0.03, EXECUTE, type="hang")],
    "hangs": [chance(0.6, EXECUTE, type="hang"), chance(0.5, EXECUTE, type="latency", ms=[100, 3000])],
    "down": [chance(1, {"kind": "any"}, type="reset_before")],
    "gateway down": [chance(1, {"kind": "any"}, type="status", status=502)],
    "idle ends": [
        chance(0.5, {"kind": "any"}, type="idle_end", after=1, lag_ms=30, announce=1),
        chance(0.5, {"kind": "any"}, type="idle_end", after=0.05)],
    "interim answers": [chance(0.7, {"kind": "any"}, type="interim")],
    "rate limit": [chance(0.7, EXECUTE, type="code", code=99991400, reset=1)],
    "tokens refused": [chance(0.3, EXECUTE, type="code", code=99991663)],
    "no tokens": [chance(0.7, match, type="status", status=500) for match in TOKENS]
    + [chance(0.3, match, type="hang") for match in TOKENS],
    "all at once": [
        chance(0.1, {"kind": "any"}, type="latency", ms=[5, 300]),
        chance(0.1, EXECUTE, type="reset_after"),
        chance(0.05, EXECUTE, type="reset_before"),
        chance(0.05, EXECUTE, type="code", code=99991400, reset=1),
        chance(0.05, EXECUTE, type="code", code=99991663),
        chance(0.05, EXECUTE, type="status", status=500, started=True),
        chance(0.1, {"kind": "any"}, type="interim"),
        chance(0.1, {"kind": "any"}, type="idle_end", after=0.05),
        chance(0.05, EXECUTE, type="no_length"),
        chance(0.05, EXECUTE, type="chunked"),
        chance(0.02, EXECUTE, type="headers_hang"),
        chance(0.02, EXECUTE, type="hang")],
}
WEIGHTS = {"calm": 6, "slow": 2, "lost answers": 5, "never arrived": 3, "hangs": 1, "down": 1, "gateway down": 1,
           "idle ends": 2, "interim answers": 2, "rate limit": 1, "tokens refused": 2, "no tokens": 1, "all at once": 4}


class Platform:
    """The mock's process."""

    def __init__(self, program, work, seed):
        self.program, self.work, self.seed = program, work, seed
        self.state, self.log, self.port = f"{work}/started", f"{work}/requests", 0
        self.secrets = {**{app: f"secret-{app}-0" for app in APPS}, **hostile.APPS}
        self.lock = threading.Lock()
        self.always = hostile.RULES + ALWAYS
        self.kills, self.fired, self.rules = 0, {}, self.always
        self.start()

    def start(self):
        apps = [word for app, secret in self.secrets.items() for word in ("--app", f"{app}:{secret}")]
        hosts = [word for host in ("127.0.0.1", *peers.ADDRESSES) for word in ("--host", host)]
        with open(f"{self.work}/mock.log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-B", self.program, "--port", str(self.port), "--state-file", self.state,
                 "--log-file", self.log, "--no-log", "--cut", str(FILES_CUT), "--seed", str(self.seed),
                 "--token-expire", "20", *hosts, *apps],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, encoding="ascii")
        line = self.process.stdout.readline()
        if not line:
            raise servers.Broken(f"the mock does not start: see {self.work}/mock.log")
        self.port = int(line)
        self.control("POST", "rules", self.rules)

    def control(self, method, path, content=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, f"/_mock/{path}", None if content is None else json.dumps(content))
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise servers.Broken(f"mock: {method} {path}: {body.decode()}")
            return json.loads(body)
        finally:
            connection.close()

    def kill(self):
        with self.lock:
            self._count_fired()
            self.process.kill()
            self.process.wait()
            self.kills += 1

    def revive(self):
        with self.lock:
            self.start()

    def set_rules(self, rules):
        with self.lock:
            self.rules = self.always + rules
            if self.process.poll() is None:
                self._count_fired()
                self.control("POST", "rules", self.rules)

    def end_hostility(self):
        """From now on the platform is well for all."""
        self.always = ALWAYS
        self.set_rules([])

    def _count_fired(self):
        for rule in self.control("GET", "rules"):
            kind = rule["fault"]["type"]
            self.fired[kind] = self.fired.get(kind, 0) + rule["fired"]

    def revoke_tokens(self):
        with self.lock:
            if self.process.poll() is None:
                self.control("POST", "tokens/revoke", {})

    def set_secret(self, app, secret):
        with self.lock:
            self.secrets[app] = secret
            if self.process.poll() is None:
                self.control("POST", "config", {"apps": {app: secret}})

    def stop(self):
        self.process.terminate()
        self.process.wait()


class BadLuck(threading.Thread):
    """Has the platform, and what is before it, go from phase to phase until stopped. plan: the first ones."""

    def __init__(self, platform, between, pair, seed, plan=()):
        super().__init__(daemon=True)
        self.peers = between
        self.plan = collections.deque(plan)
        self.platform, self.pair, self.random = platform, pair, random.Random(seed)
        self.stopping, self.phases, self.rotations, self.problem = threading.Event(), {}, 0, None

    def run(self):
        try:
            while not self.stopping.is_set():
                self.one_phase()
            self.peers.well()
            self.platform.set_rules([])
        except Exception as problem:  # pylint: disable=broad-except # (for the campaign to raise)
            self.problem = problem

    def one_phase(self):
        chosen = self.random.random()
        if chosen < 0.06:
            self.rotate_secret(self.random.choice(sorted(APPS)))
        elif chosen < 0.14:
            self.platform.revoke_tokens()
        name = self.plan.popleft() if self.plan else self.random.choices(list(WEIGHTS), WEIGHTS.values())[0]
        self.phases[name] = self.phases.get(name, 0) + 1
        self.peers.change()
        self.platform.set_rules(self.peers.rules + PHASES[name])
        paused = f"'{self.random.choice(sorted(APPS.values()))}', 'app', 'plainFlow'"
        is_paused = self.random.random() < 0.2
        if is_paused:
            self.ask(f"SELECT feishu.pause_flow({paused})")
        self.stopping.wait(self.random.uniform(0.5, 3))
        if is_paused:
            self.ask(f"SELECT feishu.resume_flow({paused})")

    def rotate_secret(self, app):
        """A new secret on the platform, and a while later in the database."""
        self.rotations += 1
        secret = f"secret-{app}-{self.rotations}"
        self.platform.set_secret(app, secret)
        self.stopping.wait(self.random.uniform(0, 1))
        self.ask(f"ALTER USER MAPPING FOR PUBLIC SERVER {APPS[app]} OPTIONS (SET app_secret '{secret}')")

    def ask(self, sql):
        """As the servers' owner, as soon as there is somebody to ask."""
        while True:
            try:
                session = self.pair.session()
                session.ask(sql)
                session.close()
                return
            except wire.Lost:
                time.sleep(0.05)

    def stop(self):
        self.stopping.set()
        self.join()
        if self.problem:
            raise self.problem


def lines_of(path):
    """Objects of a file with one JSON text a line; a torn line is nothing."""
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    pass
