#!/usr/bin/python3
"""
Watches the dispatchers of a server until it is told to end (SIGTERM). Then it prints the most private memory in kB that
one of them was seen to have, the most sockets, and how many came after the first.

  watch.py PID_OF_POSTMASTER
"""
import os
import signal
import sys
import threading

PAUSE = 0.1  # seconds between two looks


def dispatcher(postmaster):
    """Its process id, or None."""
    with open(f"/proc/{postmaster}/task/{postmaster}/children", encoding="ascii") as file:
        for pid in file.read().split():
            try:
                with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as title:
                    if "feishu_flow dispatcher" in title.read():
                        return int(pid)
            except OSError:
                pass  # it has ended
    return None


def look(pid):
    """-> private memory in kB, sockets"""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        memory = next((int(line.split()[1]) for line in file if line.startswith("Anonymous:")), 0)
    sockets = 0
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            sockets += os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
        except OSError:
            pass  # it is closed
    return memory, sockets


def main():
    postmaster, stop = int(sys.argv[1]), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pid, seen, most = None, 0, [0, 0]
    while True:
        try:
            if pid is None:
                pid = dispatcher(postmaster)
                seen += pid is not None
            if pid is not None:
                most = [max(pair) for pair in zip(most, look(pid))]
        except (OSError, ValueError):
            pid = None
        if stop.wait(PAUSE):
            break
    print(*most, max(0, seen - 1))


if __name__ == "__main__":
    main()
