"""Checks where a server is to listen, and the key that protects it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket

from bitexport.errors import UsageError

_KEY = re.compile(r"[!-~]+")  # printable ASCII; llama-server divides a list of keys at commas
_HOST = re.compile(r"[0-9A-Za-z.:_-]+")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def check_address(host: str, port: int, api_key: str | None) -> None:
    """Check where to listen.

    Raises:
        UsageError: the host is not one address or name, the port is out of range, or others reach the host
            and there is no key.
    """
    if not _HOST.fullmatch(host) or host.endswith(".sock"):
        raise UsageError(f"the host is {host!r}; give one IP address or one name, such as 127.0.0.1")
    if not 0 <= port <= 65535:
        raise UsageError(f"the port is {port}; expected 0 (any free one) to 65535")
    if api_key is None and not is_loopback(host):
        raise UsageError(
            f"on {host} every machine that reaches this one could use the model; protect it with a key "
            "(BITEXPORT_API_KEY), or listen on 127.0.0.1"
        )


def check_key(api_key: str) -> None:
    """Raise UsageError unless the key is printable ASCII without commas and spaces."""
    if not _KEY.fullmatch(api_key) or "," in api_key or '"' in api_key:
        raise UsageError(
            "the API key is empty or has a space, a comma, a quotation mark or a character that is not "
            "ASCII; use letters and digits, such as those of `openssl rand -hex 24`"
        )


def why_not_bound(host: str, port: int) -> str:
    """Why a server cannot listen there: the system's reason, and advice."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            if os.name == "posix":
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    else:
        reason = "it was in use a moment ago"
    return (
        f"cannot listen on {host} port {port}: {reason}; choose another --port (0 for any free one) or --host"
    )


def url_of(host: str, port: int) -> str:
    """``http://127.0.0.1:8080``; an address that means every interface is given as this machine's."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{port}"
