"""Checks that a peer does the whole job before it is measured.

The right identity on every request, forged names dropped, strangers refused, the server's
certificate verified, the gateway's own shown. Speaks to each peer as devices do.
"""

import re
import socket
import ssl
import threading

from . import table
from .certificates import NAME
from .peers import Job
from .processes import Failed
from .wire import ask, read_message

FORGED = (
    "X_Talk2M_Device: forged",
    "X-Talk2M-Device: forged",
    "x_talk2m_ACCOUNT: forged",
    "X-Talk2M-SerialNumber: forged",
    "x.talk2m.device: forged",
    "X-Talk2M_Extra: forged",
    "X-Forwarded-For: 9.9.9.9",
    "Connection: X_Talk2M_Account",
)


class Recorder:
    """A server that keeps the heads it receives and answers 200."""

    def __init__(self, certificate=None, client_ca=None):
        self.heads = []
        self.clients = []
        self.tls = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(*certificate)
            if client_ca:
                self.tls.load_verify_locations(client_ca)
                self.tls.verify_mode = ssl.CERT_REQUIRED
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream):
        try:
            stream.settimeout(20)
            if self.tls:
                stream = self.tls.wrap_socket(stream, server_side=True)
                self.clients.append(stream.getpeercert())
            while message := read_message(stream):
                self.heads.append(message[0])
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except OSError:
            pass
        finally:
            stream.close()

    def close(self):
        self.listener.close()


def stamped(head):
    """Every field that a server could take for identity, as folded names and values."""
    fields = [line.split(":", 1) for line in head[1:]]
    folded = [(re.sub(r"[^a-z0-9]", "_", name.lower()), value.strip()) for name, value in fields]
    return sorted(pair for pair in folded if pair[0].startswith("x_talk2m_"))


def expected(index):
    return sorted(
        [
            ("x_talk2m_account", table.ACCOUNT),
            ("x_talk2m_device", table.name(index)),
            ("x_talk2m_serialnumber", table.serial(index)),
        ]
    )


def demand(holds, peer, variant, what):
    if not holds:
        raise Failed(f"{peer} ({variant}) does not do the job: {what}")


def check(peer_class, devices, certificates, folder, core):
    """Raises `Failed` if the peer lacks any part of the job."""
    name = peer_class.name
    for variant in ("plain", "tls", "mtls"):
        recorder = Recorder(
            certificates.origin if variant != "plain" else None,
            certificates.ca if variant == "mtls" else None,
        )
        for bodies in (False, True):
            recorder.heads.clear()
            job = Job(variant, recorder.port, devices, certificates, folder, core, bodies)
            peer = peer_class(job).ready()
            try:
                for index in (0, devices.size // 2, devices.size - 1):
                    status = ask(peer.port, table.address(index), FORGED)
                    demand(status == 200, name, variant, f"a device gets {status}")
                    found = stamped(recorder.heads[-1])
                    demand(found == expected(index), name, variant, f"stamps {found}")
                    passed = "9.9.9.9" in str(recorder.heads[-1])
                    demand(not passed, name, variant, "X-Forwarded-For of a device passes")
                    host = f"host: {NAME}" in [line.lower() for line in recorder.heads[-1]]
                    demand(host, name, variant, "the Host field is not the server's")
                before = len(recorder.heads)
                status = ask(peer.port, table.STRANGER)
                refused = status == 403 and len(recorder.heads) == before
                demand(refused, name, variant, f"a stranger gets {status}")
                if variant == "mtls":
                    shown = recorder.clients and all(recorder.clients)
                    demand(shown, name, variant, "shows no client certificate")
            finally:
                peer.stop()
        recorder.close()
    recorder = Recorder(certificates.stranger)
    peer = peer_class(Job("tls", recorder.port, devices, certificates, folder, core)).ready()
    try:
        status = ask(peer.port, table.address(0))
        refused = status in (502, 503) and not recorder.heads
        demand(refused, name, "tls", f"a server with a stranger's certificate gives {status}")
    finally:
        peer.stop()
        recorder.close()
