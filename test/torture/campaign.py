#!/usr/bin/python3
"""
A fault campaign: see script/torture, which builds the extension and calls this.

  campaign.py --bin DIR --test DIR --work DIR [--seed N] [--seconds S | --short]

The exit status is 1 when something was lost, started twice, recorded wrongly, or is stuck.
"""
import argparse
import collections
import os
import random
import re
import sys
import time

import calls
import hostile
import servers
import wire
from journal import Journal
from killer import Killer
from load import Load, Worker, create_schema
from peers import FRONT_FAULTS, Front, Name, Peers
from platform_faults import APPS, BadLuck, Platform
from reconcile import ENDS, FATAL, NOTES, Truth, reconcile
from siege import Siege

SHORT_SECONDS = 16
SHORT_LUCK = ["lost answers", "all at once", "never arrived", "tokens refused", "interim answers"]
SHORT_FRONT = ["rst_http11", "goaway_http11", "refuse:20", "goaway_lower:3"]
SHORT_PLAN = ["dispatcher", "backend", "postmaster", "mock", "failover", "immediate restart", "starve",
              "fill disk"]
DRAIN_TIME = 120  # seconds for the queue to empty, once all is well
WORKERS, CALLERS, HOSTILE, PACE = 16, 4, 4, 0.02  # clients, and the mean seconds each rests between two things it does
KILL_PAUSE, SHORT_PAUSE = 3, 0.6
SIEGE, SHORT_SIEGE = 0.1, 4  # how long only hostile clients trouble the others: a part of the time; seconds
MOST_MEMORY = 128 << 10  # kB that a dispatcher may have for itself
SHOWN = 10  # findings of a kind that are printed

# What no server should log: a process that fails by itself (not by kill -9), data that is not as it should be.
BAD_LOG = re.compile(r"PANIC|TRAP:|terminated by signal (?!9:)|does not have one row|: XX\d\d\d:")
# PostgreSQL's own, with no extension loaded, too: the postmaster is killed while a session waits for parallel workers
# of a query that was compiled. Its transaction is not cleaned up then, and the end of the session finds what is left.
ORPHANED = re.compile(r"\[(\d+)\] .*FATAL: +postmaster exited during a parallel transaction")
JIT_LEFT = re.compile(r"\[(\d+)\] .*PANIC: +LLVMJitContext in use count not 0 at exit")
# Nor that one of ours fails or ends by itself. A server that is shut down ends it.
BAD_END = re.compile(r"feishu_flow (dispatcher|launcher) .*(ERROR|FATAL|PANIC): ")
END = re.compile(r'background worker "feishu_flow (?:dispatcher|launcher)[^"]*" \(PID (\d+)\) '
                 r"(exited with exit code 1|was terminated by signal)")
SHUTDOWN = re.compile(r"received (fast|immediate|smart) shutdown request")
START = re.compile(r"LOG: +starting PostgreSQL")
FINE_LOG = re.compile(r"terminating (background worker|connection) |is shutting down|is starting up|in recovery mode"
                      r"|postmaster exit|pipe has been closed")


class Campaign:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.journal = Journal()
        self.platform = Platform(f"{options.test}/feishu_mock.py", options.work, options.seed)
        servers.Server.preload = servers.preload_make(
            [f"{options.test}/lib/{name}.c" for name in ("full_disk", "hanging_resolver")], options.work)
        name = Name(servers.Server.preload, options.work)
        front = Front(f"{options.test}/http2_front.py", options.work, f"http://127.0.0.1:{self.platform.port}")
        fronts = list(SHORT_FRONT if options.short else FRONT_FAULTS)
        self.random.shuffle(fronts)
        self.peers = Peers(front, name, random.Random(self.random.random()), fronts)
        self.pair = servers.Pair(options.bin, options.work)
        # The most that a dispatcher, and another, was seen to have for itself, in kB.
        self.memory = self.others_memory = 0
        self.memory_at = 0
        session = self.pair.session()
        create_schema(session, self.platform, APPS, self.peers)
        session.ask(calls.SCHEMA)
        hostile.create_schema(session, self.platform)
        Siege.create_schema(session)
        session.close()
        self.pair.make_standby()
        self.load = Load([Worker] * WORKERS + [calls.Caller] * CALLERS + [hostile.Hostile] * HOSTILE + [hostile.Nobody],
                         self.pair, self.journal, self.random, PACE)
        self.siege = Siege(self.pair, self.journal)
        luck, plan = (list(SHORT_LUCK), list(SHORT_PLAN)) if options.short else ([], [])
        self.random.shuffle(luck)
        self.random.shuffle(plan)
        self.luck = BadLuck(self.platform, self.peers, self.pair, self.random.random(), luck)
        pause = SHORT_PAUSE if options.short else KILL_PAUSE
        self.killer = Killer(self.pair, self.platform, self.random.random(), pause, plan)

    def run(self):
        begun = time.monotonic()
        for part in (self.load, self.luck, self.killer):
            part.start()
        while time.monotonic() < begun + self.options.seconds or self.killer.plan and self.killer.is_alive():
            time.sleep(0.2)
            self.killer.check()
            self.look()
            self.progress(time.monotonic() - begun)
        self.killer.stop()
        self.luck.stop()
        self.load.stop(but=hostile.Hostile)
        self.siege.run(SHORT_SIEGE if self.options.short else SIEGE * self.options.seconds, self.look)
        self.load.stop()
        self.platform.end_hostility()
        self.seconds = time.monotonic() - begun
        session = self.pair.session()
        self.finish_prepared(session)
        self.drained = self.drain(session)
        truth = Truth(session, self.journal, self.platform)
        findings = reconcile(truth)
        for line in self.bad_log_lines():
            findings["went wrong by itself"].append(line)
        findings["dispatcher deaths"] += self.deaths()
        self.siege.check(lambda what, text: findings[what].append(text))
        if self.memory > MOST_MEMORY:
            at = time.strftime("%H:%M:%S", time.gmtime(self.memory_at))
            findings["unbounded"].append(f"a dispatcher had {self.memory >> 10} MB for itself at {at}; "
                                         "see the servers' logs")
        for problem, number in self.journal.errors.items():
            findings["went wrong by itself"].append(f"a client saw {problem} ({number} times)")
        self.report(truth, findings)
        return any(findings.get(what) for what in FATAL)

    def look(self):
        """Are all well, and how much memory have processes? Of the others than the dispatcher, one at a time."""
        self.load.check()
        found = self.pair.primary.processes()
        for pid, title in found.items():
            if "feishu_flow dispatcher" in title:
                self.look_at_memory(pid, servers.private_kilobytes(pid))
        other = random.choice(list(found) or [0])
        if "feishu_flow dispatcher" not in found.get(other, ""):
            self.others_memory = max(self.others_memory, servers.private_kilobytes(other))

    def look_at_memory(self, pid, size):
        """The first time that it is too much, the server's log gets what the process has it for."""
        if size > MOST_MEMORY >= self.memory:
            try:
                session = self.pair.session()
                session.ask(f"SELECT pg_log_backend_memory_contexts({pid})")
                session.close()
            except (wire.Lost, wire.SqlError):
                pass
        if size > self.memory:
            self.memory, self.memory_at = size, time.time()

    def stop(self):
        """Leaves no process behind, however the campaign ended."""
        self.pair.stop()
        self.peers.front.stop()
        self.platform.stop()

    def progress(self, seconds, every=60):
        if int(seconds / every) > getattr(self, "told", 0):
            self.told = int(seconds / every)
            say(f"{self.told * every} s: {self.journal.counts['committed']} transactions, "
                f"{sum(self.killer.done.values())} kills")

    def finish_prepared(self, session):
        """Those whose PREPARE was not acknowledged, so that nobody came back for them."""
        for name, in session.ask("SELECT gid FROM pg_prepared_xacts"):
            session.ask(f"{self.random.choice(('COMMIT', 'ROLLBACK'))} PREPARED '{name}'")

    def drain(self, session):
        """The platform is well; is the queue empty in time? Returns the seconds that it took, or None."""
        begun = time.monotonic()
        for n, flow in session.ask("SELECT n, flow FROM marker JOIN feishu_internal.outbox o ON o.id = flow "
                                   "WHERE kind = 'far' AND state = 'q' AND next_at > now() + '5 min'"):
            session.ask(f"INSERT INTO cancelled SELECT {n} WHERE feishu.cancel_flow({flow})")
        while time.monotonic() < begun + DRAIN_TIME:
            if session.value("SELECT count(*) FROM feishu_internal.outbox WHERE state = 'q' "
                             "OR (end_number IS NOT NULL AND handler_state IS NULL)") == "0":
                return time.monotonic() - begun
            time.sleep(0.1)
        for row in session.ask("SELECT * FROM feishu.dispatch_status"):
            say(f"not empty: {row}")
        return None

    def bad_log_lines(self):
        found = []
        for lines in self.pair.logs_of_each():
            orphaned = set()
            for line in map(str.strip, lines):
                orphan, left = ORPHANED.search(line), JIT_LEFT.search(line)
                if orphan:
                    orphaned.add(orphan[1])
                elif BAD_LOG.search(line) and not FINE_LOG.search(line) and not (left and left[1] in orphaned):
                    found.append(line)
        return found

    def deaths(self):
        """What the logs say of dispatchers and launchers that failed, or that ended and nobody had ended them."""
        found = []
        for lines in self.pair.logs_of_each():
            going_down = False
            for line in map(str.strip, lines):
                going_down = (going_down or SHUTDOWN.search(line)) and not START.search(line)
                end = END.search(line)
                if BAD_END.search(line) and not FINE_LOG.search(line):
                    found.append(line)
                elif end and not going_down and int(end[1]) not in self.killer.ended:
                    found.append(line)
        return found

    def report(self, truth, findings):
        counts = self.journal.counts
        ends = collections.Counter(ENDS[flow.state] for _, _, flow in truth.every())
        say(f"{self.seconds:.0f} s of load, {counts['committed']} transactions committed, "
            f"{counts['rolled back']} rolled back, "
            f"{counts['unknown']} unknown; {counts['calls']} calls, {counts['cancelled']} cancelled, "
            f"{counts['retried']} retried, "
            f"{counts['waited for']} waited for")
        say(f"flows: {len(truth.markers)} committed: {listed(ends)}; "
            + (f"the queue was empty after {self.drained:.1f} s"
               if self.drained is not None else "the queue did not empty"))
        say(f"platform: {truth.count_requests} requests, {truth.count_started} started; phases: "
            f"{listed(self.luck.phases)}; "
            f"faults: {listed(self.platform.fired)}; {self.luck.rotations} secrets rotated")
        say(f"before it: {listed(self.peers.phases)}")
        say(f"bounds: at most {truth.most_at_once} requests of queued flows at once, of {servers.IN_FLIGHT}; "
            f"the dispatcher had {self.memory / 1024:.0f} MB at most, of others one {self.others_memory / 1024:.0f}; "
            f"{len(truth.calls_ended)} calls cancelled; "
            f"{counts['refused by a full disk']} statements refused by a full disk")
        say(f"kills: {sum(self.killer.done.values())}: {listed(self.killer.done)}; "
            f"at most {self.killer.slowest[0]:.1f} s ({self.killer.slowest[1]}) until all was in place again")
        say(f"hostile clients: {counts['hostile flows']} flows, {counts['hostile calls']} calls, "
            f"{counts['hostile statements']} statements; meanwhile {self.siege.told()}")
        for what in NOTES:
            say(f"{what}: {len(findings.get(what, ()))}")
        for what in FATAL:
            say(f"{what.upper()}: {len(findings.get(what, ()))}")
            for text in findings.get(what, ())[:SHOWN]:
                say(f"    {text}")


def listed(counts):
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"


def say(text):
    print(text, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="PostgreSQL's programs")
    parser.add_argument("--test", required=True, help="the folder of feishu_mock.py, http2_front.py and lib/")
    parser.add_argument("--work", required=True, help="a folder for all that is made; short, as sockets live in it")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--short", action="store_true", help="a few kills of each kind, in some 30 seconds")
    options = parser.parse_args()
    if options.short:
        options.seconds = SHORT_SECONDS
    os.makedirs(options.work, exist_ok=True)
    say(f"seed: {options.seed}")
    campaign = Campaign(options)
    try:
        failed = campaign.run()
    except (servers.Broken, wire.Lost, wire.SqlError) as problem:
        say(f"broken off: {problem}")
        failed = True
    finally:
        campaign.stop()
    say(f"seed: {options.seed}; {'NOT all is well' if failed else 'all is well'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
