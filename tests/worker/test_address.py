"""A worker listens where only trusted machines reach it, unless told otherwise."""

from __future__ import annotations

import pytest

from bitexport.errors import UsageError
from bitexport.worker.address import check_address


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.1.2.3", "172.16.0.1", "192.168.1.5", "169.254.3.4", "100.64.0.9"]
)
def test_private_addresses_are_accepted(host: str) -> None:
    check_address(host, 50052, public=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "1.2.3.4"])
def test_public_addresses_need_a_flag(host: str) -> None:
    with pytest.raises(UsageError, match=r"no password and no encryption.*--allow-public"):
        check_address(host, 50052, public=False)
    check_address(host, 50052, public=True)


@pytest.mark.parametrize("host", ["", "::1", "no-such-name.invalid", "1.2.3.4.5"])
def test_what_is_not_an_ipv4_address_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="give an IPv4 address"):
        check_address(host, 50052, public=True)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match=f"the port is {port}"):
        check_address("127.0.0.1", port, public=False)
