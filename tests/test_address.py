"""What is taken for the address of a server."""

from __future__ import annotations

import pytest

from openai_gateway.address import Address


@pytest.mark.parametrize(("url", "port"), [("http://h/v1", 80), ("https://h/v1", 443), ("http://[::1]:8000/v1", 8000)])
def test_a_base_url_without_a_port_means_that_of_its_scheme(url: str, port: int) -> None:
    assert Address(url).port == port


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://localhost", "http://", "http://host:99999"])
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        _ = Address(url).port
