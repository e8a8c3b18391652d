"""Who signed a Debian InRelease file.

An InRelease file is a Release file in an OpenPGP cleartext signature (RFC 9580, section 7); the keys that may sign it
are in the keyring of the package debian-archive-keyring. Verification is Sequoia's, through pysequoia.
"""

from __future__ import annotations

from dataclasses import dataclass

import pysequoia
from pysequoia.packet import PacketPile, Tag

from .errors import ImageError


@dataclass(frozen=True)
class Signed:
    """A verified text: exactly the bytes that were signed, and the fingerprints of the certificates that did."""

    text: bytes
    signers: tuple[str, ...]


class Keyring:
    """Certificates that are trusted to sign an archive.

    ``source`` says where they came from (for messages); ``data`` is an OpenPGP keyring, binary or armored. Raises
    :class:`ImageError` ("signature") when it holds no certificate.
    """

    def __init__(self, source: str, data: bytes) -> None:
        self.source = source
        try:
            self._certificates = pysequoia.Cert.split_bytes(data)
            packets = PacketPile.from_bytes(data)
        except Exception as error:  # pysequoia raises plain RuntimeError and friends for all parse errors
            raise ImageError(f"{source} is not an OpenPGP keyring: {_first_line(error)}", "signature") from error
        if not self._certificates:
            raise ImageError(f"{source} holds no keys; pass --keyring FILE", "signature")
        # Subkeys sign too, and a signature names the subkey.
        self._keys = {
            packet.fingerprint.lower()
            for packet in packets
            if packet.tag in (Tag.PublicKey, Tag.PublicSubkey) and packet.fingerprint
        }

    def verify(self, what: str, message: bytes) -> Signed:
        """Check the inline or cleartext signature of ``message``, called ``what`` in errors.

        One good signature by a known certificate is enough, as it is for apt: the archive signs with its old and its
        new key while keys are rotated. Raises :class:`ImageError` with kind "signature"; when the keyring lacks the
        key altogether the error is a :class:`MissingKeyError`.
        """
        wanted: list[str] = []

        def store(key_ids: list[str]) -> list[pysequoia.Cert]:
            wanted.extend(key_ids)
            return self._certificates

        try:
            result = pysequoia.verify(bytes=message, store=store)
        except Exception as error:  # as above
            if wanted and not any(known.endswith(key.lower()) for key in wanted for known in self._keys):
                raise MissingKeyError(
                    f"{what} is signed by {', '.join(key[-16:].upper() for key in wanted)}, which {self.source} does "
                    "not hold: update the package debian-archive-keyring or pass --keyring FILE",
                    "signature",
                ) from error
            raise ImageError(
                f"{what} has a bad signature ({_first_line(error)}): the mirror or the network changed it; "
                "try another --mirror",
                "signature",
            ) from error
        if result.bytes is None or not result.valid_sigs:
            raise ImageError(f"{what} is not signed; try another --mirror", "signature")
        return Signed(result.bytes, tuple(str(signature.certificate) for signature in result.valid_sigs))


class MissingKeyError(ImageError):
    """The signature may be good, but the keyring does not have the key to tell."""


def _first_line(error: Exception) -> str:
    # Sequoia's messages end with a stack backtrace.
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
