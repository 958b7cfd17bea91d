"""What lets a process into a cell: read from files, refused by name, and never shown."""

from pathlib import Path

import pytest

from protos.flag import FlagError
from protos.trust import NO_TRUST, Trust
from tests.certificates import signed

TOKEN = "a-token-of-24-characters"
OTHER = "another-token-of-the-cell"


def test_the_first_token_of_a_file_is_said_and_all_let_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# the new one\n{TOKEN}\n\n  {OTHER}\n")
    trust = Trust.read(token_file=str(path), environment={"QUIRE_CLUSTER_TOKEN": "x"})
    assert trust.tokens == (TOKEN, OTHER)
    assert trust.metadata == (("quire-cluster-token", TOKEN),)


def test_a_token_comes_from_the_environment_too() -> None:
    assert Trust.read(environment={"QUIRE_CLUSTER_TOKEN": f"{TOKEN}\n"}).tokens == (TOKEN,)
    assert Trust.read(environment={}) == NO_TRUST
    assert NO_TRUST.metadata == ()


def test_a_trust_never_shows_its_secrets(tmp_path: Path) -> None:
    files = signed(tmp_path)
    trust = Trust.read(
        cert=files.cert,
        key=files.key,
        ca=files.ca,
        environment={"QUIRE_CLUSTER_TOKEN": TOKEN},
    )
    assert trust.certificates is not None
    assert trust.certificates.key.startswith(b"-----BEGIN PRIVATE KEY")
    assert TOKEN not in repr(trust)
    assert "PRIVATE KEY" not in repr(trust)


@pytest.mark.parametrize(
    "token", ["", "short", "with a space in the middle", "ümlauts-are-not-ascii"]
)
def test_a_token_that_is_none_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(FlagError) as error:
        Trust.read(environment={"QUIRE_CLUSTER_TOKEN": token})
    said = f"QUIRE_CLUSTER_TOKEN has {len(token)} characters; it must have 16 to 1024, printable"
    assert str(error.value).startswith(said)
    assert not token or token not in str(error.value)


def test_files_that_hold_nothing_of_use_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    with pytest.raises(FlagError, match=r"--cluster-token-file is '.*'; it must hold a token"):
        Trust.read(token_file=str(empty))
    files, others = signed(tmp_path / "one"), signed(tmp_path / "two")
    with pytest.raises(
        FlagError, match=r"^--tls-key and --tls-ca is missing; --tls-cert, --tls-ke"
    ):
        Trust.read(cert=files.cert)
    with pytest.raises(FlagError, match=r"they must hold a certificate and its key .* mismatch"):
        Trust.read(cert=files.cert, key=others.key, ca=files.ca)
    with pytest.raises(FlagError, match=r"--tls-ca is '.*/empty'; it must hold certificates in"):
        Trust.read(cert=files.cert, key=files.key, ca=str(empty))
    with pytest.raises(FlagError, match=r"--tls-cert is '/nope'; .* read: No such file"):
        Trust.read(cert="/nope", key=files.key, ca=files.ca)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1"),
        *("unix:/x", "unix:relative"),
    ],
)
def test_what_stays_on_this_machine_needs_nothing(address: str) -> None:
    NO_TRUST.check_reach("--listen", address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1", ":1", "*:1"),
        *("no-such-host.invalid:1", "ipv4:0.0.0.0:1"),
    ],
)
def test_what_others_can_reach_needs_a_token_or_certificates(address: str) -> None:
    with pytest.raises(FlagError) as error:
        NO_TRUST.check_reach("--listen", address)
    assert str(error.value).startswith(f"--listen is {address}, which other machines can reach; ")
    assert "--cluster-token-file (or QUIRE_CLUSTER_TOKEN)" in str(error.value)
    Trust((TOKEN,)).check_reach("--listen", address)


@pytest.mark.parametrize(
    ("mode", "who"), [(0o644, "every user of this machine"), (0o640, "its group"), (0o600, None)]
)
def test_a_file_of_secrets_that_others_can_read_is_told(
    tmp_path: Path, mode: int, who: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef")
    path.chmod(mode)
    assert Trust.read(token_file=str(path), environment={}).tokens == ("0123456789abcdef",)
    said = f"--cluster-token-file {path} can be read by {who} (mode {mode:o})"
    assert caplog.messages == ([said] if who else [])
