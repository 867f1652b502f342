"""Counts what the threads of a process's cores ask of the kernel inside a window.

By tracepoints where this machine has them; else by the ring's own counters and strace. Knows also
which congestion control TCP has, and how to run with another.
"""

import os
import platform
import re
import signal
import subprocess
import time

from .processes import Failed

# Operations of io_uring by their numbers in the kernel's interface.
OPERATIONS = {26: "send", 27: "recv", 9: "sendmsg", 10: "recvmsg", 11: "timeout", 6: "poll"}
# System calls that are told apart, where a program of this kind might make them.
CALLS = (
    "io_uring_enter recvfrom sendto recvmsg sendmsg read write readv writev epoll_ctl epoll_pwait "
    "ppoll futex setsockopt getsockopt fcntl ioctl shutdown close socket connect accept4 splice "
    "mmap munmap madvise timerfd_settime"
).split() + (["epoll_wait", "poll"] if platform.machine() == "x86_64" else [])
# What else the kernel does while a core's thread is the one that runs.
EVENTS = {
    "system calls": "raw_syscalls:sys_enter",
    "packets sent": "net:net_dev_start_xmit",
    "timers set": "timer:hrtimer_start",
    "threads woken": "sched:sched_waking",
    "switches": "sched:sched_switch",
}
TRACING = "/sys/kernel/tracing"
MOUNT = f'mount -t tracefs nodev {TRACING} && exec "$@"'
CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"
ALONE = f'ip link set lo up && echo "$0" >{CONGESTION} && exec "$@"'
# How the names of m2u's threads begin: the cores', and that of the access log.
CORE = "m2u-core-"
LOG = "m2u-log"


def with_tracefs(command):
    """Runs in a mount namespace of its own where the machine has no tracefs mounted."""
    if os.path.isdir(f"{TRACING}/events"):
        return command
    return ["unshare", "--mount", "sh", "-c", MOUNT, "sh", *command]


def congestion_control():
    """What every connection of this network namespace begins with."""
    with open(CONGESTION) as file:
        return file.read().strip()


def with_congestion_control(name, command):
    """Runs in a network namespace of its own, whose connections have this congestion control."""
    return ["unshare", "--net", "sh", "-c", ALONE, name, *command]


def has_tracepoints(events=("io_uring:io_uring_submit_req", "raw_syscalls:sys_enter")):
    probe = ["perf", "stat", "-e", ",".join(events)]
    try:
        done = subprocess.run(with_tracefs([*probe, "true"]), capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def core_threads(pid):
    """The threads that carry traffic; the control plane's clock is not a request's."""
    found = threads(pid, CORE)
    if not found:
        raise Failed(f"m2u has no thread named {CORE}…")
    return found


def threads(pid, prefix):
    """The threads whose names begin so."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/comm") as file:
            if file.read().startswith(prefix):
                found.append(thread)
    return found


class Attached:
    """perf, on some threads, with its counters off until the window begins."""

    def __init__(self, command, threads):
        theirs, self.control = os.pipe()
        self.answers, answers = os.pipe()
        command = [*command, "-D", "-1", "--control", f"fd:{theirs},{answers}"]
        self.child = subprocess.Popen(
            [str(part) for part in [*command, "-t", ",".join(threads)]],
            pass_fds=(theirs, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        os.close(answers)

    def tell(self, word):
        os.write(self.control, f"{word}\n".encode())
        if not os.read(self.answers, 16).startswith(b"ack"):
            raise Failed(f"perf does not answer: {self.child.stderr.read()}")

    def begin(self):
        self.tell("enable")

    def end(self):
        self.tell("disable")
        # perf writes what it has when it is interrupted.
        self.child.send_signal(signal.SIGINT)
        try:
            self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        os.close(self.control)
        os.close(self.answers)


class Stat:
    """Counts some events by perf while a core's threads run."""

    def __init__(self, pid, folder, events):
        self.output = folder / "perf-stat"
        self.events = events.count("-e")
        command = ["perf", "stat", "-x", ";", "-o", self.output, *events]
        self.perf = Attached(with_tracefs(command), core_threads(pid))

    def begin(self):
        self.perf.begin()

    def end(self):
        """How often each was, in their order."""
        self.perf.end()
        counts = []
        for line in self.output.read_text().splitlines():
            parts = line.split(";")
            if len(parts) > 2 and ":" in parts[2]:
                # Else "<not counted>", of a thread that never ran, or "<not supported>".
                counts.append(int(parts[0]) if parts[0].isdigit() else None)
        if len(counts) != self.events or None in counts or not any(counts):
            raise Failed(f"perf did not count all of it:\n{self.output.read_text()}")
        return counts


class Tracepoints(Stat):
    """Counts system calls and operations by perf."""

    source = "tracepoints"

    def __init__(self, pid, folder):
        events = ["-e", "raw_syscalls:sys_enter"]
        for name in CALLS:
            events += ["-e", f"syscalls:sys_enter_{name}"]
        for number in OPERATIONS:
            events += ["-e", "io_uring:io_uring_submit_req", "--filter", f"opcode == {number}"]
        events += ["-e", "io_uring:io_uring_submit_req"]
        super().__init__(pid, folder, events)

    def end(self):
        """Operations by name, and system calls by name."""
        called, *counts, submitted = super().end()
        calls = dict(zip(CALLS, counts))
        operations = dict(zip(OPERATIONS.values(), counts[len(CALLS) :]))
        calls["other"] = called - sum(calls.values())
        operations["other"] = submitted - sum(operations.values())
        return [
            {name: count for name, count in found.items() if count}
            for found in (operations, calls)
        ]


class Events(Stat):
    """Counts what the kernel does otherwise; what it does while the core sleeps is not in it."""

    def __init__(self, pid, folder):
        super().__init__(pid, folder, [word for event in EVENTS.values() for word in ("-e", event)])

    def end(self):
        """How often each event was, by name."""
        return dict(zip(EVENTS, super().end()))


class Counters:
    """The ring's own counters, and strace for system calls."""

    source = "ring counters and strace"

    def __init__(self, pid, folder):
        self.pid = pid
        self.output = folder / "strace"
        self.child = None

    def rings(self):
        total = {"submitted": 0, "completed": 0}
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                if os.readlink(f"/proc/{self.pid}/fd/{fd}") != "anon_inode:[io_uring]":
                    continue
                with open(f"/proc/{self.pid}/fdinfo/{fd}") as file:
                    text = file.read()
            except OSError:
                continue
            for name, key in (("submitted", "SqHead"), ("completed", "CqTail")):
                found = re.search(rf"^{key}:\s*(\d+)", text, re.MULTILINE)
                if not found:
                    raise Failed("this kernel's fdinfo does not show the ring's counters")
                total[name] += int(found.group(1))
        return total

    def begin(self):
        command = ["strace", "-c", "-o", self.output]
        for thread in core_threads(self.pid):
            command += ["-p", thread]
        self.child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 10
        while self.tracer() == 0:
            if time.monotonic() > deadline or self.child.poll() is not None:
                raise Failed(f"strace does not attach: {self.child.stderr.read()}")
            time.sleep(0.01)
        self.before = self.rings()

    def tracer(self):
        (thread, *_) = core_threads(self.pid)
        with open(f"/proc/{self.pid}/task/{thread}/status") as file:
            return int(re.search(r"^TracerPid:\s*(\d+)", file.read(), re.MULTILINE).group(1))

    def end(self):
        after = self.rings()
        self.child.send_signal(signal.SIGINT)
        self.child.wait(30)
        calls = {}
        for line in self.output.read_text().splitlines():
            parts = line.split()
            if len(parts) >= 5 and parts[3].isdigit() and parts[-1] != "total":
                calls[parts[-1]] = int(parts[3])
        operations = {key: after[key] - self.before[key] for key in after}
        return operations, calls


def counter(pid, folder, tracepoints):
    return (Tracepoints if tracepoints else Counters)(pid, folder)
