"""Certificates made for one run: an authority, the origin's, the gateway's, and a stranger's."""

import subprocess

NAME = "origin.example"


def openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr}")


class Certificates:
    """PEM files in `folder`; the keys are P-256."""

    def __init__(self, folder):
        self.ca = self.authority(folder, "ca")
        self.origin = self.certificate(folder, "origin", f"subjectAltName=DNS:{NAME}")
        self.client = self.certificate(folder, "client", "extendedKeyUsage=clientAuth")
        self.stranger_ca = self.authority(folder, "stranger-ca")
        self.stranger = self.certificate(
            folder, "stranger", f"subjectAltName=DNS:{NAME}", "stranger-ca"
        )
        # HAProxy wants certificate and key in one file.
        self.client_both = folder / "client-both.pem"
        self.client_both.write_text(self.client[0].read_text() + self.client[1].read_text())

    @staticmethod
    def authority(folder, name):
        certificate = folder / f"{name}.pem"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-keyout", folder / f"{name}.key", "-out", certificate,
            "-subj", f"/CN={name}", "-days", "3",
            "-addext", "basicConstraints=critical,CA:TRUE",
        )  # fmt: skip
        return certificate

    @staticmethod
    def certificate(folder, name, extension, authority="ca"):
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
        extensions.write_text(extension + "\n")
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", key, "-out", request, "-subj", f"/CN={name}",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", request, "-CA", folder / f"{authority}.pem",
            "-CAkey", folder / f"{authority}.key", "-CAcreateserial", "-days", "3",
            "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return certificate, key
