"""Send malformed, oversized, slow, cross-origin and half-closed requests to a server: python -m tests.tools.abuse [N]

The server is a process of its own with the shipped model. Correct requests are among the others, and their answers are
compared with those of `Model.generate`. At the end, nothing may be left: no line on stderr, no thread, file, child
process, connection or page of the cache, and no memory.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import qwq_ref
from tests.support.abuse import abuse, known_answers
from tests.support.servers import read_all, request, status

SERVER = """
import faulthandler, gc, sys, threading
import qwq_ref
from tests.support.servers import serving
model = qwq_ref.load("qwq-nano", weights="q8", kv="int8")
with serving(lambda: model) as running:
    print(running.port, flush=True)
    for line in sys.stdin:
        scheduler = running.engine.scheduler
        if line.startswith("forget"):
            scheduler.call(lambda: [None for _ in iter(scheduler._prefixes.drop_oldest, False)])
            gc.collect()
        threads = sum(not thread.name.startswith("qwq-serve") for thread in threading.enumerate())
        bodies = running.server.config.app._app._app.held
        print(len(running.server.server_state.connections), model.backend.pool.used, threads, bodies, flush=True)
"""
KNOWN = 12
WARM = 0.1  # of the requests come before the first look
POOLED = 3  # threads of pools with a limit, which start when work comes together; a leak is one for each request
MEMORY = 32 << 20  # bytes that may come after it


class Watched:
    """A server in a process of its own, and a look at what it holds."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = []
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.process.stdout.readline())

    def _read(self):
        for line in self.process.stderr:
            self.errors.append(line)

    def _proc(self, name):
        return Path(f"/proc/{self.process.pid}/{name}")

    @property
    def resident(self):
        return int(self._proc("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def look(self):
        """The holdings of the server at rest: connections, pages, threads, bodies, files and children."""
        end = time.monotonic() + 60
        while True:
            self.process.stdin.write("forget\n")
            self.process.stdin.flush()
            names = ("connections", "pages", "threads", "bodies")
            held = dict(zip(names, map(int, self.process.stdout.readline().split()), strict=True))
            held["files"] = len([*self._proc("fd").iterdir()])
            children = self._proc(f"task/{self.process.pid}/children").read_text().split()
            held["children"] = len(children)
            held["running"] = sum(int(n) for n in re.findall(r"^qwq_(?:running|waiting) (\d+)", self.metrics(), re.M))
            if not any(held[name] for name in ("connections", "pages", "bodies", "running")) or time.monotonic() > end:
                return held
            time.sleep(0.2)

    def ask(self, path):
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sock:
            sock.sendall(request(path))
            return read_all(sock)

    def metrics(self):
        return self.ask("/metrics").decode()

    def end(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()


def run(number, clients=96, first=0):
    """Send so many requests -> counts of (kind, status), and a list of faults."""
    server = Watched()
    counts, faults = collections.Counter(), []
    try:
        known = known_answers(qwq_ref.load("qwq-nano", weights="q8", kv="int8"), KNOWN)
        warm = first + int(WARM * number)

        def some(start, stop):
            with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                parts = [range(start + i, stop, clients) for i in range(clients)]
                for found, wrong in pool.map(lambda seeds: abuse(server.port, known, seeds), parts):
                    counts.update(found)
                    faults.extend(wrong)

        some(first, warm)
        before, memory = server.look(), server.resident
        some(warm, first + number)
        after, more = server.look(), server.resident - memory
        for name, count in after.items():
            if count > before[name] + (POOLED if name == "threads" else 0):
                faults.append(f"{count} {name} are left, before there were {before[name]}")
        for name in ("connections", "pages", "bodies", "running"):
            if after[name]:
                faults.append(f"{after[name]} {name} are left")
        if more > MEMORY:
            faults.append(f"the server has {more >> 20} MiB more than before")
        if status(server.ask("/health")) != 200:
            faults.append("/health is not ok")
        failed = re.search(r"^qwq_failed_total (\d+)", server.metrics(), re.M)[1]
        if failed != "0":
            faults.append(f"{failed} answers failed")
        faults += [f"on stderr: {line}" for line in server.errors]
        print(f"before {before}, after {after}, memory {more / (1 << 20):+.1f} MiB", file=sys.stderr)
    finally:
        server.end()
    return counts, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", nargs="?", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=96)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    began = time.monotonic()
    counts, faults = run(options.number, options.clients, options.first)
    for (kind, code), count in sorted(counts.items()):
        print(f"{kind:16} {code or 'none':5} {count}")
    print(f"{sum(counts.values())} requests in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    for fault in faults[:50]:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
