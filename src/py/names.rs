//! The names of Python's attributes that are looked up often, each made once.
//!
//! All in one place, since whatever is made on first use has to be made before
//! the process forks.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

macro_rules! names {
    ($($name:ident: $text:literal),* $(,)?) => {
        $(
            #[inline]
            pub(crate) fn $name(py: Python<'_>) -> &Bound<'_, PyString> {
                intern!(py, $text)
            }
        )*

        /// Makes all of them.
        pub(crate) fn prepare(py: Python<'_>) {
            $($name(py);)*
        }
    };
}

names! {
    aclose: "aclose",
    add_done_callback: "add_done_callback",
    add_note: "add_note",
    asend: "asend",
    athrow: "athrow",
    cache_key: "__cache_key__",
    call_later: "call_later",
    cancel: "cancel",
    cancelled: "cancelled",
    cancelling: "cancelling",
    close: "close",
    code: "code",
    context: "__context__",
    cost_usd: "cost_usd",
    create_task: "create_task",
    dunder_aiter: "__aiter__",
    dunder_anext: "__anext__",
    dunder_get: "__get__",
    exception: "exception",
    headers: "headers",
    index: "__index__",
    input_tokens: "input_tokens",
    items: "items",
    jumps: "_jumps_to_timers",
    notes: "__notes__",
    observe: "observe",
    output_tokens: "output_tokens",
    reservation: "reservation",
    reserve: "reserve",
    reserve_sync: "reserve_sync",
    response: "response",
    result: "result",
    retry_after: "retry_after",
    seconds: "seconds",
    settle: "settle",
    status: "status",
    status_code: "status_code",
    target: "target",
    throw: "throw",
    time: "time",
    timed_out: "timed_out",
    timeout: "timeout",
    tokens: "tokens",
    total_seconds: "total_seconds",
    uncancel: "uncancel",
    usage: "usage",
    usd: "usd",
    value: "value",
    wake: "wake",
}
