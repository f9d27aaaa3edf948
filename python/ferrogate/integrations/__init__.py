"""Adapters for frameworks that bring a cache interface of their own.

Each module needs its framework, and nothing else imports it:

- :mod:`ferrogate.integrations.langchain`: ``langchain_core.caches.BaseCache``
- :mod:`ferrogate.integrations.langgraph`: ``langgraph.cache.base.BaseCache``
- :mod:`ferrogate.integrations.litellm`: ``litellm.caching.base_cache.BaseCache``
- :mod:`ferrogate.integrations.dspy`: ``dspy.clients.cache.Cache``

All of them keep their values in a :class:`ferrogate.CacheService`, so one
namespace of it, in memory, in a SQLite file or wherever the service stands.
"""
