"""One face for httpx and httpx2, for their clients that are awaited and those that block."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ferrogate import Guard

URL = "https://provider.test/v1/chat/completions"
JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}


class Side:
    """One library and one kind of client, behind one interface that blocks."""

    def __init__(self, name: str, blocks: bool) -> None:
        self.http: Any = importlib.import_module(name)
        self.ours: Any = importlib.import_module(f"ferrogate.integrations.{name}")
        self.blocks = blocks
        self.requests: list[Any] = []
        self.closed = 0

    def client(self, replies: list[Any], guard: Guard, **options: Any) -> Client:
        return Client(self, replies, guard, options)


class Body:
    """A body in pieces; one that is an exception is raised."""

    def __init__(self, side: Side, pieces: list[Any]) -> None:
        self.side = side
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            await asyncio.sleep(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        self.side.closed += 1

    async def aclose(self) -> None:
        self.side.closed += 1


class Client:
    """A client over a transport that answers as it is told."""

    def __init__(
        self, side: Side, replies: list[Any], guard: Guard, options: dict[str, Any]
    ) -> None:
        self.side, self.replies = side, list(replies)
        http = side.http
        body = type("B", (Body, http.AsyncByteStream, http.SyncByteStream), {})

        def answer(request: Any) -> Any:
            side.requests.append(request)
            reply = self.replies.pop(0) if self.replies else 200
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, int):
                reply = (reply, JSON, [b"{}"])
            status, headers, pieces = reply
            return http.Response(status, headers=headers, stream=body(side, pieces))

        class Below(http.BaseTransport):  # type: ignore[misc, name-defined]
            def handle_request(self, request: Any) -> Any:
                return answer(request)

        class BelowAsync(http.AsyncBaseTransport):  # type: ignore[misc, name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                await asyncio.sleep(0)
                return answer(request)

        if side.blocks:
            self.transport = side.ours.SyncGuardedTransport(guard, Below(), **options)
            self.http = http.Client(transport=self.transport)
        else:
            self.transport = side.ours.GuardedTransport(guard, BelowAsync(), **options)
            self.http = http.AsyncClient(transport=self.transport)

    def ask(self, **options: Any) -> Any:
        options.setdefault("json", {"model": "m", "max_tokens": 50})
        if self.side.blocks:
            return self.http.post(URL, **options)

        async def main() -> Any:
            return await self.http.post(URL, **options)

        return asyncio.run(main())

    def stream(self, most: int | None = None, json: Any = None) -> bytes:
        """Reads a streamed answer, or the first pieces of it."""
        read: list[bytes] = []
        if self.side.blocks:
            with self.http.stream("POST", URL, json=json or {}) as response:
                for piece in response.iter_raw():
                    read.append(piece)
                    if len(read) == most:
                        break
            return b"".join(read)

        async def main() -> None:
            async with self.http.stream("POST", URL, json=json or {}) as response:
                async for piece in response.aiter_raw():
                    read.append(piece)
                    if len(read) == most:
                        break

        asyncio.run(main())
        return b"".join(read)
