"""HTTP connections to public addresses only, so that a URL from somebody else cannot reach this machine's network.

The address is checked where the connection is made, for every redirect too: a name cannot be resolved twice.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.request
from urllib.error import URLError

from videoxl.errors import VideoError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also behind what maps or tunnels IPv4 into IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def connect(host: str, port: int, timeout: float, allow_private: bool) -> socket.socket:
    """A TCP connection to the first address of `host` that answers. Raises `VideoError` for a private one."""
    refused, failed = None, None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not allow_private and not is_public(str(address[0])):
            refused = address[0]
            continue
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failed = error
    if failed is None and refused is not None:
        raise VideoError(
            f"{host} is at {refused}, an address of a private network; allow private addresses if you trust the URL"
        )
    raise failed or OSError(f"{host} has no address")


def opener(allow_private: bool = False) -> urllib.request.OpenerDirector:
    """What opens http and https URLs, and nothing else. Proxies are not used: they would resolve names themselves."""
    tls = ssl.create_default_context()

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = connect(self.host, self.port, self.timeout or 30, allow_private)

    class Encrypted(http.client.HTTPSConnection):
        def connect(self) -> None:
            raw = connect(self.host, self.port, self.timeout or 30, allow_private)
            self.sock = tls.wrap_socket(raw, server_hostname=self.host)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(Plain, request)

    class EncryptedHandler(urllib.request.HTTPSHandler):
        def https_open(self, request):
            return self.do_open(Encrypted, request)

    class Redirects(urllib.request.HTTPRedirectHandler):
        max_redirections = 5

        def redirect_request(self, request, file, code, message, headers, url):
            if not url.lower().startswith(("http://", "https://")):
                raise URLError(f"it leads to {url}, which is not http")
            return super().redirect_request(request, file, code, message, headers, url)

    director = urllib.request.OpenerDirector()
    for handler in (
        PlainHandler(), EncryptedHandler(), Redirects(), urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):  # fmt: skip
        director.add_handler(handler)
    return director
