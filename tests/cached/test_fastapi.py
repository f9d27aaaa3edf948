"""Cached functions as FastAPI endpoints and dependencies, with postponed annotations."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel

fastapi = pytest.importorskip("fastapi")
from fastapi import Depends, FastAPI, Query  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from ferrogate import cached  # noqa: E402

calls: list[object] = []


class Settings(BaseModel):
    name: str = "default"


class Answer(BaseModel):
    text: str
    settings: Settings


@cached
def settings() -> Settings:
    calls.append("settings")
    return Settings()


@cached(ttl=60)
async def embedded(q: Annotated[str, Query(min_length=2)]) -> str:
    calls.append(q)
    return q.upper()


class Gate:
    @cached
    async def check(self, q: str) -> int:
        calls.append(("gate", q))
        return len(q)


gate = Gate()
app = FastAPI()


@app.get("/ask")
@cached
async def ask(
    embedding: Annotated[str, Depends(embedded)],
    size: Annotated[int, Depends(gate.check)],
    config: Annotated[Settings, Depends(settings)],
) -> Answer:
    calls.append("ask")
    return Answer(text=f"{embedding}{size}", settings=config)


@app.post("/sync")
@cached
def sync(answer: Answer, n: int = 1) -> dict[str, int]:
    calls.append("sync")
    return {answer.text: n}


def test_endpoints_and_dependencies() -> None:
    with TestClient(app) as client:
        for _ in range(3):
            answer = client.get("/ask", params={"q": "hello"})
            assert answer.status_code == 200
            assert answer.json() == {"text": "HELLO5", "settings": {"name": "default"}}
        assert calls == ["hello", ("gate", "hello"), "settings", "ask"]
        assert client.get("/ask", params={"q": "x"}).status_code == 422
        assert client.get("/ask").status_code == 422
        body = {"text": "t", "settings": {}}
        for _ in range(2):
            assert client.post("/sync?n=3", json=body).json() == {"t": 3}
        assert calls.count("sync") == 1
        assert client.post("/sync?n=x", json=body).status_code == 422
        paths = client.get("/openapi.json").json()["paths"]
        assert paths["/ask"]["get"]["parameters"][0]["name"] == "q"
