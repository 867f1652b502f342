"""The peers: m2u, nginx and HAProxy, each configured for the gateway's whole job.

Identity by source address from a table, forged names dropped, strangers refused, upstream
connections kept, certificates verified both ways, no log.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from .certificates import NAME
from .processes import Process, free_ports
from .table import ACCOUNT, address
from .wire import ask


# Connections of a peer that is configured for few: sixteen devices, and as many to the origin.
FEW = 64


@dataclass
class Job:
    """What a peer is to do."""

    variant: str
    port: int
    table: object
    certificates: object
    folder: object
    core: int
    bodies: bool = False
    log: bool = False
    idle_upstream: int = 512
    # Configured for no more connections than the few that serve in a moment.
    few: bool = False


class Peer:
    """One running peer."""

    devices = 10_000
    # Other cores than the one that a peer has to itself, as a list such as 0-1.
    cores = None

    def __init__(self, job):
        self.job = job
        self.cores = self.cores or job.core
        (self.port,) = free_ports(1)
        self.process = Process(
            self.name, self.cores, self.command(), job.folder / f"{self.name}.log", job.folder
        )

    def ready(self):
        """Waits for any answer: a master process may listen before its worker is there."""
        self.process.wait_until("answer", lambda: ask(self.port, address(0)))
        return self

    def stop(self):
        self.process.stop()


class M2u(Peer):
    name = "m2u"
    binary = None
    flags = ()
    # Further keys at the top of the configuration.
    keys = ()

    def command(self):
        job = self.job
        scheme = "http" if job.variant == "plain" else "https"
        lines = [
            'domain = "talk2m.com"',
            f'listen = ["127.0.0.1:{self.port}"]',
            f'devices = "{job.table.csv}"',
            *self.keys,
            "[limits]",
            f"pool_per_server = {job.idle_upstream}",
            "[timeouts]",
            'drain = "1s"',
            "[upstream]",
            'allow_networks = ["127.0.0.0/8"]',
        ]
        if job.log:
            lines += ["[access_log]", 'path = "access.log"']
        lines += [
            "[[account]]",
            f'ref = "{ACCOUNT}"',
            "[[account.server]]",
            f'url = "{scheme}://{NAME}/"',
            f'address = ["127.0.0.1:{job.port}"]',
        ]
        if job.variant != "plain":
            lines.append(f'ca = "{job.certificates.ca}"')
        if job.variant == "mtls":
            lines.append(f'client_certificate = "{job.certificates.client[0]}"')
            lines.append(f'client_key = "{job.certificates.client[1]}"')
        config = job.folder / "m2u.toml"
        config.write_text("\n".join(lines) + "\n")
        return [self.binary, "run", "--config", config, "--cores", self.cores, *self.flags]


class M2uMillion(M2u):
    """m2u with a table of a million devices."""

    name = "m2u-million"
    devices = 1_000_000


class M2uLog(M2u):
    """m2u with its access log."""

    name = "m2u-log"

    def __init__(self, job):
        job.log = True
        super().__init__(job)


NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log crit;

events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/nginx-bodies;
    proxy_temp_path {folder}/nginx-answers;
    keepalive_requests 1000000000;
    keepalive_timeout 75s;
    tcp_nodelay on;
    map_hash_max_size {hash_size};
    map_hash_bucket_size 128;
    map $remote_addr $account {{ include {account}; }}
    map $remote_addr $device {{ include {device}; }}
    map $remote_addr $serial {{ include {serial}; }}
    upstream origin {{
        server 127.0.0.1:{upstream};
        keepalive {idle};
        keepalive_requests 1000000000;
        keepalive_timeout 60s;
    }}
    server {{
        listen 127.0.0.1:{port} reuseport backlog=4096;
        server_name m2u.talk2m.com;
        if ($device = "") {{ return 403; }}
        location / {{
            proxy_pass {scheme}://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {name};
            proxy_set_header X_Talk2M_Account $account;
            proxy_set_header X_Talk2M_Device $device;
            proxy_set_header X_Talk2M_SerialNumber $serial;
            proxy_set_header X-Talk2M-Account "";
            proxy_set_header X-Talk2M-Device "";
            proxy_set_header X-Talk2M-SerialNumber "";
            proxy_set_header Forwarded "";
            proxy_set_header X-Forwarded-For "";
            proxy_set_header X-Real-IP "";
{bodies}
{tls}
        }}
    }}
}}
"""


NGINX_BODIES = """
            client_body_buffer_size 128k;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_buffer_size 128k;
            proxy_buffers 4 128k;
"""


NGINX_TLS = """
            proxy_ssl_name {name};
            proxy_ssl_server_name on;
            proxy_ssl_verify on;
            proxy_ssl_verify_depth 2;
            proxy_ssl_trusted_certificate {ca};
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_ssl_session_reuse on;
"""


class Nginx(Peer):
    name = "nginx"

    def command(self):
        job = self.job
        tls = ""
        if job.variant != "plain":
            tls = NGINX_TLS.format(name=NAME, ca=job.certificates.ca)
        if job.variant == "mtls":
            certificate, key = job.certificates.client
            tls += f"            proxy_ssl_certificate {certificate};\n"
            tls += f"            proxy_ssl_certificate_key {key};\n"
        config = job.folder / "nginx.conf"
        config.write_text(
            NGINX.format(
                folder=job.folder,
                connections=FEW if job.few else 16384,
                hash_size=max(2048, job.table.size * 2),
                port=self.port,
                upstream=job.port,
                idle=job.idle_upstream,
                scheme="http" if job.variant == "plain" else "https",
                name=NAME,
                bodies=NGINX_BODIES if job.bodies else "",
                tls=tls,
                **job.table.nginx,
            )
        )
        return ["nginx", "-c", config, "-p", job.folder]


# One lookup and three cuts cost less than three lookups, and a third of the memory.
HAPROXY = """
global
    nbthread 1
    maxconn {connections}
    tune.maxpollevents 512
{tuning}
defaults
    mode http
    no log
    option http-keep-alive
    http-reuse always
    timeout client 75s
    timeout http-keep-alive 75s
    timeout http-request 10s
    timeout server 60s
    timeout connect 5s
{options}
frontend devices
    bind 127.0.0.1:{port} backlog 4096
    http-request set-var(txn.identity) src,map_ip({table})
    http-request deny deny_status 403 unless {{ var(txn.identity) -m found }}
    http-request del-header ^x[^a-z0-9]talk2m[^a-z0-9] -m reg
    http-request del-header Forwarded
    http-request del-header X-Forwarded-For
    http-request del-header X-Real-IP
    http-request set-header Host {name}
    http-request set-header X_Talk2M_Account %[var(txn.identity),field(1,|)]
    http-request set-header X_Talk2M_Device %[var(txn.identity),field(2,|)]
    http-request set-header X_Talk2M_SerialNumber %[var(txn.identity),field(3,|)]
    default_backend origin
backend origin
    server origin 127.0.0.1:{upstream} pool-max-conn {idle} pool-purge-delay 60s{tls}
"""


def haproxy_tls(job):
    """What a server's line says of TLS."""
    if job.variant == "plain":
        return ""
    tls = (
        f" ssl verify required ca-file {job.certificates.ca} sni str({NAME})"
        f" verifyhost {NAME} alpn http/1.1"
    )
    if job.variant == "mtls":
        tls += f" crt {job.certificates.client_both}"
    return tls


class Haproxy(Peer):
    name = "haproxy"
    bodies = ""

    def command(self):
        job = self.job
        config = job.folder / "haproxy.cfg"
        config.write_text(
            HAPROXY.format(
                connections=FEW if job.few else 7000,
                port=self.port,
                upstream=job.port,
                idle=job.idle_upstream,
                table=job.table.haproxy,
                name=NAME,
                tls=haproxy_tls(job),
                tuning="    tune.bufsize 65536" if job.bodies else "",
                options=self.bodies if job.bodies else "",
            )
        )
        return ["haproxy", "-db", "-f", config]


class HaproxySplice(Haproxy):
    """HAProxy that moves bodies with splice(2); it does so from plain to plain only."""

    name = "haproxy-splice"
    bodies = "    option splice-auto"


class Floor(Peer):
    """A relay that knows no HTTP, on a bare ring (perf/floor)."""

    name = "floor-ring"
    scenarios = ("post512", "post512-rate")
    binary = None
    flags = ()

    def command(self):
        job = self.job
        return [self.binary, *self.flags, f"127.0.0.1:{self.port}", f"127.0.0.1:{job.port}"]


class FloorOnce(Floor):
    """The same for one request a connection, over upstream connections that are kept."""

    name = "floor-once"
    scenarios = ("close",)
    flags = ("--once",)


TCP = """
global
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind 127.0.0.1:{port}
    server origin 127.0.0.1:{origin}{tls}
"""


class HaproxyTcp(Peer):
    """HAProxy as a relay that knows no HTTP."""

    name = "floor-haproxy"
    scenarios = (*Floor.scenarios, "post512-tls", "post512-mtls")

    def command(self):
        config = self.job.folder / "haproxy-tcp.cfg"
        config.write_text(TCP.format(port=self.port, origin=self.job.port, tls=haproxy_tls(self.job)))
        return ["haproxy", "-db", "-f", config]


PEERS = {
    peer.name: peer
    for peer in (
        *(M2u, Nginx, Haproxy, HaproxySplice, M2uLog, M2uMillion),
        *(Floor, FloorOnce, HaproxyTcp),
    )
}

# They stamp nothing: no gateways, but what a gateway's price can be held against.
FLOORS = (Floor.name, FloorOnce.name, HaproxyTcp.name)


def variant(text, base=M2u):
    """Adds m2u, or a peer derived from it, with other flags or another binary:
    `NAME=[PATH] [FLAG]...`."""
    name, separator, words = text.partition("=")
    words = shlex.split(words)
    if not separator or not name.isidentifier() or not words:
        raise ValueError(f"{text!r} is not NAME=[PATH] [FLAG]...")
    members = {"name": f"m2u-{name}"}
    if "/" in words[0]:
        members["binary"] = Path(words.pop(0)).resolve()
    if "--cores" in words:
        at = words.index("--cores")
        members["cores"] = words[at + 1]
        del words[at : at + 2]
    members["flags"] = tuple(words)
    PEERS[members["name"]] = type(f"M2u{name}", (base,), members)
    return members["name"]
