"""Under gevent one thread runs many greenlets: none may block it for the others."""

from __future__ import annotations

import pytest
from child import run_well

pytestmark = pytest.mark.hostile


def test_two_greenlets_ask_for_one_key() -> None:
    code = """
    import warnings
    warnings.simplefilter("ignore")
    from gevent import monkey
    monkey.patch_all()
    import gevent, time
    from ferrogate import RateLimiter, cached
    @cached
    def load(x):
        time.sleep(0.05)
        return x
    limiter = RateLimiter("1000/second", burst=1)
    def work():
        return load(1)
    both = [gevent.spawn(work) for _ in range(2)]
    gevent.joinall(both, timeout=10)
    print([one.value for one in both], load(1), load.cache.get_stats()["loading"])
    """
    assert run_well(code, timeout=20) == "[1, 1] 1 0\n"
