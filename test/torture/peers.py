"""
What is between the servers of a campaign and its platform: a front that speaks HTTP/2 over TLS, with faults of its own,
and a name that moves from one address of the platform to another.
"""
import os
import subprocess
import sys
import threading

import servers

# The large requests are those of kinds "large" and "huge"; of the others none is refused for good.
LARGE = 50000
FRONT_FAULTS = ["rst_http11", "goaway_http11", "goaway_http11_last", "refuse:20", "refuse_kept:10", "goaway_lower:3",
                "interim", "idle_close:0.05", f"early_413:none:{LARGE}", f"early_413:cancel:{LARGE}",
                f"early_413:goaway:{LARGE}", f"early_413:reset:{LARGE}"]
ADDRESSES = ("127.0.0.2", "127.0.0.3")  # of the platform, where the name may lead
NAME = "platform.moves"


class Front:
    """The front's process, between a server and the platform."""

    def __init__(self, program, work, upstream):
        self.certificate, key = f"{work}/front.crt", f"{work}/front.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=front",
                        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", self.certificate],
                       check=True, stdin=subprocess.DEVNULL, capture_output=True)
        with open(f"{work}/front.log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-B", program, "--upstream", upstream, "--certificate", self.certificate, "--key", key,
                 "none"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="ascii")
        line = self.process.stdout.readline()
        if not line:
            raise servers.Broken(f"the front does not start: see {work}/front.log")
        self.port = int(line.split()[1])
        self.url = f"https://127.0.0.1:{self.port}"

    def set_fault(self, fault):
        self.process.stdin.write(f"{self.port} {fault}\n")
        self.process.stdin.flush()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Name:
    """A name that the servers' resolver (test/lib/hanging_resolver.c) looks up in a file."""

    def __init__(self, resolver, work):
        self.path, self.resolver, self.at = f"{work}/moves", resolver, 0
        os.environ["RESOLVER_MOVES"] = self.path
        self.lead(ADDRESSES[0])

    def host(self):
        return NAME if self.resolver else ADDRESSES[0]

    def lead(self, address):
        """Nothing for an address: the name cannot be resolved."""
        with open(self.path + ".new", "w", encoding="ascii") as file:
            file.write(f"{address}\n")
        os.replace(self.path + ".new", self.path)


class Peers:
    """Both, and how they change from phase to phase. rules: what the platform is to do at an address that was left."""

    def __init__(self, front, name, random, plan=()):
        self.front, self.name, self.random = front, name, random
        self.plan, self.rules, self.phases = list(plan), [], {}
        self.timers = []

    def change(self):
        """Another phase has begun."""
        fault = "none"
        if self.random.random() < 0.7 or self.plan:
            fault = self.plan.pop() if self.plan else self.random.choice(FRONT_FAULTS)
            self._count(fault.rpartition(f":{LARGE}")[0] or fault)
        self.front.set_fault(fault)
        if self.name.resolver and self.random.random() < 0.5:
            self.move()

    def move(self):
        """To the other address. What answers at the old one has no backend, or does not answer; those who resolve the
        name are told a while later, or get no answer meanwhile."""
        self._count("moves")
        left, self.name.at = ADDRESSES[self.name.at], 1 - self.name.at
        match = {"kind": "any", "address": left}
        self.rules = [{"match": match, "fault": self.random.choice((
            {"type": "status", "status": 503}, {"type": "status", "status": 502}, {"type": "reset_before"}))}]
        if self.random.random() < 0.3:
            self._count("no name")
            self.name.lead("")
        timer = threading.Timer(self.random.uniform(0, 0.7), self.name.lead, [ADDRESSES[self.name.at]])
        timer.start()
        self.timers.append(timer)

    def well(self):
        for timer in self.timers:
            timer.join()
        self.front.set_fault("none")
        self.name.lead(ADDRESSES[self.name.at])
        self.rules = []

    def _count(self, what):
        self.phases[what] = self.phases.get(what, 0) + 1
