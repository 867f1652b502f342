#!/usr/bin/env python3
"""Tells a running m2u who speaks from which address: the feed's socket from Python.

    feed.py SOCKET ADDRESS ACCOUNT DEVICE

shows what a source does, one step a line, and leaves nothing behind. To use it in a program of your
own, copy the class: it needs nothing but the standard library. The words are described in README.md.
"""

import json
import socket
import sys


class Refused(Exception):
    """The gateway refuses, and nothing has changed; `error` is one word, `line` that of a set."""

    def __init__(self, reply):
        super().__init__(reply["reason"])
        self.error = reply["error"]
        self.line = reply.get("line")


class Feed:
    """A connection to the feed of a gateway, for one source."""

    def __init__(self, path, source, timeout=5.0):
        self.source = source
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.revision = 0

    def add(self, address, account, device, **more):
        """The address, or prefix, speaks for the device; answers the number of the change.

        `more`: session, epoch, scope, expires_in (seconds), replace.
        """
        lease = {"address": address, "account": account, "device": device, **more}
        return self.ask({"op": "add", "source": self.source, **lease})["revision"]

    def add_each(self, addresses, account, device, **more):
        """Likewise with several addresses of one device: all of them, or none."""
        lease = {"addresses": addresses, "account": account, "device": device, **more}
        return self.ask({"op": "add", "source": self.source, **lease})["revision"]

    def release(self, address, **more):
        """It does so no longer. `more`: session or any_session, epoch, scope."""
        request = {"op": "release", "source": self.source, "address": address, **more}
        return self.ask(request)["revision"]

    def sync(self, leases, **more):
        """These leases are all that the source has. `more`: epoch."""
        head = {"op": "sync", "source": self.source, **more}
        self.send([head, *leases, {"op": "commit"}])
        return self.reply()["count"]

    def add_all(self, leases):
        """Adds many, without waiting for each; answers those that were refused, and why."""
        leases = list(leases)
        refused = []
        # As many as fit in the socket both ways are under way at a time.
        for begin in range(0, len(leases), 256):
            some = leases[begin : begin + 256]
            self.send({"op": "add", "source": self.source, **lease} for lease in some)
            for lease in some:
                try:
                    self.reply()
                except Refused as why:
                    refused.append((lease, why))
        return refused

    def list(self, **only):
        """The leases of all sources, as of `revision`. `only`: source, address."""
        self.send([{"op": "list", **only}])
        leases = []
        while "lease" in (line := self.receive()):
            leases.append(line["lease"])
        self.revision = self.check(line)["revision"]
        return leases

    def watch(self):
        """Every change from now on, as it comes; the connection serves nothing else then."""
        self.ask({"op": "watch"})
        self.socket.settimeout(None)
        return self.events()

    def events(self):
        while "event" in (line := self.receive()):
            yield line
        self.check(line)

    def ask(self, request):
        self.send([request])
        return self.reply()

    def send(self, requests):
        text = "".join(json.dumps(request) + "\n" for request in requests)
        try:
            self.socket.sendall(text.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # Whoever refuses to read on has said why.
        except TimeoutError:
            self.close()
            raise

    def reply(self):
        return self.check(self.receive())

    def receive(self):
        try:
            line = self.lines.readline()
        except TimeoutError:
            self.close()
            raise
        if not line.endswith("\n"):
            raise ConnectionError("m2u has closed the connection")
        return json.loads(line)

    def close(self):
        """Whoever gives up says so by closing: what has not been done by now is not done later."""
        self.lines.close()
        self.socket.close()

    @staticmethod
    def check(reply):
        if not reply["ok"]:
            raise Refused(reply)
        return reply


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    path, address, account, device = sys.argv[1:]
    feed = Feed(path, source="feed.py")
    try:
        feed.add(address, account, device, session="first", expires_in=600)
        print(f"added: {address} speaks for {device}")
        feed.add(address, account, device, session="second", expires_in=600)
        print("added: it has come back, in another session")
        try:
            feed.release(address, session="first")
        except Refused as why:
            print(f"refused: {why.error}: {why}")
        for lease in feed.list(source="feed.py"):
            print(f"listed: {lease['address']} {lease['device']} {lease['session']} {lease['state']}")
        count = feed.sync([{"address": address, "account": account, "device": device}])
        print(f"synced: {count}")
        feed.release(address)
        print("released")
    except (Refused, OSError) as why:
        sys.exit(f"feed.py: {why}")


if __name__ == "__main__":
    main()
