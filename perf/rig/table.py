"""The fleet: device i speaks from 127.16.0.1 + i, and each peer's form of that table."""

import ipaddress

FIRST = int(ipaddress.ip_address("127.16.0.1"))
ACCOUNT = "acme"
STRANGER = "127.200.0.1"


def address(index):
    return str(ipaddress.ip_address(FIRST + index))


def name(index):
    return f"device-{index:07}"


def serial(index):
    return f"{index // 10000 + 1000:04}-{index % 10000:04}-24"


class Table:
    """Files with `size` devices, in every peer's form."""

    def __init__(self, folder, size):
        self.size = size
        self.csv = folder / f"devices-{size}.csv"
        self.nginx = {
            value: folder / f"{value}-{size}.map" for value in ("account", "device", "serial")
        }
        self.haproxy = folder / f"identity-{size}.map"
        rows = [(address(i), name(i), serial(i)) for i in range(size)]
        with open(self.csv, "w") as file:
            file.write("address,account,device,serial\n")
            file.writelines(f"{a},{ACCOUNT},{n},{s}\n" for a, n, s in rows)
        columns = {
            "account": lambda row: ACCOUNT,
            "device": lambda row: row[1],
            "serial": lambda row: row[2],
        }
        for value, path in self.nginx.items():
            with open(path, "w") as file:
                file.writelines(f"{row[0]} {columns[value](row)};\n" for row in rows)
        with open(self.haproxy, "w") as file:
            file.writelines(f"{a} {ACCOUNT}|{n}|{s}\n" for a, n, s in rows)
