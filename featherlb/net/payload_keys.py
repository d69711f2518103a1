"""What a datagram says of who or what it is for: DNS name, SIP call, RADIUS user, QUIC connection.

Each function returns None for a payload that isn't what it expects.
"""

DNS_HEADER = 12
LONGEST_NAME = 255
USER_NAME = 1
RADIUS_HEADER = 20
MAX_CONNECTION_ID = 20
"""Bytes, in QUIC version 1 (RFC 9000 section 17.2)."""


def dns_name(payload: bytes) -> bytes | None:
    """The name of the first question in lower case, with its labels' lengths (RFC 1035 section
    4.1): the same for each type, so that a backend has all records of a name in its cache."""
    if len(payload) <= DNS_HEADER or not int.from_bytes(payload[4:6], "big"):
        return None
    at = DNS_HEADER
    while at < len(payload):
        length = payload[at]
        if not length:
            return payload[DNS_HEADER:at].lower()
        if length > 63 or at - DNS_HEADER > LONGEST_NAME:  # questions are not compressed
            return None
        at += 1 + length
    return None


def sip_call_id(payload: bytes) -> bytes | None:
    """The Call-ID of a request or response (RFC 3261 sections 20.8 and 7.3.3)."""
    start, *fields = payload.partition(b"\r\n\r\n")[0].split(b"\r\n")
    if not (start.endswith(b" SIP/2.0") or start.startswith(b"SIP/2.0 ")):
        return None
    for field in fields:
        name, colon, value = field.partition(b":")
        if colon and name.strip().lower() in (b"call-id", b"i"):
            return value.strip()
    return None


def radius_user(payload: bytes) -> bytes | None:
    """The User-Name of an access or accounting request (RFC 2865 sections 3 and 5.1)."""
    if len(payload) < RADIUS_HEADER:
        return None
    end = int.from_bytes(payload[2:4], "big")
    if not RADIUS_HEADER <= end <= len(payload):
        return None
    at = RADIUS_HEADER
    while at + 2 <= end:
        kind, length = payload[at], payload[at + 1]
        if length < 2 or at + length > end:
            return None
        if kind == USER_NAME:
            return payload[at + 2 : at + length]
        at += length
    return None


def quic_destination(payload: bytes) -> bytes | None:
    """The destination connection ID of a packet with a long header, which has its length (RFC 8999
    section 5.1)."""
    ids = quic_ids(payload)
    return ids[0] if ids else None


def quic_ids(payload: bytes) -> tuple[bytes, bytes] | None:
    """The destination and source connection IDs of a packet with a long header."""
    if len(payload) < 7 or not payload[0] & 0x80:
        return None
    at = 6 + payload[5]
    if payload[5] > MAX_CONNECTION_ID or at >= len(payload):
        return None
    end = at + 1 + payload[at]
    if payload[at] > MAX_CONNECTION_ID or end > len(payload):
        return None
    return payload[6:at], payload[at + 1 : end]
