"""Keys and certificates, read again while the router serves: at SIGHUP.

All or nothing: where one of the files is wrong everything stays as it was, and the log says why.
What is in flight goes on; a connection keeps the certificate that it began with.
"""

import logging

from gateway.keys import ApiKeys
from protos.flag import FlagError
from router.link import Link
from router.metrics import Metrics
from router.settings import Settings
from router.tls import ServerTls

_log = logging.getLogger(__name__)


class Renewal:
    """Of what one router opens to, and with."""

    def __init__(
        self,
        settings: Settings,
        keys: ApiKeys,
        metrics: Metrics,
        link: Link,
        tls: ServerTls | None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._metrics = metrics
        self._link = link
        self._tls = tls

    def renew(self) -> None:
        """Reads the files; says so, or why nothing has changed."""
        try:
            keys = self._settings.read_keys()
            if self._tls is not None:
                self._tls.read_again()
        except FlagError as error:
            _log.error("keys and certificates stay as they were: %s", error)
            return
        self._keys.replace(keys)
        self._metrics.name_keys(keys)
        self._link.keeps_tenants_apart = self._settings.keeps_apart(keys)
        names = ", ".join(keys) or "none"
        certificates = "no certificates" if self._tls is None else "certificates, too"
        _log.info("read again: the keys are %s; %s", names, certificates)
