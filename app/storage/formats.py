"""What an upload is: a format by its first bytes, held against what its sender called it."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from app.errors import TooLarge, Unparseable, UnsupportedMedia

Format = Literal["csv", "ndjson", "parquet", "arrow_file", "arrow_stream", "gzip"]

MEDIA_TYPES: dict[str, Format | None] = {
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.file": "arrow_file",
    "application/vnd.apache.arrow.stream": "arrow_stream",
    "application/gzip": "gzip",
    "application/x-gzip": "gzip",
    # what clients send that know no better; the bytes tell
    "application/octet-stream": None,
    "application/x-www-form-urlencoded": None,
    "text/plain": None,
    "": None,
}

NAMES: dict[Format, str] = {
    "csv": "CSV",
    "ndjson": "NDJSON",
    "parquet": "Parquet",
    "arrow_file": "an Arrow file",
    "arrow_stream": "an Arrow stream",
    "gzip": "gzip",
}
MAX_LINE_BYTES = 2**24
"""The longest line of a text format; a longer one is no row of a table, and would have to be held in memory."""

_SPOKEN = "CSV, TSV, NDJSON, Parquet and Arrow IPC, each also gzipped"
_MAGIC: dict[bytes, Format] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow_file",
    b"\xff\xff\xff\xff": "arrow_stream",
    b"\x1f\x8b": "gzip",
}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh91AY&SY": "compressed with bzip2",
    b"FEA1": "Feather version 1",
    b"Obj\x01": "Avro",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x04\x95": "a Python pickle",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"%PDF": "PDF",
}
_REMEDIES = {
    "an Excel workbook": "save its sheet as CSV UTF-8",
    "a zip archive or an Excel workbook": "unpack it, or save its sheet as CSV UTF-8",
    "UTF-16 text": "convert it: iconv -f utf-16 -t utf-8 FILE",
}
_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 2**20
_FREE_GROWTH_BYTES = 2**30
_MAX_GROWTH = 200


def declared_format(content_type: str, content_encoding: str = "") -> Format | None:
    """The format that a Content-Type names; None where it leaves that to the bytes. Raises UnsupportedMedia.

    An encoding may be gzip; what is gzipped is seen from the bytes, whether declared or not.
    """
    if content_encoding.strip().lower() not in ("", "identity", "gzip", "x-gzip"):
        raise UnsupportedMedia(f"the Content-Encoding {content_encoding!r} is not known here; gzip is")
    media_type, _, parameters = content_type.partition(";")
    name = media_type.strip().lower()
    if name == "multipart/form-data":
        raise UnsupportedMedia("a form is not taken here; send the file itself, as curl -T FILE does")
    if name not in MEDIA_TYPES:
        raise UnsupportedMedia(f"a dataset cannot be {name!r}; it can be {_SPOKEN}")
    charset = _parameters(parameters).partition("charset=")[2]
    if charset and charset.partition(";")[0] not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise UnsupportedMedia(f"text is read as UTF-8, not as {charset}; convert it, as with iconv -t utf-8")
    return MEDIA_TYPES[name]


def has_header(content_type: str) -> bool:
    """Whether a CSV begins with the names of its columns, by the parameter of RFC 4180."""
    return ";header=absent" not in _parameters(content_type)


def _parameters(text: str) -> str:
    return text.lower().replace(" ", "").replace('"', "")


def detect_format(head: bytes) -> Format:
    """The format of a file that begins with `head`. Raises Unparseable for what is no table."""
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if found:
        return found
    foreign = next((name for magic, name in _FOREIGN.items() if head[:16].lower().startswith(magic.lower())), None)
    if foreign:
        raise Unparseable(f"this is {foreign}; {_REMEDIES.get(foreign, f'a dataset can be {_SPOKEN}')}")
    if b"\0" in head:
        raise Unparseable(f"this is binary, in a format that is not known here; a dataset can be {_SPOKEN}")
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise Unparseable("the body is empty; with curl, send a file by -T FILE or --data-binary @FILE")
    if text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b"["):
        raise Unparseable("this is one JSON array; send its objects one a line (NDJSON), as jq -c '.[]' writes them")
    return "ndjson" if text.startswith(b"{") else "csv"


def check_declared(declared: Format | None, found: Format) -> None:
    """Raises Unparseable where the sender named another format than the bytes have."""
    if declared and declared not in ("gzip", found):
        raise Unparseable(f"the Content-Type says {NAMES[declared]}, but the bytes look like {NAMES[found]}")


def gunzip(source: Path, target: Path, max_bytes: int) -> None:
    """Decompress in bounded memory. Raises TooLarge for what grows beyond `max_bytes` or as only a bomb does."""
    limit = min(max_bytes, max(_FREE_GROWTH_BYTES, _MAX_GROWTH * source.stat().st_size))
    num_bytes = 0
    try:
        with source.open("rb") as packed, target.open("wb") as plain:
            for block in _inflate(iter(lambda: packed.read(_BLOCK_BYTES), b"")):
                num_bytes += len(block)
                if num_bytes > limit:
                    raise TooLarge(f"the gzip grows to more than {limit} bytes, which is too large")
                plain.write(block)
    except zlib.error as error:
        raise Unparseable(f"the gzip is broken after {num_bytes} decompressed bytes") from error


def _inflate(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The content of one or several gzip members, at most a block at a time. Raises zlib.error."""
    member = zlib.decompressobj(wbits=31)
    for block in blocks:
        data = block
        while data:
            if member.eof:
                if not data.strip(b"\0"):  # padding, as tapes and some tools leave it
                    return
                member = zlib.decompressobj(wbits=31)
            yield member.decompress(data, _BLOCK_BYTES)
            data = member.unused_data if member.eof else member.unconsumed_tail
    while not member.eof and (rest := member.decompress(b"", _BLOCK_BYTES)):
        yield rest
    if not member.eof:
        raise zlib.error("incomplete")
