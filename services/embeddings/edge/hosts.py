"""Which hosts the service may ask for images, and at which addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swav_platform.errors import UsageError

HTTPS = 443

_NAME = re.compile(r"(\*?\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host of a virtual machine
        "169.254.0.0/16",  # also the metadata of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast and reserved
    )
]
"""IPv4 addresses that are not global: IANA's registry of special-purpose addresses. Python's own list changes with its version."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = [ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
"""The same within the global unicast addresses of IPv6; 2002::/16 and 2001::/32 are tunnels to IPv4 addresses."""


@dataclass(frozen=True)
class Host:
    """An entry of the list: one name, or all names below it."""

    name: str  # in lower case and ASCII, without dots around it
    below: bool
    port: int = HTTPS

    def covers(self, name: str, port: int) -> bool:
        fits = name.endswith("." + self.name) if self.below else name == self.name
        return fits and port == self.port


def read_hosts(texts: Iterable[str]) -> tuple[Host, ...]:
    """Reads `name`, `name:port`, and `.name` or `*.name` for the names below. Raises UsageError for anything else."""
    return tuple(_host(text.strip()) for text in texts)


def _host(text: str) -> Host:
    name, colon, port = text.partition(":")
    try:
        name = name.encode("idna" if not name.isascii() else "ascii").decode("ascii").lower().rstrip(".")
        number = int(port) if colon else HTTPS
    except ValueError:
        name, number = "", 0
    if not _NAME.fullmatch(name) or not 0 < number < 65536:
        raise UsageError(
            f"--allow-urls {text!r} is not a host. Use for example images.example, .images.example for all names below it, "
            "or images.example:8443, without https://."
        )
    return Host(name.lstrip("*."), name[0] in "*.", number)


def listed(hosts: Sequence[Host], name: str, port: int) -> bool:
    return any(host.covers(name.lower().rstrip("."), port) for host in hosts)


def public(address: str) -> bool:
    """Whether an IP address is one of the open internet: not private, loopback, link-local, multicast or reserved, also inside IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        return ip in _UNICAST and not any(ip in network for network in _SPECIAL_V6)
    return not any(ip in network for network in _SPECIAL)
