"""asyncpg."""

import asyncio
import datetime
import json

import asyncpg

from check import NAMESPACE, PATIENCE, equal, ok, wait_until_async

WAITS = ("SELECT count(*) = 1 FROM pg_stat_activity "
         "WHERE pid = $1 AND state = 'active' AND wait_event_type = 'Extension'")


async def prepare(conn):
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def main():
    # Without the codec, jsonb is text on both sides.
    plain = await asyncpg.connect()
    equal(type(await plain.fetchval("SELECT feishu.execute_flow($1, $2, params => $3)", NAMESPACE, "flow", "{}")), str,
          "jsonb is a str without a codec")
    try:
        await plain.fetchval("SELECT feishu.execute_flow($1, $2, params => $3)", NAMESPACE, "flow", {})
        ok(False, "... and a dict is refused")
    except asyncpg.DataError:
        ok(True, "... and a dict is refused")
    await plain.close()

    pool = await asyncpg.create_pool(min_size=1, max_size=1, init=prepare)

    async with pool.acquire() as conn, conn.transaction():
        order = await conn.fetchval("INSERT INTO orders (item) VALUES ($1) RETURNING id", "desk")
        flow = await conn.fetchval(
            "SELECT feishu.enqueue_flow($1, $2, operator => $3, params => $4)",
            NAMESPACE, "committed", {"email": "li@example.com"}, {"order": order})

    answer = await pool.fetchval("SELECT feishu.wait_flow($1, $2)", flow, datetime.timedelta(seconds=PATIENCE))
    equal(answer["code"], 0, "a flow that was queued with its order is sent")
    big = 2**63 - 1
    out = await pool.fetchval(
        "SELECT feishu.out_params(feishu.execute_flow($1, $2, $3, $4, $5, $6, $7, $8, $9))",
        NAMESPACE, "echoParams", None, {"total": big, "null": None}, False, None, ["a"], "feishu",
        datetime.timedelta(seconds=PATIENCE))
    equal((out["total"], out["null"]), (big, None), "an integer of 64 bits keeps its digits, and null is null")
    equal(await pool.fetchval("SELECT feishu.out_params($1)", None), None, "NULL comes back as None")
    run_at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    later = await pool.fetchval("SELECT feishu.enqueue_flow($1, $2, run_at => $3)", NAMESPACE, "later", run_at)
    equal(await pool.fetchval("SELECT run_at FROM feishu.flows WHERE id = $1", later), run_at,
          "a time keeps its microseconds")
    equal(await pool.fetchval("SELECT feishu.cancel_flow($1)", later), True, "the id of a flow is an int")

    pid = await pool.fetchval("SELECT pg_backend_pid()")
    try:
        await pool.fetchval("SELECT feishu.execute_flow($1, $2)", NAMESPACE, "noScope")
        ok(False, "a refusal is an error")
    except asyncpg.PostgresError as error:
        equal(error.sqlstate, "LK403", "the SQLSTATE")
        ok("code 99991672" in error.detail, "DETAIL")
        ok("https://" in error.hint, "HINT")
    equal(await pool.fetchval("SELECT pg_backend_pid()"), pid, "the pool gives the same connection again")

    # What is cancelled, or takes longer than its timeout, is cancelled on the server.
    watch = await asyncpg.connect()
    task = asyncio.create_task(pool.fetchval("SELECT feishu.execute_flow($1, $2)", NAMESPACE, "hangingFlow"))

    async def waits():
        return await watch.fetchval(WAITS, pid)

    async def ended():
        return not await waits()

    await wait_until_async(waits)
    task.cancel()
    try:
        await task
        ok(False, "a task that is cancelled ends its call")
    except asyncio.CancelledError:
        ok(True, "a task that is cancelled ends its call")
    await wait_until_async(ended)
    ok(True, "... on the server, too")
    try:
        await pool.fetchval("SELECT feishu.execute_flow($1, $2)", NAMESPACE, "hangingFlow", timeout=1)
        ok(False, "so does a timeout")
    except asyncio.TimeoutError:
        ok(True, "so does a timeout")
    equal(await pool.fetchval("SELECT 1"), 1, "... and the pool works")

    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.fetchval("SELECT feishu.enqueue_flow($1, $2)", NAMESPACE, "committed")
            try:
                async with conn.transaction():
                    await conn.fetchval("SELECT feishu.enqueue_flow($1, $2)", NAMESPACE, "rolledBack")
                    raise ValueError
            except ValueError:
                pass
    await watch.close()
    await pool.close()


asyncio.run(main())
