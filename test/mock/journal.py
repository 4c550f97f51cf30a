"""The request log."""
import asyncio
import collections
import json
import time

from .message import cut


class Journal:
    """The request log, and those who wait for something to appear in it."""
    FILTERS = ("kind", "flow_id", "namespace", "key", "app_id", "fault", "connection")

    def __init__(self, config, path=None, most=None):
        self.config, self.waiters, self.most = config, [], most
        self.file = open(path, "a", encoding="utf-8", buffering=1) if path else None
        self.clear()

    def clear(self):
        self.seq, self.entries = 0, collections.deque(maxlen=self.config["log_limit"])

    def arrived(self, request, connection_id):
        self.seq += 1
        request.entry = entry = {
            "seq": self.seq, "time": time.time(), "connection": connection_id, "method": request.method,
            "path": request.target, "headers": request.headers, "body": request.body, "json": request.json,
            "kind": request.kind, "namespace": request.namespace, "flow_id": request.flow_id, "key": request.key,
            "app_id": None, "status": None, "fault": None, "done": None, "aborted": False}
        if self.config["log"]:
            self.entries.append(entry)

    def ended(self, entry, status=None, aborted=False):
        entry["done"], entry["aborted"] = time.time(), aborted
        if status is not None:
            entry["status"] = status
        if self.waiters:
            self.tell("done", entry)
            if aborted:
                self.tell("aborted", entry)
        if self.file:
            self.file.write(json.dumps(cut(self.readable(entry), self.most)) + "\n")

    def tell(self, state, entry):
        for waiter in self.waiters:
            waiter(state, entry)

    @staticmethod
    def readable(entry):
        return {**entry, "body": entry["body"].decode("utf-8", "replace")}

    def predicate(self, wanted):
        """A test of entries from a dict of filters (a query string's or a JSON body's)."""
        pairs = [(name, str(wanted[name])) for name in self.FILTERS if wanted.get(name) is not None]
        since = int(wanted.get("since") or 0)
        return lambda entry: entry["seq"] > since and all(str(entry[name]) == value for name, value in pairs)

    def select(self, wanted):
        test = self.predicate(wanted)
        return [entry for entry in self.entries if test(entry)]

    async def wait(self, wanted):
        """Until `count` entries that match have reached `state`; returns how many and whether in time."""
        state, count = wanted.get("state", "arrived"), int(wanted.get("count", 1))
        reached = {"arrived": lambda e: True, "done": lambda e: e["done"], "aborted": lambda e: e["aborted"]}[state]
        test, enough = self.predicate(wanted), asyncio.get_running_loop().create_future()
        seen = sum(1 for entry in self.select(wanted) if reached(entry))

        def waiter(event, entry):
            nonlocal seen
            if event == state and test(entry):
                seen += 1
                if seen >= count and not enough.done():
                    enough.set_result(True)
        if seen >= count:
            return seen, True
        self.waiters.append(waiter)
        try:
            await asyncio.wait_for(enough, float(wanted.get("timeout", 30)))
            return seen, True
        except asyncio.TimeoutError:
            return seen, False
        finally:
            self.waiters.remove(waiter)
