"""
What a campaign does to the servers: kill -9 of any process, shutdowns, failovers, no descriptors, no room on the disk;
one after the other, each with the server back before the next.
"""
import collections
import os
import random
import resource
import threading
import time

import servers
import wire


class Killer(threading.Thread):
    """Kills until stopped. pause: mean seconds between two of them; plan: what to do first, in this order."""

    # What is killed how often.
    WEIGHTS = {"dispatcher": 6, "handler": 4, "launcher": 2, "backend": 4, "other process": 2, "postmaster": 4,
               "terminate dispatcher": 3, "immediate restart": 2, "fast restart": 2, "standby": 2, "mock": 3,
               "failover": 3, "starve": 4, "fill disk": 4}
    OTHERS = ("checkpointer", "background writer", "walwriter", "walsender", "autovacuum launcher")

    def __init__(self, pair, platform, seed, pause, plan=()):
        super().__init__(daemon=True)
        self.pair, self.platform, self.random = pair, platform, random.Random(seed)
        self.pause, self.plan = pause, collections.deque(plan)
        self.stopping, self.problem = threading.Event(), None
        self.done = collections.Counter()
        self.ended = set()      # processes that were killed or told to end
        self.slowest = (0, "none")  # seconds until all was in place again, after what

    def run(self):
        try:
            while not self.stopping.wait(self.random.expovariate(1 / self.pause)) or self.plan:
                what = self.plan.popleft() if self.plan else \
                    self.random.choices(list(self.WEIGHTS), self.WEIGHTS.values())[0]
                begun = time.monotonic()
                if getattr(self, what.replace(" ", "_"))() is not False:
                    self.done[what] += 1
                self.pair.until_answers()
                self.slowest = max(self.slowest, (time.monotonic() - begun, what))
        except Exception as problem:  # pylint: disable=broad-except # (for the campaign to raise)
            self.problem = problem

    def stop(self):
        self.stopping.set()
        self.join()
        self.check()

    def check(self):
        if self.problem:
            raise self.problem

    def kill_one(self, *titles):
        """kill -9 of a process of the primary whose title has one of these words; all others end, too, and
        start anew."""
        found = [pid for pid, title in self.pair.primary.processes().items() if any(t in title for t in titles)]
        if not found:
            return False
        pid = self.random.choice(sorted(found))
        self.ended.add(pid)
        done = servers.kill(pid)
        servers.until("the postmaster has seen it", lambda: pid not in self.pair.primary.processes())
        return done

    def dispatcher(self):
        return self.kill_one("feishu_flow dispatcher")

    def handler(self):
        return self.kill_one("feishu_flow handler")

    def launcher(self):
        return self.kill_one("feishu_flow launcher")

    def backend(self):
        """In the middle of whatever it does."""
        return self.kill_one("postgres: app1", "postgres: app2")

    def other_process(self):
        return self.kill_one(*self.OTHERS)

    def terminate_dispatcher(self):
        try:
            session = self.pair.primary.session()
            rows = session.ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'")
            self.ended.update(int(pid) for pid, in rows)
            for pid, in rows:
                session.ask(f"SELECT pg_terminate_backend({pid})")
            session.close()
            return bool(rows)
        except wire.Lost:
            return False

    def starve(self):
        """The dispatcher may open little more than it has open, for a while."""
        pid = self.pair.primary.dispatcher()
        try:
            opened = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
            usual = resource.prlimit(pid or 0, resource.RLIMIT_NOFILE)
            free, limit = self.random.randint(0, 6), 0
            while free >= 0:
                free -= limit not in opened
                limit += 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit - 1, usual[1]))
            self.stopping.wait(self.random.uniform(0.5, max(1, self.pause)))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            return True
        except (OSError, ProcessLookupError):
            return False  # there is none, or it has ended

    def fill_disk(self):
        """No table grows any more, for a while."""
        server = self.pair.primary
        if not server.preload:
            return False
        server.set_disk_full(True)
        self.stopping.wait(self.random.uniform(0.5, max(1, self.pause)))
        server.set_disk_full(False)
        return True

    def postmaster(self):
        self.pair.primary.kill_postmaster(fenced=self.random.random() < 0.5)
        self.pair.primary.start()

    def immediate_restart(self):
        self.pair.primary.stop("immediate")
        self.pair.primary.start()

    def fast_restart(self):
        self.pair.primary.stop("fast")
        self.pair.primary.start()

    def standby(self):
        """Commits wait while it is away."""
        self.pair.standby.kill_postmaster()
        self.stopping.wait(self.random.uniform(0, 1))
        self.pair.standby.start()

    def mock(self):
        self.platform.kill()
        self.stopping.wait(self.random.uniform(0, 2))
        self.platform.revive()

    def failover(self):
        self.pair.fail_over()
