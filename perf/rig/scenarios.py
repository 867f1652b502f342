"""What is measured, and what each figure is held against.

Bounds are ratios of m2u to a peer, medians over rounds; none where no bound was set.
"""

from dataclasses import dataclass, field


@dataclass
class Metric:
    """One figure of a scenario; smaller is better."""

    key: str
    title: str
    scale: float = 1.0
    unit: str = ""
    bounds: dict = field(default_factory=dict)


@dataclass
class Scenario:
    """One load, and its figures."""

    name: str
    title: str
    metrics: list
    arguments: list
    requests: int
    quick: int
    warmup: int = 2000
    variant: str = "plain"
    bodies: bool = False
    peers: tuple = ("m2u", "nginx", "haproxy")
    base: tuple = ("nginx", "haproxy")
    kind: str = "load"


def cpu(nginx=None, haproxy=None):
    bounds = {"nginx": nginx, "haproxy": haproxy}
    return Metric("cpu_us", "CPU a request", 1.0, "µs", bounds)


def per_byte(nginx, haproxy):
    return Metric("cpu_ns_per_byte", "CPU a byte", 1.0, "ns", {"nginx": nginx, "haproxy": haproxy})


WARMTH = Metric("accepted_per_1000", "upstream connections per 1,000 requests")

POST = ["--kind", "post", "--size", 512]


def body(name, title, way, size, variant):
    """An upload or a download of `size`: (letter, bytes)."""
    letter, length = size
    large = letter == "64m"
    metric = per_byte(0.70, 0.60) if variant == "plain" else per_byte(0.65, 0.60)
    rivals = ("nginx", "haproxy")
    if variant == "plain":
        rivals += ("haproxy-splice",)
        metric.bounds["haproxy-splice"] = 1.0
    if way == "up":
        arguments = ["--kind", "post", "--size", length, "--path", "/upload"]
    else:
        arguments = ["--kind", "get", "--size", length, "--path", f"/files/{letter}"]
    return Scenario(
        name,
        title,
        [metric],
        [*arguments, "--connections", 2 if large else 4],
        requests=24 if large else 1200,
        quick=4 if large else 40,
        warmup=2 if large else 40,
        variant=variant,
        bodies=True,
        peers=("m2u", *rivals),
        base=rivals,
    )


WAYS = {"up": "upload", "down": "download"}
VARIANTS = {"plain": ("plain", ""), "tls": ("HTTPS", "-tls")}

BODIES = [
    body(f"{way}{letter}{ending}", f"{verb} {title}, {wire}", way, (letter, length), variant)
    for variant, (wire, ending) in VARIANTS.items()
    for letter, length, title in (("1m", 1 << 20, "1 MiB"), ("64m", 64 << 20, "64 MiB"))
    for way, verb in WAYS.items()
]

SCENARIOS = [
    Scenario(
        "post512",
        "POST 512 B, keep-alive, 64 connections, plain",
        [cpu(0.72, 0.62), WARMTH],
        [*POST, "--connections", 64],
        requests=80000,
        quick=2000,
    ),
    Scenario(
        "post512-rate",
        "the same at 5,000 req/s, open loop, 256 connections",
        [
            cpu(0.80, 0.65),
            Metric("p99_us", "p99", 1.0, "µs", {"nginx": 0.9, "haproxy": 0.9}),
            Metric("p99.9_us", "p99.9", 1.0, "µs", {"nginx": 0.9, "haproxy": 0.9}),
            WARMTH,
        ],
        [*POST, "--connections", 256, "--rate", 5000],
        requests=30000,
        quick=1500,
    ),
    Scenario(
        "post512-tls",
        "POST 512 B, keep-alive, HTTPS",
        [cpu(0.65, 0.60), WARMTH],
        [*POST, "--connections", 64],
        requests=60000,
        quick=2000,
        variant="tls",
    ),
    Scenario(
        "post512-mtls",
        "POST 512 B, keep-alive, HTTPS with client certificate",
        [cpu(0.65, 0.60), WARMTH],
        [*POST, "--connections", 64],
        requests=60000,
        quick=2000,
        variant="mtls",
    ),
    Scenario(
        "close",
        "one request per connection, plain",
        [cpu(0.85, 0.85), WARMTH],
        [*POST, "--connections", 64, "--close"],
        requests=25000,
        quick=1500,
    ),
    Scenario(
        "close-tls",
        "one request per connection, HTTPS",
        [cpu(0.75, 0.75), WARMTH],
        [*POST, "--connections", 64, "--close"],
        requests=25000,
        quick=1500,
        variant="tls",
    ),
    Scenario(
        "chunked16k",
        "16 KiB chunked POST, 64 connections, plain",
        [cpu(0.70, 0.70), WARMTH],
        ["--kind", "chunked", "--size", 16384, "--chunk", 2048, "--path", "/chunked"]
        + ["--connections", 64],
        requests=25000,
        quick=1000,
        warmup=1000,
        bodies=True,
    ),
    *BODIES,
    Scenario(
        "idle",
        "memory of an idle keep-alive connection",
        [
            Metric(
                "bytes_with_reserve",
                "bytes, with what was set aside at the start",
                1.0,
                "B",
                {"nginx": 0.35, "haproxy": 1.0},
            ),
            Metric(
                "bytes_per_connection",
                "bytes that it adds",
                1.0,
                "B",
                {"nginx": 0.35, "haproxy": 1.0},
            ),
            Metric("resident_mb", "resident in all, with 5,000 of them", 1.0, "MB"),
        ],
        POST,
        requests=5000,
        quick=500,
        kind="idle",
    ),
    Scenario(
        "million",
        "1,000,000 devices",
        [
            Metric("start_s", "start", 1.0, "s", {"haproxy": 1.0}),
            Metric("bytes_per_device", "memory a device", 1.0, "B"),
        ],
        [*POST, "--connections", 64],
        requests=1,
        quick=1,
        kind="million",
    ),
    Scenario(
        "million-cpu",
        "1,000,000 devices: CPU a request against 10,000",
        [Metric("cpu_us", "CPU a request", 1.0, "µs", {"m2u": 1.03})],
        [*POST, "--connections", 2048, "--active", 64, "--stride", 479],
        requests=80000,
        quick=4000,
        warmup=4096,
        peers=("m2u-million", "m2u"),
        base=("m2u",),
    ),
    Scenario(
        "log",
        "access log on against off",
        [Metric("cpu_us", "CPU a request", 1.0, "µs", {"m2u": 1.05})],
        [*POST, "--connections", 64],
        requests=80000,
        quick=2000,
        peers=("m2u-log", "m2u"),
        base=("m2u",),
    ),
]

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
