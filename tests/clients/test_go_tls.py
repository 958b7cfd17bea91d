"""The Go client and a router with a certificate: known by its authority, refused without."""

import subprocess
from pathlib import Path

from tests.certificates import signed
from tests.clients.test_go import IMPORT_PATH, _go, go, pytestmark
from tests.e2e.server import serve

__all__ = ["go", "pytestmark"]

PROGRAM = """
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/ioutil"
	"os"
	"time"

	quire "quire/clients/go"
)

func main() {
	pem, err := ioutil.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	ways := [][]quire.Option{
		{quire.WithTLS(&tls.Config{RootCAs: roots})},
		{quire.WithTLS(&tls.Config{})},
		{},
	}
	for _, options := range ways {
		client, err := quire.Dial(os.Args[1], options...)
		if err != nil {
			panic(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		models, err := client.Models(ctx)
		cancel()
		fmt.Println(len(models), err == nil)
		client.Close()
	}
}
"""


def test_it_speaks_tls(
    go: tuple[Path, dict[str, str]],
    tmp_path: Path,
) -> None:
    here, environment = go
    files = signed(tmp_path / "tls")
    source = here.parents[2] / "tlscheck"
    source.mkdir()
    (source / "main.go").write_text(PROGRAM)
    program = str(tmp_path / "program")
    _go((here, environment), "build", "-tags", "grpc_1_33", "-o", program, "tlscheck")
    assert IMPORT_PATH in PROGRAM
    flags = ("--ssl-certfile", files.cert, "--ssl-keyfile", files.key, "--max-model-len", "256")
    with serve("smollm2", tmp_path, *flags) as server:
        target = f"localhost:{server.grpc_port}"
        printed = _run_program([program, target, files.ca])
    assert printed.splitlines() == ["1 true", "0 false", "0 false"]


def _run_program(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=120
    ).stdout
