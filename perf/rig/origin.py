"""The customer's server: nginx, which names the device it saw in each answer.

Plain, over TLS, and over TLS with a client certificate demanded; one worker.
"""

from .processes import Process, free_ports
from .wire import ask

SIZES = {"1m": 1 << 20, "64m": 64 << 20}

CONFIG = """
daemon off;
user root;
worker_processes 1;
pid {folder}/origin.pid;
error_log {folder}/origin-error.log error;

events {{ worker_connections 16384; }}
http {{
    access_log off;
    underscores_in_headers on;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    tcp_nopush on;
    sendfile on;
    open_file_cache max=16 inactive=600s;
    open_file_cache_valid 600s;
    client_max_body_size 0;
    client_body_temp_path {folder}/bodies;
    default_type application/octet-stream;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:sessions:4m;
    server {{
        listen 127.0.0.1:{status};
        location = /status {{ stub_status; }}
    }}
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        include {folder}/origin-locations.conf;
    }}
    server {{
        listen 127.0.0.1:{tls} ssl backlog=4096;
        include {folder}/origin-locations.conf;
    }}
    server {{
        listen 127.0.0.1:{mtls} ssl backlog=4096;
        ssl_client_certificate {ca};
        ssl_verify_client on;
        include {folder}/origin-locations.conf;
    }}
}}
"""

# A mirror reads the whole body before the answer; "return" alone would answer before it has come.
LOCATIONS = """
location = /in {{ return 200 $http_x_talk2m_device; }}
location = /mirrored {{ internal; return 204; }}
location @read {{ return 200 $http_x_talk2m_device; }}
location = /upload {{
    client_body_buffer_size 65m;
    mirror /mirrored;
    root {folder}/files;
    error_page 405 =200 @read;
}}
location = /chunked {{
    client_body_buffer_size 64k;
    mirror /mirrored;
    root {folder}/files;
    error_page 405 =200 @read;
}}
location /files/ {{
    root {folder};
    add_header X-Device $http_x_talk2m_device;
}}
"""


class Origin:
    """Runs until stopped; `ports` has one for each variant."""

    def __init__(self, folder, certificates, core):
        files = folder / "files"
        files.mkdir()
        for name, size in SIZES.items():
            with open(files / name, "wb") as file:
                block = bytes(range(256)) * 4096
                for _ in range(size // len(block)):
                    file.write(block)
        # Static files answer a POST with 405, which the configuration turns into the echo.
        for name in ("upload", "chunked"):
            (files / name).write_text("")
        plain, tls, mtls, self.status = free_ports(4)
        self.ports = {"plain": plain, "tls": tls, "mtls": mtls}
        (folder / "origin-locations.conf").write_text(LOCATIONS.format(folder=folder))
        config = folder / "origin.conf"
        config.write_text(
            CONFIG.format(
                folder=folder,
                certificate=certificates.origin[0],
                key=certificates.origin[1],
                ca=certificates.ca,
                status=self.status,
                plain=plain,
                tls=tls,
                mtls=mtls,
            )
        )
        self.process = Process(
            "origin", core, ["nginx", "-c", config, "-p", folder], folder / "origin.log"
        )
        self.process.wait_until("answer", lambda: ask(plain, "127.0.0.1"))
        self.pids = self.process.pids()
