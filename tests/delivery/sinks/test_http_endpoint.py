"""The address that an HTTP sink connects to."""

from __future__ import annotations

from ocsf_nft.delivery.sinks.http_endpoint import Receiver


def test_http_receiver_is_at_the_port_of_its_url_or_of_its_scheme() -> None:
    for url, proxy, address in (
        ("http://siem.example/in", None, ("siem.example", 80)),
        ("https://siem.example/in", None, ("siem.example", 443)),
        ("https://siem.example:8088/in", None, ("siem.example", 8088)),
        ("https://[2001:db8::7]/in", None, ("2001:db8::7", 443)),
        ("https://siem.example/in", "http://proxy.example", ("proxy.example", 80)),
        ("http://siem.example:8088/in", "http://proxy.example:3128", ("proxy.example", 3128)),
    ):
        assert Receiver(url=url, proxy=proxy).next_hop == address
