"""
The PostgreSQL servers of a campaign: a primary and its synchronous standby, which can be killed, restarted and
promoted.

Acknowledged commits survive a failover: synchronous_standby_names is set as long as there is a standby, and there is
no failover unless the standby has all that was visible on the primary. While a new standby is being made, the primary
works alone, as a cluster manager would have it.

A disk of theirs can be full, and a name can lead elsewhere: a library that is put before the C library's sees to it
(test/lib/full_disk.c, test/lib/hanging_resolver.c).
"""
import os
import shutil
import signal
import subprocess
import threading
import time

import wire

CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '{work}'
port = {port}
shared_preload_libraries = 'feishu_flow'
fsync = off
max_connections = 60
max_wal_senders = 10
wal_keep_size = '256MB'
max_prepared_transactions = 300
hot_standby = on
synchronous_standby_names = ''
restart_after_crash = on
log_line_prefix = '%m [%p] %b %q%u '
log_timezone = 'UTC'
timezone = 'UTC'
feishu_flow.timeout = '{timeout}s'
feishu_flow.connect_timeout = '1s'
feishu_flow.retry_base_delay = '20ms'
feishu_flow.retry_max_delay = '500ms'
feishu_flow.poll_interval = '2s'
feishu_flow.max_attempts = 1000
feishu_flow.handler_attempts = 1000
feishu_flow.max_in_flight = {in_flight}
"""
IN_FLIGHT = 24  # fewer than there are lanes
TIMEOUT = 2  # seconds
START_TIME = 180  # seconds a server may take to start, or to be left by its processes


class Broken(Exception):
    """The campaign cannot go on."""


def children(parent):
    """Processes of a parent: {pid: title}."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, ppid = file.read().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                with open(f"/proc/{name}/cmdline", encoding="utf-8", errors="replace") as file:
                    found[int(name)] = file.read().replace("\0", " ").strip()
        except (OSError, ValueError):
            pass  # it has ended
    return found


def private_kilobytes(pid):
    """Memory that a process has for itself, or 0."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Anonymous:")), 0)
    except OSError:
        return 0  # it has ended


def kill(pid):
    """kill -9; is there such a process?"""
    try:
        os.kill(pid, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


def until(what, condition, seconds=START_TIME):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Broken(f"timed out waiting until {what}")
        time.sleep(0.02)


def preload_make(sources, work):
    """The library that fills disks and moves names; None where it cannot be made."""
    library = f"{work}/preload.so"
    if sources and shutil.which("cc") and \
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, *sources, "-ldl"], check=False).returncode == 0:
        return library
    return None


class Server:
    """One data directory. preload: a library to be put before the C library's."""

    preload = None

    def __init__(self, bindir, work, number):
        self.bindir, self.work, self.port = bindir, work, 5500 + number
        self.data, self.log = f"{work}/data{number}", f"{work}/server{number}.log"

    def run(self, program, *arguments, check=True):
        environment = {**os.environ, "LD_PRELOAD": self.preload} if self.preload and program == "pg_ctl" else None
        result = subprocess.run([f"{self.bindir}/{program}", *arguments], stdin=subprocess.DEVNULL, check=False,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                                env=environment)
        if check and result.returncode:
            raise Broken(f"{program} failed: {result.stdout}")
        return result.returncode == 0

    def configure(self, text):
        with open(f"{self.data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.write(text)

    def initialize(self):
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                 "--no-sync")
        self.configure(CONFIGURATION.format(work=self.work, port=self.port, timeout=TIMEOUT, in_flight=IN_FLIGHT))

    def copy(self, primary):
        """Becomes a standby of another server."""
        self.run("pg_basebackup", "-D", self.data, "-h", self.work, "-p", str(primary.port), "-U", "postgres",
                 "-c", "fast", "-X", "stream", "-R", "--no-sync")
        self.configure(f"port = {self.port}\nsynchronous_standby_names = ''\n")

    def start(self):
        """After a kill -9 the old processes may take a moment to be gone."""
        deadline = time.monotonic() + START_TIME
        while not self.run("pg_ctl", "-s", "-w", "-D", self.data, "-l", self.log, "start", check=False):
            if time.monotonic() > deadline:
                raise Broken(f"the server does not start: see {self.log}")
            time.sleep(0.1)

    def stop(self, mode):
        self.run("pg_ctl", "-s", "-w", "-D", self.data, "-m", mode, "stop", check=False)

    def reload(self):
        self.run("pg_ctl", "-s", "-D", self.data, "reload")

    def promote(self):
        self.run("pg_ctl", "-s", "-w", "-D", self.data, "promote")

    def postmaster(self):
        """Its process id, or None."""
        try:
            with open(f"{self.data}/postmaster.pid", encoding="ascii") as file:
                return int(file.readline())
        except (OSError, ValueError):
            return None

    def processes(self):
        pid = self.postmaster()
        return children(pid) if pid else {}

    def set_disk_full(self, full):
        if full:
            with open(self.data + ".full", "w", encoding="ascii"):
                pass
        elif os.path.exists(self.data + ".full"):
            os.unlink(self.data + ".full")

    def dispatcher(self):
        """Its process id, or None."""
        return next((pid for pid, title in self.processes().items() if "feishu_flow dispatcher" in title), None)

    def kill_postmaster(self, fenced=False):
        """kill -9; the others notice, and end. Fenced: they are killed, too, as by a machine that is switched off."""
        pid = self.postmaster()
        others = children(pid)
        kill(pid)
        if fenced:
            for other in others:
                kill(other)
        until("the killed server's processes are gone", lambda: not any(os.path.exists(f"/proc/{p}") for p in others))

    def session(self, user="postgres", patience=60):
        return wire.Session(self.work, self.port, user, patience=patience)

    def answers(self):
        try:
            self.session().close()
            return True
        except wire.Lost:
            return False

    def remove(self):
        shutil.rmtree(self.data, ignore_errors=True)


class Pair:
    """The primary of the moment and its standby. Its methods are for one thread, that which kills; sessions for all."""

    def __init__(self, bindir, work):
        self.bindir, self.work, self.number = bindir, work, 0
        self.lock = threading.Lock()
        self.standby = None
        self.primary = self._new()
        self.primary.initialize()
        self.primary.start()

    def _new(self):
        self.number += 1
        return Server(self.bindir, self.work, self.number)

    def session(self, user="postgres", patience=60):
        """On the primary; raises Lost when there is none now."""
        with self.lock:
            server = self.primary
        return server.session(user, patience)

    def until_answers(self):
        until("the primary answers", self.primary.answers)

    def make_standby(self):
        standby = self._new()
        standby.copy(self.primary)
        standby.start()
        self.standby = standby
        self.primary.configure("synchronous_standby_names = '*'\n")
        self.primary.reload()
        self.until_in_sync()

    def until_in_sync(self):
        """Until the standby has all that was visible when this began."""
        session = self.primary.session()
        try:
            until("synchronous_standby_names is known",
                  lambda: session.value("SHOW synchronous_standby_names") == "*")
            position = session.value("SELECT pg_current_wal_lsn()")
            until("the standby has caught up", lambda: session.value(
                "SELECT count(*) FROM pg_stat_replication "
                f"WHERE sync_state = 'sync' AND flush_lsn >= '{position}'") == "1")
        finally:
            session.close()

    def fail_over(self):
        """The primary is killed, its standby promoted, and that one gets a standby of its own."""
        self.until_in_sync()
        old = self.primary
        old.kill_postmaster(fenced=True)
        self.standby.promote()
        with self.lock:
            self.primary, self.standby = self.standby, None
        old.remove()
        self.make_standby()

    def logs_of_each(self):
        """The lines of each server's log."""
        for number in range(1, self.number + 1):
            path = f"{self.work}/server{number}.log"
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    yield file

    def stop(self):
        for server in filter(None, (self.standby, self.primary)):
            server.stop("immediate")
