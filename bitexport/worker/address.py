"""Checks where a worker is to listen. It trusts whoever reaches it, so that must not be everybody."""

from __future__ import annotations

import ipaddress
import socket

from bitexport.errors import UsageError


def check_address(host: str, port: int, *, public: bool) -> None:
    """Check where to listen.

    Args:
        host: an IPv4 address, or a name that stands for one.
        port: 0 for any free one.
        public: accept an address that other networks may reach.

    Raises:
        UsageError: the host is not an IPv4 address or a known name, the port is out of range, or others than
            this machine and a private network may reach it and ``public`` is not set.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"the port is {port}; expected 0 (any free one) to 65535")
    found = _resolved(host)
    if public or not (found.is_unspecified or found.is_global):
        return
    means = "means every network of this machine" if found.is_unspecified else "is a public address"
    raise UsageError(
        f"{host} {means}, and a worker gives whoever reaches it control of its process: the protocol has no "
        "password and no encryption; listen on 127.0.0.1 or an address of a private network, or use "
        "--allow-public behind a firewall"
    )


def _resolved(host: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except (OSError, ValueError, UnicodeError):
        raise UsageError(
            f"the host is {host!r}; give an IPv4 address of this machine or a name that stands for one, "
            "such as 127.0.0.1"
        ) from None
