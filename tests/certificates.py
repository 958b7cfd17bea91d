"""An authority that lives as long as a test, and what it has signed."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"


@dataclass(frozen=True)
class Signed:
    """Files in PEM."""

    cert: str
    key: str
    ca: str

    @property
    def arguments(self) -> list[str]:
        """Of a process of a cell."""
        return ["--tls-cert", self.cert, "--tls-key", self.key, "--tls-ca", self.ca]


def signed(directory: Path, name: str = "quire") -> Signed:
    """An authority of this name, with one certificate for localhost."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    cert, key, request = (directory / f"own.{end}" for end in ("pem", "key", "csr"))
    names = directory / "names"
    names.write_text(_NAMES)
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl("req", "-x509", *new, "-keyout", ca_key, "-out", ca, "-subj", f"/CN={name} authority")
    _openssl("req", *new, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    by = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2"]
    _openssl("x509", "-req", "-in", request, *by, "-out", cert, "-extfile", names)
    return Signed(str(cert), str(key), str(ca))


def _openssl(*arguments: object) -> None:
    command = ["openssl", *(str(argument) for argument in arguments)]
    subprocess.run(command, check=True, capture_output=True)
