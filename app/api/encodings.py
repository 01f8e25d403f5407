"""Compressed bodies, by `Content-Encoding` and `Accept-Encoding`: gzip and deflate (RFC 9110, 8.4.1)."""

import gzip
import zlib

from app.errors import TooLarge, Unparseable, UnsupportedMedia

FAST = 1  # the level: bodies are written once and read once


def decompress(body: bytes | bytearray, encoding: str, max_bytes: int) -> bytes | bytearray:
    """The body that was compressed.

    Raises:
        UnsupportedMedia: an encoding that is not known here.
        Unparseable: the body is not in it.
        TooLarge: it grows to more than `max_bytes`, of which no more than these are held.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMedia(f"the Content-Encoding {encoding!r} is not known here; gzip and deflate are")
    parts, left = [], max_bytes
    try:
        while body:
            member = zlib.decompressobj(wbits=_wbits(body, encoding))
            parts.append(member.decompress(body, left + 1))
            left -= len(parts[-1])
            if left < 0:
                raise TooLarge(f"the body grows to more than {max_bytes} bytes, the most that a request may have")
            if not member.eof:
                raise Unparseable(f"the {encoding} body ends before it is complete")
            body = member.unused_data
    except zlib.error as error:
        raise Unparseable(f"the body is no {encoding}: {error}") from error
    return b"".join(parts)


def _wbits(body: bytes | bytearray, encoding: str) -> int:
    if encoding != "deflate":
        return 31
    is_zlib = body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return 15 if is_zlib else -15  # some clients take "deflate" to mean the bare stream


def compress(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body, FAST, mtime=0) if encoding == "gzip" else zlib.compress(body, FAST)


def accepted_encoding(header: str) -> str | None:
    """The encoding to answer with: the one of gzip and deflate that the client likes best, if it likes one."""
    wishes = {}
    for wish in header.lower().split(","):
        name, _, parameter = (part.strip() for part in wish.partition(";"))
        wishes[name] = _quality(parameter)
    best = max(("gzip", "deflate"), key=lambda name: wishes.get(name, 0.0))
    return best if wishes.get(best, 0.0) > 0 else None


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q=")) if parameter else 1.0
    except ValueError:
        return 0.0
