"""Redis in its other forms: behind Sentinels, as a Cluster, over TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_servers import MORTAL, Server, free_port


@contextlib.contextmanager
def closing(*servers: Server) -> Iterator[None]:
    try:
        yield
    finally:
        for one in servers:
            one.close()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[list[Server]]:
    """A Cluster of three masters; it takes two seconds to be one."""
    # Nothing here is about their failover: a node that has no turn for a while is not to be failed.
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "15000")
    three = [Server(folder / str(n), *options) for n in range(3)]
    with closing(*three):
        for one, (first, last) in zip(
            three, [(0, 5460), (5461, 10922), (10923, 16383)], strict=True
        ):
            assert one.command("CLUSTER", "ADDSLOTS", *range(first, last + 1)) == b"+OK"
            # Everybody: who hears of a node from another one does so up to seconds later.
            for other in three:
                assert one.command("CLUSTER", "MEET", "127.0.0.1", other.port) == b"+OK"
        deadline = time.monotonic() + 60
        while not all(
            b"cluster_state:ok" in one.command("CLUSTER", "INFO")
            and b"cluster_known_nodes:3" in one.command("CLUSTER", "INFO")
            for one in three
        ):
            assert time.monotonic() < deadline, "the nodes do not find each other"
            time.sleep(0.05)
        yield three


def cluster_url(nodes: list[Server]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in nodes)


@contextlib.contextmanager
def sentinel(folder: Path, master: Server, *lines: str) -> Iterator[int]:
    """A Sentinel that promotes by itself, and has some more lines to read; its port."""
    port, configuration = free_port(), folder / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 3000\n" + "".join(f"{line}\n" for line in lines)
    )
    binary = shutil.which("redis-server")
    assert binary
    process = subprocess.Popen(
        [*MORTAL, binary, str(configuration), "--sentinel"], stdout=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def is_master(one: Server) -> bool:
    try:
        return b"role:master" in one.command("INFO", "replication")
    except OSError:
        # The Sentinel that makes it one ends its connections.
        return False


needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None and not os.environ.get("CI"),
    reason="openssl: run `make system`",
)


def certify(folder: Path) -> Path:
    """A server's certificate for localhost, signed by an authority of our own."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "server"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
    (folder / "ca.conf").write_text(
        "[req]\ndistinguished_name=dn\nprompt=no\nx509_extensions=v3\n[dn]\nCN=Test CA\n"
        "[v3]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n"
    )
    openssl("req", "-x509", "-new", "-key", "ca.key", "-days", "2", "-out", "ca.crt",
            "-config", "ca.conf")  # fmt: skip
    openssl("req", "-new", "-key", "server.key", "-subj", "/CN=localhost", "-out", "server.csr")
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", "san", "-out", "server.crt")  # fmt: skip
    return folder


def tls_options(folder: Path, port: int) -> list[str]:
    """What a server with that certificate is started with, to listen for TLS on that port."""
    return [
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(folder / "server.crt")),
        *("--tls-key-file", str(folder / "server.key")),
        *("--tls-ca-cert-file", str(folder / "ca.crt")),
    ]
