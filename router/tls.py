"""TLS towards clients: one certificate for both fronts, which may change while they serve."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from protos import flags
from protos.flag import FlagError
from protos.trust import check_authority, check_pair


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of files in PEM, which have been read once."""

    certfile: str
    keyfile: str
    ca_certs: str | None = None
    """Clients must show a certificate of one of these."""

    @classmethod
    def read(
        cls, certfile: str | None, keyfile: str | None, ca_certs: str | None
    ) -> "TlsFiles | None":
        """None: no TLS. Raises FlagError for files that hold nothing of use."""
        if certfile is None:
            for flag, given in ((flags.SSL_KEYFILE, keyfile), (flags.SSL_CA_CERTS, ca_certs)):
                if given is not None:
                    raise FlagError(
                        f"{flag.option} is {given!r}; it needs {flags.SSL_CERTFILE.option}"
                    )
            return None
        keyfile = keyfile or certfile
        check_pair(flags.SSL_CERTFILE.option, certfile, flags.SSL_KEYFILE.option, keyfile)
        if ca_certs is not None:
            check_authority(flags.SSL_CA_CERTS.option, ca_certs)
        return cls(certfile, keyfile, ca_certs)

    def context(self) -> ssl.SSLContext:
        """For HTTP/1.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certfile, self.keyfile)
        context.set_alpn_protocols(["http/1.1"])
        if self.ca_certs is not None:
            context.load_verify_locations(self.ca_certs)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """For gRPC."""
        authority = Path(self.ca_certs).read_bytes() if self.ca_certs else None
        pair = (Path(self.keyfile).read_bytes(), Path(self.certfile).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authority)


class ServerTls:
    """What new connections are shown, and asked for: the files as they were last read."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._context = files.context()
        self._configuration = files.configuration()
        self._read_at = 0.0

    def context(self) -> ssl.SSLContext:
        """For HTTP/1.1; its connections turn to the newest files as they begin."""
        first = self._files.context()
        asks_clients = self._files.ca_certs is not None

        def turn(
            connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext
        ) -> int | None:
            if asks_clients and connection.session_reused:
                session = connection.session
                assert session is not None
                if session.time <= self._read_at:
                    return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE  # and the client forgets it
            connection.context = self._context
            return None

        first.sni_callback = turn  # called for every connection, whether it names a host or not
        if asks_clients:
            # Who resumes a session is not asked for a certificate, and sessions are the first
            # context's for good. So there are none, but for those that TLS 1.2 has without tickets:
            # they go on until the files change.
            first.num_tickets = 0
            first.options |= ssl.OP_NO_TICKET
        return first

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which asks for the files as they are now at each connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            lambda: self._configuration,
            require_client_authentication=self._files.ca_certs is not None,
        )

    def read_again(self) -> None:
        """For new connections. Raises FlagError, and all stays as it was."""
        files = self._files
        TlsFiles.read(files.certfile, files.keyfile, files.ca_certs)
        try:
            context, configuration = files.context(), files.configuration()
        except (OSError, ssl.SSLError) as error:  # they have changed since they were looked at
            raise FlagError(
                f"{flags.SSL_CERTFILE.option} is {files.certfile!r}: {error}"
            ) from error
        self._context, self._configuration = context, configuration
        self._read_at = time.time()
