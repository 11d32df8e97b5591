"""Encrypted connections: certificates that were given, or temporary ones for workers of our own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spatialscope_dist.errors import BadInput, Problem

if TYPE_CHECKING:
    from distributed import Security


@dataclass(frozen=True)
class Certificates:
    """PEM files of the authority, of this client's certificate and of its private key."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def given(cls, ca: Path | None, cert: Path | None, key: Path | None) -> Certificates | None:
        """Return the certificates, None when none are given.

        Raises
        ------
        BadInput
            When only some of the files are given, or one cannot be read.
        """
        files = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key}
        if ca is None and cert is None and key is None:
            return None
        problems = [
            Problem(option, "nothing" if file is None else f"no file {file}", "a PEM file", "Give all three of them.")
            for option, file in files.items()
            if file is None or not file.is_file()
        ]
        if ca is None or cert is None or key is None or problems:
            raise BadInput(problems)
        return cls(ca, cert, key)


def security_of(certificates: Certificates | None) -> Security:
    """Return the security of a client: with the files given, otherwise what Dask's own configuration names."""
    from distributed import Security

    if certificates is None:
        return Security()
    return Security(
        require_encryption=True,
        tls_ca_file=str(certificates.ca),
        tls_client_cert=str(certificates.cert),
        tls_client_key=str(certificates.key),
    )


def temporary_security() -> Security:
    """Return certificates made for one run, which are kept in memory only.

    Raises
    ------
    BadInput
        When the package that makes them is not installed.
    """
    from distributed import Security

    try:
        return Security.temporary()
    except ImportError as error:
        remedy = "pip install 'spatialscope_dist[cluster]', or leave --tls out."
        raise BadInput(Problem("--tls", "no package cryptography", "it to be installed", remedy)) from error


def require_certificates(address: str, security: Security) -> None:
    """Raise when an address that starts with tls:// is to be reached without certificates.

    Raises
    ------
    BadInput
        Saying how certificates are given.
    """
    arguments = security.get_connection_args("client")
    if address.startswith("tls://") and arguments.get("ssl_context") is None:
        remedy = "Give --tls-ca, --tls-cert and --tls-key, or set distributed.comm.tls in Dask's configuration."
        raise BadInput(Problem("--scheduler", f"{address}, but no certificates", "certificates for tls://", remedy))
