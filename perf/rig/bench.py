"""Runs one scenario against one peer, and takes a window again that was spoilt: by other work, or
by the host that moved the two cores apart.

The peer has a core to itself; the origin and the load share the other.
"""

import json
import os
import signal
import subprocess
import time

from . import identity
from .build import core_latency
from .certificates import Certificates
from .origin import Origin
from .peers import FLOORS, PEERS, Job
from .processes import Failed
from .report import APART, least
from .table import Table, address
from .wire import ask

PEER_CORE = 1
LOAD_CORE = 0
# A window counts if nobody else used more than this share of a core.
FOREIGN_MAX = 0.05
ATTEMPTS = 6
# How long to wait, before a window, for others to pause, and for the cores to be near each other.
QUIET_PATIENCE = 60.0
# Seconds after which cores that were seen apart, and not near since, are measured as they are.
APART_PATIENCE = 300.0
MILLION = 1_000_000
# Devices that hold the idle connections, and requests under way at most: m2u's default lets an
# address have 64 connections.
IDLE_DEVICES = 100
IDLE_ACTIVE = 16
# Seconds without traffic after which memory is read: a peer may need a while to let go of what an
# idle connection does not need.
IDLE_PAUSE = 5.0


class Load:
    """One run of the load generator."""

    def __init__(self, binary, arguments):
        command = ["taskset", "--cpu-list", LOAD_CORE, binary, *arguments]
        self.child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self):
        text = self.child.stdout.readline()
        if not text:
            raise Failed(f"the load ended: {self.child.stderr.read().strip()}")
        return json.loads(text)

    def go_on(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def end(self):
        """Ends it, whether or not it is done."""
        try:
            self.child.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.send_signal(signal.SIGKILL)
            self.child.wait()


class Cores:
    """How far the peer's core and the load's are from each other, as the host has them now."""

    def __init__(self):
        self.seen_ns = []
        self.apart_since = None

    def latency_ns(self):
        """A cache line's way from one to the other and back."""
        command = [core_latency(), str(LOAD_CORE), str(PEER_CORE)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        except (subprocess.SubprocessError, OSError) as error:
            raise Failed(f"the way between the two cores can't be measured: {error}") from error
        latency = int(done.stdout)
        self.seen_ns.append(latency)
        if not self.apart([latency]):
            self.apart_since = None
        elif self.apart_since is None:
            self.apart_since = time.monotonic()
        return latency

    def apart(self, latencies):
        """Whether any of these shows the cores farther apart than they have been seen."""
        return max(latencies) > APART * least(self.seen_ns)

    def may_come_near(self):
        """Whether to wait for it: the host may have put them apart for good."""
        since = self.apart_since
        return since is None or time.monotonic() - since < APART_PATIENCE


class Bench:
    """Everything that outlives one measurement."""

    def __init__(self, folder, load, quick, once=False, foreign_max=FOREIGN_MAX):
        self.folder = folder
        self.load = load
        self.quick = quick
        self.once = once
        self.foreign_max = foreign_max
        self.cores = Cores()
        self.certificates = Certificates(folder)
        self.origin = Origin(folder, self.certificates, LOAD_CORE)
        self.tables = {}

    def table(self, size):
        if size not in self.tables:
            self.tables[size] = Table(self.folder, size)
        return self.tables[size]

    def check(self, names):
        """Every peer does the job, or `Failed`."""
        for name in names:
            devices = self.table(10_000)
            identity.check(PEERS[name], devices, self.certificates, self.folder, PEER_CORE)

    def start(self, name, scenario, size=10_000, few=False):
        job = Job(
            scenario.variant,
            self.origin.ports[scenario.variant],
            self.table(size),
            self.certificates,
            self.folder,
            PEER_CORE,
            scenario.bodies,
            few=few,
        )
        return PEERS[name](job)

    def arguments(self, peer, scenario):
        values = ["--target", f"127.0.0.1:{peer.port}", *scenario.arguments]
        values += ["--origin-status", f"127.0.0.1:{self.origin.status}"]
        peer.pids = peer.process.pids()
        for pid in peer.pids + self.origin.pids:
            values += ["--pid", pid]
        return values

    def run_load(self, arguments):
        load = Load(self.load, arguments)
        try:
            result = load.line()
        finally:
            load.end()
        return checked(result)

    def run_window(self, arguments):
        """Runs the load once, and looks at the cores right before its window and right after it: the
        host may have them elsewhere while they idle."""
        load = Load(self.load, [*arguments, "--gate"])
        try:
            load.line()
            latency = [self.cores.latency_ns()]
            load.go_on()
            result = load.line()
            latency.append(self.cores.latency_ns())
        finally:
            load.end()
        result["core_latency_ns"] = latency
        return checked(result)

    def measure(self, name, scenario):
        """Every attempt as (result, figures, spoilt); the last one counts, or the least spoilt."""
        if scenario.kind == "idle":
            return [self.measure_idle(name, scenario)]
        if scenario.kind == "million":
            return [self.measure_million(name, scenario)]
        size = PEERS[name].devices
        peer = self.start(name, scenario, size)
        try:
            peer.ready()
            arguments = self.arguments(peer, scenario)
            arguments += ["--devices", size]
            arguments += ["--echo", "none"] if name in FLOORS else []
            requests = scenario.quick if self.quick else scenario.requests
            warmup = min(scenario.warmup, requests)
            arguments += ["--requests", requests, "--warmup-requests", warmup]
            attempts = []
            for _ in range(1 if self.once else ATTEMPTS):
                if not self.once:
                    self.wait_for_quiet()
                result = self.run_window(arguments)
                apart = self.cores.apart(result["core_latency_ns"])
                disturbed = result["foreign_cores"] > self.foreign_max
                attempts.append((result, self.figures(peer, result), apart or disturbed))
                if not disturbed and not (apart and self.cores.may_come_near()):
                    break
            else:
                attempts.sort(key=self.damage, reverse=True)
            return attempts
        finally:
            peer.stop()

    def damage(self, attempt):
        """Orders spoilt attempts."""
        result = attempt[0]
        return self.cores.apart(result["core_latency_ns"]), result["foreign_cores"]

    def wait_for_quiet(self):
        """Returns once the machine has been idle for a moment with its cores near each other, or
        apart for good, or the patience is over."""
        deadline = time.monotonic() + QUIET_PATIENCE
        while time.monotonic() < deadline:
            begun, idle = time.monotonic(), idle_seconds()
            time.sleep(0.3)
            wall = time.monotonic() - begun
            others = os.cpu_count() * wall - (idle_seconds() - idle)
            quiet = others < 2 * self.foreign_max * wall
            if not quiet:
                continue
            near = not self.cores.apart([self.cores.latency_ns()])
            if near or not self.cores.may_come_near():
                return

    def figures(self, peer, result):
        if peer.process.pids() != peer.pids:
            raise Failed(f"{peer.name} has changed its processes while it was measured")
        spent = sum(result["cpu_ns"][str(pid)] for pid in peer.pids)
        requests = result["requests"]
        return {
            "cpu_us": spent / requests / 1e3,
            "cpu_ns_per_byte": spent / max(1, result["body_bytes"]),
            "p99_us": result["latency_us"]["p99"],
            "p99.9_us": result["latency_us"]["p99.9"],
            "accepted_per_1000": result["origin_accepted"] * 1000 / requests,
        }

    def measure_idle(self, name, scenario):
        """Resident bytes of each idle connection, after it has had one request."""
        count = scenario.quick if self.quick else scenario.requests
        least = self.resident_with_few(name, scenario)
        peer = self.start_for_idle(name, scenario)
        try:
            load = Load(
                self.load,
                [*self.idle_arguments(peer, scenario), "--connections", count]
                + ["--active", IDLE_ACTIVE, "--requests", count, "--gate"],
            )
            try:
                load.line()
                before = settled(peer.process.rss_bytes)
                load.go_on()
                result = load.line()
                if result["errors"] or result["requests"] != count:
                    raise Failed(f"wrong answers: {result}")
                time.sleep(IDLE_PAUSE)
                after = settled(peer.process.rss_bytes)
                open_now = connections(peer.port)
                if open_now < count:
                    raise Failed(f"{name} holds {open_now} of {count} idle connections")
            finally:
                load.end()
            result.update(rss_least=least, rss_before=before, rss_after=after)
            figures = {
                "bytes_per_connection": (after - before) / count,
                "bytes_with_reserve": (after - least) / count,
                "resident_mb": after / 1e6,
            }
            return result, figures, False
        finally:
            peer.stop()

    def resident_with_few(self, name, scenario):
        """Resident bytes of a peer that is configured for few connections, and has served them."""
        peer = self.start_for_idle(name, scenario, few=True)
        try:
            return settled(peer.process.rss_bytes)
        finally:
            peer.stop()

    def start_for_idle(self, name, scenario, few=False):
        """A peer that has served some traffic: the pools, code and allocator arenas that any
        traffic brings in are not the idle connections'."""
        # A large table leaves free memory behind when it is built, which would be used first.
        peer = self.start(name, scenario, IDLE_DEVICES, few)
        try:
            peer.ready()
            warm_up = ["--connections", IDLE_ACTIVE, "--requests", 3000]
            self.run_load([*self.idle_arguments(peer, scenario), *warm_up])
            return peer
        except BaseException:
            peer.stop()
            raise

    def idle_arguments(self, peer, scenario):
        return [*self.arguments(peer, scenario), "--devices", IDLE_DEVICES]

    def measure_million(self, name, scenario):
        """Time from start to the first answer, and resident bytes, of a table of a million."""
        size = 100_000 if self.quick else MILLION
        rss = {}
        seconds = {}
        for devices in (10_000, size):
            self.table(devices)
            begun = time.monotonic()
            peer = self.start(name, scenario, devices)
            try:
                last = address(devices - 1)
                peer.process.wait_until("serve", lambda: ask(peer.port, last) == 200)
                seconds[devices] = time.monotonic() - begun
                rss[devices] = settled(peer.process.rss_bytes)
            finally:
                peer.stop()
        figures = {
            "start_s": seconds[size],
            "bytes_per_device": (rss[size] - rss[10_000]) / (size - 10_000),
        }
        return {"rss": rss, "seconds": seconds}, figures, False


def checked(result):
    """The load's result, if all answers were right."""
    if result["errors"] or result["mixups"]:
        raise Failed(f"wrong answers: {result}")
    return result


def idle_seconds():
    """Idle time of all cores together since the machine started."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def connections(port):
    """Connections that are open on a local port."""
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    ending = f":{port:04X}"
    return sum(row[1].endswith(ending) and row[3] == "01" for row in rows)


def settled(read):
    """A figure once it no longer changes."""
    last = read()
    for _ in range(50):
        time.sleep(0.1)
        now = read()
        if now == last:
            return now
        last = now
    return last
