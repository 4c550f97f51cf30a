#!/usr/bin/python3
"""
Hostile clients against a server, and what its processes need of memory meanwhile: see bench/attack.sh, which prepares the
server and calls this.

  attack.py --socket DIR --port N --data DIR --test DIR --work DIR [--seconds N]

The hostile clients are those of a fault campaign (test/torture/hostile.py), and answers besides that are large when they
have been read, from a platform of their own, over HTTP/1.1 and HTTP/2. The witnesses are clients of other roles, which send one flow and one call after the other. Prints a line
for each kind of process, with the most private memory in kB that one of them was seen to have, one for the witnesses'
flows and calls, and one for each problem of theirs:

  memory KIND KB
  ended FLOWS CALLS SLOWEST_MS
  problem TEXT
"""
import argparse
import collections
import os
import random
import sys
import threading
import time

TORTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "torture")
sys.path.insert(0, TORTURE)

# pylint: disable=wrong-import-position # (of the folder above)
import hostile  # noqa: E402
import servers  # noqa: E402
import wire  # noqa: E402
from journal import Journal  # noqa: E402
from load import Load, SERVER, SERVER_OPTIONS, create_schema  # noqa: E402
from peers import Front, Name  # noqa: E402
from platform_faults import APPS, Platform  # noqa: E402
from siege import Siege  # noqa: E402

CLIENTS, PACE = 8, 0.02
PAUSE, SLOW_PAUSE = 0.01, 0.2  # seconds between two looks at the dispatcher and the launcher, and at all others
OWN_HTTP2 = "evil_http2"  # the server of theirs that speaks it
LARGE, VALUES = "largeFlow", "valuesFlow"
RULES = [{"match": {"kind": "execute", "flow_id": LARGE}, "probability": 0.5, "fault": {"type": "big", "bytes": 15 << 20}},
         {"match": {"kind": "execute", "flow_id": LARGE}, "fault": {"type": "big", "bytes": 2 << 20}},
         {"match": {"kind": "execute", "flow_id": VALUES}, "fault": {"type": "big", "bytes": 4 << 20, "values": 250000}}]


class Attacker(hostile.Hostile):
    """Of the role that may queue."""

    STEPS = {**hostile.Hostile.STEPS, "large_answers": 3, "called_large": 1}

    def large_answers(self):
        if self.may_queue():
            server = self.random.choice((self.own(), OWN_HTTP2))
            self.many("large", self.random.choice((LARGE, VALUES)), self.random.randint(1, 10), server=f"'{server}'")

    def called_large(self):
        n = self.number_one()
        self.journal.count("hostile calls")
        try:
            self.session.ask(f"SELECT feishu.execute_flow('app', '{self.random.choice((LARGE, VALUES))}', '{{\"_id\": 1}}', "
                             f"'{{\"n\": {n}}}', server => '{self.own()}')")
        except wire.SqlError as problem:
            if not problem.sqlstate.startswith("LK"):
                raise


class Attacked:
    """The server."""

    def __init__(self, options):
        self.options = options
        with open(f"{options.data}/postmaster.pid", encoding="ascii") as file:
            self.postmaster = int(file.readline())

    def session(self, user="postgres", patience=60):
        return wire.Session(self.options.socket, self.options.port, user, patience=patience)

    def processes(self):
        return servers.children(self.postmaster)


class Peers:
    """What create_schema wants to know of them."""

    def __init__(self, test, work, platform):
        self.front = Front(f"{test}/http2_front.py", work, f"http://127.0.0.1:{platform.port}")
        self.name = Name(None, work)


class Watch(threading.Thread):
    """The most memory of each kind of process."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.most, self.stopping = server, collections.Counter(), threading.Event()

    @staticmethod
    def kind(title):
        for role in ("dispatcher", "launcher"):
            if f"feishu_flow {role}" in title:
                return role
        if "[local]" not in title:
            return "server"
        return "hostile-session" if title.split()[1] in (hostile.ROLE, hostile.NOBODY) else "session"

    def look(self, found):
        for pid, kind in found.items():
            self.most[kind] = max(self.most[kind], servers.private_kilobytes(pid))

    def run(self):
        found, looked = {}, 0
        while not self.stopping.wait(PAUSE):
            if time.monotonic() >= looked + SLOW_PAUSE:
                found = {pid: self.kind(title) for pid, title in self.server.processes().items()}
                self.look(found)
                looked = time.monotonic()
            self.look({pid: kind for pid, kind in found.items() if kind in ("dispatcher", "launcher")})

    def stop(self):
        self.stopping.set()
        self.join()


def platform_start(options, name):
    """A platform in a folder of its own, and its front."""
    work = f"{options.work}/{name}"
    os.mkdir(work)
    platform = Platform(f"{options.test}/feishu_mock.py", work, 1)
    return platform, Peers(options.test, work, platform)


def create_own(session, platform, peers):
    """The servers of the hostile role."""
    platform.always = RULES + platform.always
    platform.set_rules([])
    hostile.create_schema(session, platform)
    session.ask(SERVER.format(name=OWN_HTTP2, url=peers.front.url, app="evil_1", secret=hostile.APPS["evil_1"],
                              options=SERVER_OPTIONS["http2"].format(certificate=peers.front.certificate)))


def attack(options):
    server, journal = Attacked(options), Journal()
    platforms = [platform_start(options, name) for name in ("platform", "own")]
    try:
        session = server.session()
        create_schema(session, platforms[0][0], APPS, platforms[0][1])
        create_own(session, *platforms[1])
        Siege.create_schema(session)
        # flows that hang may take all that an app's owner allows: that is between its users
        session.ask("ALTER SERVER oauth OPTIONS (DROP max_concurrency)")
        session.close()
        load = Load([Attacker] * CLIENTS + [hostile.Nobody], server, journal, random.Random(1), PACE)
        watch, siege = Watch(server), Siege(server, journal)
        watch.start()
        load.start()
        siege.run(options.seconds, load.check)
        load.stop()
        watch.stop()
        report(watch, siege, journal)
    finally:
        for platform, peers in platforms:
            peers.front.stop()
            platform.stop()


def report(watch, siege, journal):
    for kind, kilobytes in sorted(watch.most.items()):
        print("memory", kind, kilobytes)
    flows, calls = [sum((getattr(witness, what) for witness in siege.witnesses), []) for what in ("flows", "calls")]
    print("ended", len(flows), len(calls), round(max(flows + calls, default=0) * 1000))
    siege.check(lambda what, text: print("problem", what, text))
    for problem, number in journal.errors.items():
        print("problem", f"a client saw {problem} ({number} times)")
    print("hostile", journal.counts["hostile flows"], journal.counts["hostile calls"], journal.counts["hostile statements"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", required=True, help="the server's data directory")
    parser.add_argument("--test", required=True, help="the folder of feishu_mock.py and http2_front.py")
    parser.add_argument("--work", required=True, help="a folder for what is made")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    attack(options)


if __name__ == "__main__":
    main()
