"""
The end of a campaign: the platform is well, nothing is killed any more and what the usual clients have queued is sent,
but the hostile clients go on. How long do flows and calls of the others take?
"""
import threading
import time

import hostile
import wire
from journal import PER_WORKER
from load import OPERATOR

LIMIT = 15  # seconds that a flow, or a call, of others may take
GRACE = 180  # seconds at most until what was queued before is sent
SERVERS = ("feishu", "oauth", "http2", "moves")  # one witness for each


WAITING = f"""
SELECT count(*) FROM feishu_internal.outbox
WHERE state = 'q' AND next_at < now() + '1 min' AND roleid <> '{hostile.ROLE}'::regrole
"""


class Witness(threading.Thread):
    """One client, whose role nobody else uses: one flow and one call after the other."""

    def __init__(self, number, server, pair, journal):
        super().__init__(daemon=True)
        self.role, self.server, self.pair, self.journal = f"witness{number}", server, pair, journal
        self.next_number = (900 + number) * PER_WORKER
        self.flows, self.calls, self.problems, self.problem = [], [], [], None
        self.stopping = threading.Event()

    def run(self):
        try:
            session = self.pair.session(self.role)
            while not self.stopping.wait(0.05):
                self.flow(session)
                self.call(session)
            session.close()
        except Exception as problem:  # pylint: disable=broad-except # (for the campaign to raise)
            self.problem = problem

    def timed(self, times, session, sql):
        """The first value of a statement; its time is noted, and what the extension said, if it is an error."""
        begun, value = time.monotonic(), None
        try:
            value = session.value(sql)
        except wire.SqlError as problem:
            if not problem.sqlstate.startswith("LK"):
                raise
            self.problems.append(f"{self.server}: {problem}")
        times.append(time.monotonic() - begun)
        return value

    def flow(self, session):
        self.next_number += 1
        n = self.next_number
        flow = session.value(f"INSERT INTO marker SELECT {n}, feishu.enqueue_flow('app', 'plainFlow', {OPERATOR}, "
                             f"'{{\"n\": {n}}}', server => '{self.server}'), 'siege' RETURNING flow")
        with self.journal.lock:
            self.journal.acknowledged.add(n)
        self.timed(self.flows, session, f"SELECT feishu.wait_flow({flow}, '60 s')")

    def call(self, session):
        self.next_number += 1
        key = f"call-{self.next_number}"
        before = len(self.problems)
        self.timed(self.calls, session, f"SELECT feishu.execute_flow('app', 'callFlow', {OPERATOR}, "
                   f"'{{\"n\": {self.next_number}}}', idempotent_key => '{key}', server => '{self.server}')")
        with self.journal.lock:
            self.journal.calls[key] = "ok" if len(self.problems) == before else "unknown"


class Siege:
    def __init__(self, pair, journal):
        self.pair, self.journal, self.witnesses, self.before = pair, journal, [], 0

    @staticmethod
    def create_schema(session):
        for number in range(len(SERVERS)):
            session.ask(f"CREATE ROLE witness{number} LOGIN; GRANT SELECT ON marker TO witness{number}")

    def run(self, seconds, meanwhile):
        """meanwhile() is called now and then."""
        def pause(seconds):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.2)
                meanwhile()
        session = self.pair.session()
        begun = time.monotonic()
        while time.monotonic() < begun + GRACE and session.value(WAITING) != "0":
            pause(0.5)
        self.before = time.monotonic() - begun
        session.close()
        self.witnesses = [Witness(number, server, self.pair, self.journal) for number, server in enumerate(SERVERS)]
        for witness in self.witnesses:
            witness.start()
        pause(seconds)
        for witness in self.witnesses:
            witness.stopping.set()
        for witness in self.witnesses:
            witness.join()
            if witness.problem:
                raise witness.problem

    def check(self, report):
        for witness in self.witnesses:
            for what, times in (("flow", witness.flows), ("call", witness.calls)):
                if not times or max(times) > LIMIT:
                    report("held up", f"{witness.server}: a {what} took {max(times, default=0):.1f} s")
            for problem in witness.problems:
                report("held up", problem)

    def told(self):
        parts = []
        for what in ("flows", "calls"):
            times = sorted(sum((getattr(witness, what) for witness in self.witnesses), []))
            longest = ", ".join(f"{w.server} {max(getattr(w, what), default=0):.2f}" for w in self.witnesses)
            parts.append(f"{len(times)} {what} of others, half of them within {times[len(times) // 2]:.2f} s, "
                         f"the longest: {longest} s"
                         if times else f"no {what}")
        return f"{'; '.join(parts)}; before, others' flows were sent after {self.before:.1f} s"
