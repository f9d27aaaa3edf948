"""A FastAPI service whose workers share one SQLite file, and no server.

    pip install ferrogate fastapi uvicorn
    uvicorn --app-dir examples fastapi_sqlite:app --workers 2

However many ask both workers at once, a question is put to the model once; the
answer outlives a restart, and what one worker invalidates, the other does not
serve. With Redis instead, so do workers on several machines:

    CACHE_URL=redis://localhost:6379/0 uvicorn --app-dir examples fastapi_sqlite:app --workers 2
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request

from ferrogate import CacheService, CacheView


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Opened here and not at the top: an app may be started more than once in a process, as every
    # test with a client does. Leaving the block ends the threads; what was acknowledged is in the
    # store already.
    url = os.environ.get("CACHE_URL", "sqlite:///./answers.db")
    async with CacheService(url, name="answers") as cache:
        app.state.cache = cache
        app.state.answers = cache.namespace("answers", ttl=86_400, tags=["llm"], key=("question",))
        yield


app = FastAPI(lifespan=lifespan)


def the_cache(request: Request) -> CacheService:
    cache: CacheService = request.app.state.cache
    return cache


def the_answers(request: Request) -> CacheView:
    answers: CacheView = request.app.state.answers
    return answers


Cache = Annotated[CacheService, Depends(the_cache)]
Answers = Annotated[CacheView, Depends(the_answers)]


async def ask_model(question: str) -> dict[str, Any]:
    await asyncio.sleep(0.5)  # your LLM call goes here
    return {"answer": question.upper(), "asked_by": os.getpid()}


@app.get("/ask")
async def ask(question: str, answers: Answers) -> dict[str, Any]:
    answer = await answers.get_or_set(question, lambda: ask_model(question))
    return {**answer, "served_by": os.getpid()}


@app.get("/metrics/cache")
async def metrics(cache: Cache) -> dict[str, Any]:
    stats = dict(cache.get_stats())
    shown = ("hits", "misses", "total_requests", "hit_rate_percent", "memory_cache_size")
    status = "healthy" if await cache.health_check() else "degraded"
    return {"cache_stats": {name: stats[name] for name in shown}, "status": status}


@app.post("/metrics/cache/reset")
async def reset(cache: Cache) -> dict[str, str]:
    cache.reset_stats()
    return {"status": "reset"}


@app.post("/metrics/cache/invalidate/{namespace}")
async def invalidate(namespace: str, cache: Cache) -> dict[str, bool]:
    try:
        return {"invalidated": await cache.invalidate_namespace(namespace)}
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
