"""The Redis tier behind Sentinels, on a Cluster, over TLS, and as an ACL user."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from child import promised
from redis_modes import (
    certify,
    closing,
    cluster,
    cluster_url,
    is_master,
    needs_openssl,
    sentinel,
    tls_options,
)
from redis_servers import (
    Server,
    command,
    connected,
    free_port,
    needs_redis,
    server,
    until,
)

from ferrogate import CacheService

pytestmark = needs_redis


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """A Cluster, one for all tests."""
    with cluster(tmp_path_factory.mktemp("nodes")) as three:
        yield three


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("certificates"))


def test_a_cluster(nodes: list[Server]) -> None:
    async def main() -> None:
        async with (
            CacheService(cluster_url(nodes), timeout_seconds=5) as a,
            CacheService(nodes[1].url, timeout_seconds=5, cluster=True) as b,
        ):
            await connected(a, b)
            for number in range(100):
                assert await a.set(f"ns{number % 3}", number, number, tags=[f"t{number % 5}"])
            assert all(int(one.command("DBSIZE")[1:]) > 10 for one in nodes)
            for number in range(100):
                assert await b.get(f"ns{number % 3}", number) == number
            assert await a.invalidate_namespace("ns1")
            assert await a.invalidate_tag("t2")
            await until(lambda: b.get_sync("ns1", 1) is None and b.get_sync("ns2", 2) is None)
            for number in range(100):
                gone = number % 3 == 1 or number % 5 == 2
                assert await b.get(f"ns{number % 3}", number) == (None if gone else number)
            assert await a.delete("ns0", 0)
            await until(lambda: b.get_sync("ns0", 0) is None)
            loads = 0

            async def load() -> int:
                nonlocal loads
                loads += 1
                await asyncio.sleep(0.2)
                return loads

            found = await asyncio.gather(
                *(one.get_or_set("ns", "k", load) for one in (a, b) for _ in range(20))
            )
            assert (set(found), loads) == ({1}, 1)
            assert a.get_stats()["errors"] == b.get_stats()["errors"] == 0

    asyncio.run(main())


def test_a_node_of_a_cluster_that_is_away_is_given_up_in_time(nodes: list[Server]) -> None:
    async def main() -> None:
        async with CacheService(cluster_url(nodes), near_bytes=1) as a:
            await connected(a)
            for number in range(30):
                await until(lambda: a.set("ns", number, number))  # noqa: B023
            nodes[2].stop()
            begin = time.monotonic()
            found = await asyncio.gather(*(a.get("ns", number) for number in range(30)))
            assert time.monotonic() - begin < promised(0.5, 5)
            # There is nothing else that it could have them from.
            assert None in found
            assert not [n for n, value in enumerate(found) if value not in (n, None)]
            nodes[2].go_on()
            await until(a.health_check)

            async def all_there() -> bool:
                return [await a.get("ns", n) for n in range(30)] == list(range(30))

            await until(all_there)

    asyncio.run(main())


def test_a_node_of_a_cluster_that_is_away_costs_only_its_values(nodes: list[Server]) -> None:
    def away(name: str) -> bool:
        """Whether a key is on the node that will be stopped."""
        return not nodes[2].command("EXISTS", name).startswith(b"-MOVED")

    async def main() -> None:
        # Without its generation nothing is known of a namespace.
        ns = next(f"ns{n}" for n in range(1000) if not away(f"ferrogate:ns:ns{n}"))
        keys = [f"k{n}" for n in range(1000)]
        there = [k for k in keys if not away(f"ferrogate:{{{ns}:{k}}}")][:20]
        gone = [k for k in keys if away(f"ferrogate:{{{ns}:{k}}}")][:10]
        # One whose generation will be away, and is known by then.
        far = next(f"ns{n}" for n in range(1000) if away(f"ferrogate:ns:ns{n}"))
        known = [k for k in keys if not away(f"ferrogate:{{{far}:{k}}}")][:5]
        async with CacheService(cluster_url(nodes), timeout_seconds=5) as other:
            for key in there + gone:
                assert await other.set(ns, key, key)
            for key in known:
                assert await other.set(far, key, key)
        # Ample for nodes that answer: what is missed is missed for the sake of the other one.
        async with CacheService(cluster_url(nodes), near_bytes=1, timeout_seconds=3) as a:
            await connected(a)
            for key in there:
                assert await a.get(ns, key) == key
            for key in known:
                assert await a.get(far, key) == key
            hits = a.get_stats()["tier_hits"]
            nodes[2].stop()
            for turn in range(200):
                missed = [asyncio.create_task(a.get(ns, k)) for k in gone]
                for key in there:
                    assert await a.get(ns, key) == key
                # Those are lost with their generation if the ear was there, too; they cost the
                # others nothing.
                missed += [asyncio.create_task(a.get(far, k)) for k in known]
                if turn % 50 == 0:
                    assert (await asyncio.gather(*missed))[: len(gone)] == [None] * len(gone)
                    assert await a.set(ns, there[0], there[0])
            # Not that it had them near.
            assert a.get_stats()["tier_hits"] - hits > 100 * len(there)
            assert (await asyncio.gather(*missed))[: len(gone)] == [None] * len(gone)
            # One node is not the Cluster.
            stats = a.get_stats()
            assert (stats["available"], stats["skipped"]) == (True, 0)
            nodes[2].go_on()

            async def all_there() -> bool:
                return [await a.get(ns, k) for k in gone] == gone

            await until(all_there)

    asyncio.run(main())


def test_a_node_of_a_cluster_that_refuses_costs_only_its_values(nodes: list[Server]) -> None:
    def by(node: Server, names: str, count: int) -> list[str]:
        """Keys whose `names` with them are on a node."""
        keys = (f"k{n}" for n in range(3000))
        found = (k for k in keys if not node.command("EXISTS", names % k).startswith(b"-MOVED"))
        return list(itertools.islice(found, count))

    async def main() -> None:
        # Its generation is needed for each of its keys.
        ns = by(nodes[0], "ferrogate:ns:%s", 1)[0]
        good, bad = (by(node, f"ferrogate:{{{ns}:%s}}", 10) for node in (nodes[1], nodes[2]))
        async with CacheService(cluster_url(nodes), timeout_seconds=5) as service:
            await connected(service)
            assert await service.set(ns, good[0], 0)
            nodes[2].command("CONFIG", "SET", "min-replicas-to-write", "1")
            try:
                for number in range(8):
                    assert not await service.set(ns, bad[number], number)
                    assert await service.set(ns, good[number], number)
                stats = service.get_stats()
                assert (stats["available"], stats["skipped"], stats["errors"]) == (True, 0, 8)
            finally:
                nodes[2].command("CONFIG", "SET", "min-replicas-to-write", "0")
            await until(lambda: service.set(ns, bad[0], "again"))
            await until(lambda: service.get_stats()["owed"] == 0)

    asyncio.run(main())


@pytest.mark.hostile
def test_forks_on_a_cluster(nodes: list[Server]) -> None:
    program = Path(__file__).parent.parent / "support" / "redis_forks.py"
    forking = [sys.executable, str(program), cluster_url(nodes)]
    done = subprocess.run(forking, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_an_ear_at_a_node_that_has_left_the_cluster(nodes: list[Server], tmp_path: Path) -> None:
    def has_ear(one: Server) -> bool:
        return one.command("CLIENT", "LIST", "TYPE", "pubsub") != b""

    async def main(never: Server) -> None:
        for one in nodes:
            # The others are to go on.
            one.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with CacheService(cluster_url([never, *nodes]), timeout_seconds=5) as a:
            await connected(a)
            assert not has_ear(never)
            (left,) = (one for one in nodes if has_ear(one))
            stay = [one for one in nodes if one is not left]
            ns = next(
                f"ns{n}" for n in range(1000)
                if not stay[1].command("EXISTS", f"ferrogate:ns:ns{n}").startswith(b"-MOVED")
            )  # fmt: skip
            key = next(
                f"k{n}" for n in range(1000)
                if not stay[0].command("EXISTS", f"ferrogate:{{{ns}:k{n}}}").startswith(b"-MOVED")
            )  # fmt: skip
            async with CacheService(cluster_url(stay), timeout_seconds=5) as b:
                await connected(b)
                assert await b.set(ns, key, "old")
                await until(lambda: a.get_sync(ns, key) == "old")
                own = left.command("CLUSTER", "MYID")
                for one in stay:
                    id_of_one = one.command("CLUSTER", "MYID")
                    assert left.command("CLUSTER", "FORGET", id_of_one) == b"+OK"
                    assert one.command("CLUSTER", "FORGET", own) == b"+OK"
                await until(lambda: b.set(ns, key, "new"))
                # It may be old for some seconds, but not for ever.
                await until(lambda: a.get_sync(ns, key) == "new")
                await until(lambda: not has_ear(left))
                await connected(a)
                await until(lambda: b.set(ns, key, "newer"))
                await until(lambda: a.get_sync(ns, key) == "newer")

    never = Server(tmp_path / "never", "--cluster-enabled", "yes")
    with closing(never):
        asyncio.run(main(never))


@pytest.mark.timeout(240)
def test_a_failover(tmp_path: Path) -> None:
    # A replica that comes is served at once, not after five seconds, in which others might.
    master = Server(tmp_path / "master", "--repl-diskless-sync-delay", "0")
    replica = Server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))

    async def main(port: int) -> None:
        await until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"), 60)
        url = f"redis+sentinel://127.0.0.1:{port}/mymaster/0"
        async with CacheService(url) as a, CacheService(url) as b:
            await connected(a, b)
            await until(lambda: a.set("ns", "k", "before"))
            await until(lambda: b.get_sync("ns", "k") == "before")
            # It asks the master every ten seconds; of a replica that it does not know it cannot
            # make a master.
            await until(lambda: b"slaves=1" in command(port, "INFO", "sentinel"), 40)
            over = False

            async def one(task: int) -> None:
                while not over:
                    await a.get("ns", f"missing {task}")
                    await a.set("ns", f"written {task}", task)
                    assert await a.get("ns", "k") in ("before", None)
                    await asyncio.sleep(0.02)

            tasks = [asyncio.create_task(one(n)) for n in range(200)]
            await asyncio.sleep(0.2)
            master.kill()
            # On a machine that was busy for two seconds it does nothing for thirty.
            await until(lambda: is_master(replica), 90)
            await until(a.health_check, 30)
            over = True
            await asyncio.gather(*tasks)

            async def changed() -> bool:
                return await a.set("ns", "k", "after") and await b.get("ns", "k") == "after"

            await until(changed)

    with closing(master, replica), sentinel(tmp_path, master) as port:
        asyncio.run(main(port))


def test_sentinels_with_a_password(tmp_path: Path) -> None:
    master = Server(tmp_path / "master", "--requirepass", "the server's")

    async def main(port: int) -> None:
        url = f"redis+sentinel://:the%20server's@127.0.0.1:{port}/mymaster"
        own = {"timeout_seconds": 5.0, "sentinel_username": "agent", "sentinel_password": "pa ss"}
        async with (
            CacheService(url, **own) as a,
            CacheService(url, **own) as b,
        ):
            await connected(a, b)
            assert await a.set("ns", "k", 1)
            assert await b.get("ns", "k") == 1
            assert await a.set("ns", "k", 2)
            await until(lambda: b.get_sync("ns", "k") == 2)
        for wrong in ({}, {"sentinel_username": "agent", "sentinel_password": "the server's"}):
            async with CacheService(url, timeout_seconds=5, **wrong) as stranger:
                assert not await stranger.health_check()

    lines = (
        'sentinel auth-pass mymaster "the server\'s"',
        "user default off",
        'user agent on ">pa ss" allchannels +@all',
    )
    with closing(master), sentinel(tmp_path, master, *lines) as port:
        asyncio.run(main(port))


@needs_openssl
def test_tls(certificates: Path) -> None:
    port = free_port()
    options = tls_options(certificates, port)

    async def main() -> None:
        url, authority = f"rediss://localhost:{port}/0", certificates / "ca.crt"
        async with (
            CacheService(url, timeout_seconds=5, ssl_ca_certs=authority) as a,
            CacheService(url, timeout_seconds=5, ssl_ca_certs=authority) as b,
        ):
            assert await a.set("ns", "k", "secret")
            assert await b.get("ns", "k") == "secret"
            assert await a.set("ns", "k", "newer")
            await until(lambda: b.get_sync("ns", "k") == "newer")
        async with CacheService(url, timeout_seconds=5) as distrustful:
            assert not await distrustful.health_check()
            assert await distrustful.get("ns", "k") is None

    with server(*options):
        asyncio.run(main())
    with pytest.raises(ValueError, match="ssl_ca_certs"):
        CacheService("rediss://localhost", ssl_ca_certs=certificates / "missing")
    with pytest.raises(ValueError, match="ssl_ca_certs"):
        CacheService("rediss://localhost", ssl_ca_certs=certificates / "san")
    with pytest.raises(ValueError, match="ssl_keyfile"):
        CacheService("rediss://localhost", ssl_certfile=certificates / "server.crt")


def test_a_user_who_may_only_what_is_needed() -> None:
    async def main(one: Server) -> None:
        rules = "~cache:* resetchannels &cache:* +@read +@write +@scripting +@connection +@pubsub"
        rules += " +time +script"
        one.command("ACL", "SETUSER", "agent", "on", ">pass:word@", *rules.split())
        url = f"redis://agent:pass%3Aword%40@127.0.0.1:{one.port}"
        async with (
            CacheService(url, timeout_seconds=5, prefix="cache:") as a,
            CacheService(url, timeout_seconds=5, prefix="cache:") as b,
        ):
            await connected(a, b)
            assert await a.set("ns", "k", 1, tags=["t"])
            assert await b.get("ns", "k") == 1
            assert await a.invalidate_tag("t")
            await until(lambda: b.get_sync("ns", "k") is None)
            assert await a.get_or_set("ns", "k", lambda: asyncio.sleep(0, 2)) == 2
        async with CacheService(url, timeout_seconds=5, prefix="others:") as c:
            assert not await c.health_check()
            assert await c.get("ns", "k") is None
            assert not await c.set("ns", "k", 1)

    with server() as one:
        asyncio.run(main(one))
