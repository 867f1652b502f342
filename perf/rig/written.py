"""Says in which source files a profile's samples fell: inlined functions where they were written.

A table of functions hides those that are inlined, which are most, behind their callers. This reads
what `perf record` left and the program's line table (addr2line, readelf); the kernel's it skips.
"""

import bisect
import re
import subprocess
from collections import Counter

# A crate's folder in cargo's registry: its name, without the version.
CRATE = re.compile(r"/registry/src/[^/]+/(.+?)-\d[^/]*/")
# Its C sources are named without the registry's folder.
AWS_LC = "/aws-lc/"
# The standard library counts to whoever called it, unless nobody did.
STANDARD = re.compile(r"/rustc/|/rustlib/|/rust/deps/")
MAPPED = re.compile(r"\[(0x[0-9a-f]+)\((0x[0-9a-f]+)\) @ (?:0x)?([0-9a-f]+) .*\]: r-xp (.+)$")
ADDRESS = re.compile(r"0x[0-9a-f]{16}")


def by_file(samples, program):
    """How many of the user's samples fell in each crate, library, and source file of `program`."""
    seen, mapped = _addresses(samples)
    own, files = Counter(), Counter()
    segments = _segments(program)
    begins = [begin for begin, *_ in mapped]
    for address, times in seen.items():
        index = bisect.bisect(begins, address) - 1
        begin, end, offset, path = mapped[index] if index >= 0 else (0, 0, 0, "")
        if address >= end:
            continue  # of the kernel
        if path == str(program):
            own[_linked(address - begin + offset, segments)] += times
        else:
            files[path.rsplit("/", 1)[-1]] += times
    for address, chain in _lines(program, sorted(own)):
        files[_home(chain)] += own[address]
    return files


def _addresses(samples):
    """Each sampled address with how often, and what was mapped where, by address."""
    command = ["perf", "script", "-G", "-F", "ip", "--show-mmap-events", "-i", samples]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen, mapped = Counter(), []
    for line in done.stdout.splitlines():
        if "PERF_RECORD_MMAP" not in line:
            if line.strip():
                seen[int(line, 16)] += 1
        elif found := MAPPED.search(line):
            begin, size, offset = (int(text, 16) for text in found.groups()[:3])
            mapped.append((begin, begin + size, offset, found[4]))
    return seen, sorted(mapped)


def _segments(program):
    """(offset in the file, address it is linked for, size) of what is loaded."""
    command = ["readelf", "--program-headers", "--wide", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = (line.split() for line in done.stdout.splitlines())
    loads = (row for row in rows if row[:1] == ["LOAD"])
    return [(int(row[1], 16), int(row[2], 16), int(row[4], 16)) for row in loads]


def _linked(offset, segments):
    for begin, address, size in segments:
        if begin <= offset < begin + size:
            return offset - begin + address
    return offset


def _lines(program, addresses):
    """Each address with the source files it stems from, the innermost inlined function's first."""
    command = ["addr2line", "--inlines", "--functions", "--addresses", "-e", program]
    asked = "\n".join(f"{address:#x}" for address in addresses)
    done = subprocess.run(command, check=True, capture_output=True, text=True, input=asked)
    address, chain, is_file = None, [], False
    for line in done.stdout.splitlines():
        if ADDRESS.fullmatch(line):
            if address is not None:
                yield address, chain
            address, chain, is_file = int(line, 16), [], False
        else:
            if is_file:
                chain.append(line.rsplit(":", 1)[0])
            is_file = not is_file
    if address is not None:
        yield address, chain


def _home(chain):
    """The crate, or the file of ours, that an address counts to."""
    written = [path for path in chain if not STANDARD.search(path) and path != "??"]
    if not written:
        return "the standard library" if chain[:1] != ["??"] else "unknown"
    if crate := CRATE.search(written[0]):
        return crate[1]
    if AWS_LC in written[0]:
        return "aws-lc"
    _, of_source, path = written[0].rpartition("/src/")
    return f"src/{path}" if of_source else path.rsplit("/", 1)[-1]
