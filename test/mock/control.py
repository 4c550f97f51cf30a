"""The control API, with which a test steers the mock and reads what it saw."""
import asyncio
import json
import re
from urllib.parse import parse_qsl

from .message import Answer, dump, load


class Control:
    """The test's side: /_mock/..."""

    def __init__(self, mock):
        self.mock = mock

    async def handle(self, conn, request):
        try:
            result = self.command(request)
            if asyncio.iscoroutine(result):
                result = await result
        except (ValueError, TypeError, KeyError, AttributeError, re.error) as problem:
            result = Answer(400, dump({"error": f"{type(problem).__name__}: {problem}"}))
        conn.answer(request, result if isinstance(result, Answer) else Answer(200, json.dumps(result).encode()))

    def command(self, request):
        """What to answer: an Answer, a value to be written as JSON, or a coroutine that gives one of these."""
        mock, path, method = self.mock, request.path[len("/_mock/"):].rstrip("/"), request.method
        query = dict(parse_qsl(request.query))
        body = load(request.body) if request.body else {}
        if path == "log" and method == "GET":
            entries = mock.journal.select(query)
            if query.get("count"):
                return {"count": len(entries)}
            return [mock.journal.readable(entry) for entry in entries]
        if path == "stats" and method == "GET":
            return mock.stats()
        if path == "started" and method == "GET":
            return mock.platform.flows.summary() if query.get("summary") else mock.platform.flows.list
        if path == "rules" and method in ("POST", "PUT", "DELETE"):
            old, mock.rules.list = mock.rules.list, []
            try:
                mock.rules.add(body if method != "DELETE" and request.body else [])
            except (ValueError, re.error):
                mock.rules.list = old
                raise
            return mock.rules.show()
        if path == "rules" and method == "GET":
            return mock.rules.show()
        if path == "rules/add" and method == "POST":
            mock.rules.add(body)
            return mock.rules.show()
        if path == "release" and method == "POST":
            return {"released": mock.faults.release()}
        if path == "reset" and method == "POST":
            mock.reset()
            return {}
        if path == "config" and method in ("GET", "POST"):
            return mock.configure(body)
        if path == "tokens/revoke" and method == "POST":
            mock.platform.tokens.revoke(body.get("keep_issuing_same", False))
            return {"revoked": len(mock.platform.tokens.revoked)}
        if path == "wait" and method == "POST":
            return self.wait(body)
        return Answer(404, dump({"error": f"no {method} {request.path}; see feishu_mock.py --help"}))

    async def wait(self, wanted):
        count, in_time = await self.mock.journal.wait(wanted)
        return Answer(200 if in_time else 408, dump({"count": count, "timed_out": not in_time}))
