"""Where a webhook may go: https to public addresses, resolved here and pinned for the connection.

A name is resolved just before each attempt, every address it has must be public, and the connection
goes to the address that was checked, so a name that changes its mind in between gains nothing.
`webhook_allow_insecure` lifts all of it, for development on one machine.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

MAX_URL_CHARS = 2000
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out; without NAT64, site-local and IPv4-compatible addresses."""
_DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")
"""RFC 9637; Python 3.11 does not know of it."""


class ForbiddenTarget(Exception):
    """A URL that no webhook may go to; the message says why."""


def check_url(url: str, *, allow_insecure: bool) -> SplitResult:
    """What can be said of a URL without resolving its name.

    Raises:
        ForbiddenTarget: says what to change.
    """
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise ForbiddenTarget(
            f"at most {MAX_URL_CHARS} printable ASCII characters, percent-encoded"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ForbiddenTarget("not a URL") from error
    if parts.scheme != "https" and not (allow_insecure and parts.scheme == "http"):
        raise ForbiddenTarget("use an https URL")
    if not host:
        raise ForbiddenTarget("the URL names no host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ForbiddenTarget("a URL without user, password and fragment, please")
    if not allow_insecure:
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return parts
        if not is_public(literal):
            raise ForbiddenTarget(f"{host} is not a public address")
    return parts


def is_public(address: _Address) -> bool:
    """Whether the address is on the public Internet, and hides no other one inside."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour is not None or address.teredo is not None:
            return False
        if address not in _UNICAST or address in _DOCUMENTATION:
            return False
    return address.is_global and not address.is_multicast


def look_up(host: str, port: int) -> Sequence[str]:
    """All addresses of a name; blocks for as long as its name servers like.

    Raises:
        OSError: the name cannot be resolved.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]).partition("%")[0] for info in found]


def pinned(addresses: Sequence[str], *, allow_insecure: bool) -> str:
    """The one of a name's addresses to connect to.

    Raises:
        ForbiddenTarget: one of them is not public.
    """
    for address in addresses:
        if not allow_insecure and not is_public(ipaddress.ip_address(address)):
            raise ForbiddenTarget("the name resolves to an address that is not public")
    return addresses[0]
