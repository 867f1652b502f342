"""Builds the gateway and the load generator in release."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def target():
    """Cargo's folder for what it builds."""
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target")


def build(m2u=None):
    """Paths of the gateway (the given one, if any) and of the load generator."""
    if m2u is None:
        cargo(ROOT, target())
        m2u = target() / "release" / "m2u"
    # A folder of its own: the two lock files would otherwise rebuild each other's crates.
    own = target() / "perf-load"
    cargo(ROOT / "perf" / "load", own)
    return Path(m2u).resolve(), own / "release" / "m2u-load"


def core_latency():
    """Path of what measures the way between two cores; built with the load generator."""
    return target() / "perf-load" / "release" / "m2u-core-latency"


def build_floor():
    """Path of the relay that knows no HTTP."""
    own = target() / "perf-floor"
    cargo(ROOT / "perf" / "floor", own)
    return own / "release" / "m2u-floor"


def cargo(package, into):
    command = ["cargo", "build", "--release", "--locked", "--quiet"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(into)}
    subprocess.run(command, check=True, cwd=package, env=environment)
