"""Processes of the rig: started on a core, watched, and ended by their ids.

Never ends a process that it did not start.
"""

import os
import signal
import socket
import subprocess
import time

PATIENCE = 120.0


class Failed(Exception):
    """The rig can't go on; the text says why."""


class Process:
    """A program on one core; its output goes to a file."""

    running = []

    def __init__(self, name, core, command, log, cwd=None):
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                ["taskset", "--cpu-list", str(core)] + [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
            )
        Process.running.append(self)

    @property
    def pid(self):
        return self.child.pid

    def pids(self):
        """The process and all that descend from it."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as stat:
                        parents[int(entry)] = int(stat.read().rsplit(")", 1)[1].split()[1])
                except (OSError, IndexError):
                    continue
        found = [self.pid]
        for pid in found:
            found.extend(child for child, parent in parents.items() if parent == pid)
        return found

    def rss_bytes(self):
        """Resident bytes of the process and all that descend from it."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) * 1024
        return total

    def said(self):
        with open(self.log, errors="replace") as log:
            return log.read()[-2000:]

    def check(self):
        """Raises if the process has ended by itself."""
        if self.child.poll() is not None:
            raise Failed(f"{self.name} ended with {self.child.returncode}:\n{self.said()}")

    def wait_until(self, what, done):
        """Polls `done`, which may raise OSError, until it is true."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.check()
            try:
                if done():
                    return
            except OSError:
                pass
            time.sleep(0.002)
        raise Failed(f"still waiting for {self.name} to {what}:\n{self.said()}")

    def stop(self):
        if self in Process.running:
            Process.running.remove(self)
        family = self.pids() if self.child.poll() is None else []
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(5)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        for pid in family[1:]:
            self.end_orphan(pid)

    @staticmethod
    def end_orphan(pid):
        """A worker whose master was killed: waits for it, then ends it."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    @classmethod
    def stop_all(cls):
        for process in list(cls.running):
            process.stop()


def free_ports(count):
    """Ports that nobody listens on now."""
    sockets = []
    for _ in range(count):
        found = socket.socket()
        found.bind(("127.0.0.1", 0))
        sockets.append(found)
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports
