"""What stands between ferrogate and other packages.

Each module needs its package, and nothing else imports it. A guard under HTTP clients, and so
under the SDKs of OpenAI and Anthropic:

- :mod:`ferrogate.integrations.httpx`, :mod:`ferrogate.integrations.httpx2`: transports
- :mod:`ferrogate.integrations.aiohttp`: a middleware for sessions

Adapters for frameworks that bring a cache interface of their own:

- :mod:`ferrogate.integrations.langchain`: ``langchain_core.caches.BaseCache``
- :mod:`ferrogate.integrations.langgraph`: ``langgraph.cache.base.BaseCache``
- :mod:`ferrogate.integrations.litellm`: ``litellm.caching.base_cache.BaseCache``
- :mod:`ferrogate.integrations.dspy`: ``dspy.clients.cache.Cache``

These keep their values in a :class:`ferrogate.CacheService`, so one
namespace of it, in memory, in a SQLite file or wherever the service stands.
"""
