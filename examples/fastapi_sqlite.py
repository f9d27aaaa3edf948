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
from typing import Any

from fastapi import FastAPI

from ferrogate import CacheService

cache = CacheService(os.environ.get("CACHE_URL", "sqlite:///./answers.db"), name="answers")
answers = cache.namespace("answers", ttl=86_400, tags=["llm"])


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    # What was acknowledged is in the store already; this ends the threads.
    await cache.close()


app = FastAPI(lifespan=lifespan)


@answers.cached
async def ask_model(question: str) -> dict[str, Any]:
    await asyncio.sleep(0.5)  # your LLM call goes here
    return {"answer": question.upper(), "asked_by": os.getpid()}


@app.get("/ask")
async def ask(question: str) -> dict[str, Any]:
    return {**await ask_model(question), "served_by": os.getpid()}


@app.get("/metrics/cache")
async def metrics() -> dict[str, Any]:
    stats = dict(cache.get_stats())
    shown = ("hits", "misses", "total_requests", "hit_rate_percent", "memory_cache_size")
    status = "healthy" if stats["available"] else "degraded"
    return {"cache_stats": {name: stats[name] for name in shown}, "status": status}


@app.post("/metrics/cache/reset")
async def reset() -> dict[str, str]:
    cache.reset_stats()
    return {"status": "reset"}


@app.post("/metrics/cache/invalidate/{namespace}")
async def invalidate(namespace: str) -> dict[str, bool]:
    return {"invalidated": await cache.invalidate_namespace(namespace)}
