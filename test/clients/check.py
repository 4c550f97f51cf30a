"""What the programs in Python share: lines "ok - NAME" for the test that runs them, and how to see a waiting call."""

import asyncio
import os
import time

NAMESPACE = "package_7344545d87__c"

# Seconds that anything may take.
PATIENCE = float(os.environ.get("CLIENT_PATIENCE", 60))

# Of a backend: does it wait for the platform?
WAITS = ("SELECT count(*) = 1 FROM pg_stat_activity "
         "WHERE pid = %s AND state = 'active' AND wait_event_type = 'Extension'")


def ok(good, name):
    print(("ok - " if good else "not ok - ") + name, flush=True)


def equal(got, expected, name):
    ok(got == expected, name)
    if got != expected:
        print(f"got {got!r}, expected {expected!r}", flush=True)


def pauses():
    """Of a loop that polls: seconds, until it has taken too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield 0.01
    raise TimeoutError("a condition did not come true")


def wait_until(condition):
    for pause in pauses():
        if condition():
            return
        time.sleep(pause)


async def wait_until_async(condition):
    for pause in pauses():
        if await condition():
            return
        await asyncio.sleep(pause)


def interrupted(call, waits, interrupt):
    """Makes a call in a thread, interrupts it when it waits; returns the error, and the seconds it took from then."""
    import threading

    errors = []

    def run():
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(waits)
    started = time.monotonic()
    interrupt()
    thread.join(PATIENCE)
    return (errors[0] if errors else None), time.monotonic() - started
