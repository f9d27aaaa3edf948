//! Arguments of a service: keys, tags, tiers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::finish::ended;
use crate::core::clock::Clock;
use crate::core::key::hex_digest;
use crate::py::convert::type_name;
use crate::py::key::{Opaque, Walker, with_encoder};
use crate::runtime::lifecycle::may_run;
use crate::runtime::near::Near;
use crate::runtime::notices::Notices;
use crate::runtime::outage::Outages;
use crate::runtime::owed::Owed;
use crate::runtime::redis;
use crate::runtime::sqlite::{self, OpenError};
use crate::runtime::tier::{BETWEEN, Tier};

/// Marks a key that stands for the digest of another; no key that is a text starts with it.
const DIGEST: char = '\u{1}';

/// So often, and so long apart, it is asked whether a fork is over: ten seconds.
const FORKING: u32 = 10_000;
const LOOK: Duration = Duration::from_millis(1);

/// Longer keys stand as their digests.
const LONGEST_KEY: usize = 1024;

/// The text of a namespace.
pub(super) fn namespace<'a>(ns: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    text("ns", ns)
}

/// The text of a tag.
pub(super) fn tag<'a>(tag: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    text("tag", tag)
}

fn text<'a>(argument: &str, given: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let Ok(text) = given.cast::<PyString>() else {
        let what = format!("{argument}: expected a str, got {}", type_name(given));
        return Err(PyTypeError::new_err(what));
    };
    let Ok(text) = text.to_str() else {
        let wrong = format!("{argument}: expected text that UTF-8 can carry, got {}", text.repr()?);
        return Err(PyValueError::new_err(wrong));
    };
    checked(argument, text)
}

/// A name that a store can keep and find again.
pub(super) fn checked<'a>(argument: &str, name: &'a str) -> PyResult<&'a str> {
    if name.len() > LONGEST_KEY {
        let wrong = format!("{argument}: expected at most {LONGEST_KEY} bytes, got {}", name.len());
        return Err(PyValueError::new_err(wrong));
    }
    if name.contains(BETWEEN) {
        // It stands between the tags of an entry.
        let shown = name.replace(BETWEEN, "\\x1f");
        let wrong = format!("{argument}: expected no control character \\x1f, got '{shown}'");
        return Err(PyValueError::new_err(wrong));
    }
    Ok(name)
}

/// Calls `body` with the text of a key: a short text is itself, anything else a digest that is
/// the same in every process.
pub(super) fn with_key<R>(
    key: &Bound<'_, PyAny>,
    body: impl FnOnce(&str) -> PyResult<R>,
) -> PyResult<R> {
    if let Ok(text) = key.cast::<PyString>()
        && let Ok(text) = text.to_str()
        && text.len() <= LONGEST_KEY
        && !text.starts_with(DIGEST)
    {
        return body(text);
    }
    let digest = with_encoder(false, |encoder| {
        let mut walker = Walker::new(encoder, Opaque::Refuse);
        walker.value(key).map_err(|failure| failure.within(|| "key".to_owned()))?;
        PyResult::Ok(format!("{DIGEST}{}", hex_digest(encoder.as_bytes())))
    })?;
    body(&digest)
}

/// Waits until no fork is under way. The hooks that other modules have before a fork come after
/// ours, and let threads run: what they begin then would be copied half-done into the child.
///
/// Not for ever: a hook may wait for this very thread.
pub(crate) fn after_forks(py: Python<'_>) -> PyResult<()> {
    for _ in 0..FORKING {
        if may_run() != Ok(false) {
            break;
        }
        py.detach(|| std::thread::sleep(LOOK));
        py.check_signals()?;
    }
    Ok(())
}

/// Opens the store that `options` describe; `options["kind"]` says which.
///
/// The options are what `_service_url.py` made of the URL, checked.
pub(super) fn open_tier(
    options: &Bound<'_, PyDict>,
    near: &Arc<Near>,
    clock: &Clock,
    notices: &Arc<Notices>,
    owed: &Arc<Owed>,
    outages: &Arc<Outages>,
) -> PyResult<Arc<dyn Tier>> {
    let kind: String = option(options, "kind")?;
    match kind.as_str() {
        "sqlite" => {
            let config = sqlite::Config {
                path: option::<PathBuf>(options, "path")?,
                max_bytes: option(options, "max_bytes")?,
                max_entries: option(options, "max_entries")?,
                lease: seconds(options, "lease_seconds")?,
                busy: seconds(options, "busy_seconds")?,
                readers: option(options, "readers")?,
            };
            after_forks(options.py())?;
            let path = config.path.display().to_string();
            let (near, notices, owed) = (Arc::clone(near), Arc::clone(notices), Arc::clone(owed));
            let tier = sqlite::SqliteTier::new(config, near, clock.clone(), notices, owed)
                .map_err(|_| ended())?;
            options.py().detach(|| tier.open()).map_err(|error| match error {
                OpenError::Unfit(why) => PyValueError::new_err(format!("url: {why}")),
                other if other.text().contains(&path) => {
                    PyOSError::new_err(format!("url: {}", other.text()))
                }
                other => PyOSError::new_err(format!("url: {path}: {}", other.text())),
            })?;
            Ok(Arc::new(tier))
        }
        "redis" => {
            let config = redis_config(options)?;
            let tier = redis::RedisTier::new(config, near, clock, notices, owed, outages);
            Ok(Arc::new(tier.map_err(|_| ended())?))
        }
        _ => Err(PyValueError::new_err(format!("url: no store of the kind {kind:?}"))),
    }
}

pub(crate) fn redis_config(options: &Bound<'_, PyDict>) -> PyResult<redis::Config> {
    type Pem = Option<Vec<u8>>;
    let mode = match option::<String>(options, "mode")?.as_str() {
        "sentinel" => redis::Mode::Sentinel(option(options, "master")?),
        "cluster" => redis::Mode::Cluster,
        _ => redis::Mode::Single,
    };
    let tls = option::<Option<(Pem, Pem, Pem)>>(options, "tls")?;
    let tls = tls.map(|(ca, cert, key)| redis::Tls { ca, own: cert.zip(key) });
    if let Some(Err(why)) = tls.as_ref().map(redis::Tls::check) {
        return Err(PyValueError::new_err(format!("ssl_ca_certs, ssl_certfile: {why}")));
    }
    Ok(redis::Config {
        servers: redis::Servers {
            tls,
            mode,
            nodes: option(options, "nodes")?,
            db: option(options, "db")?,
            username: option(options, "username")?,
            password: option(options, "password")?,
            sentinel_username: option(options, "sentinel_username")?,
            sentinel_password: option(options, "sentinel_password")?,
            timeout: seconds(options, "timeout_seconds")?,
        },
        prefix: option(options, "prefix")?,
        max_connections: option(options, "max_connections")?,
        lease: seconds(options, "lease_seconds")?,
    })
}

fn option<'py, T: FromPyObjectOwned<'py>>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    let value = options
        .get_item(name)?
        .ok_or_else(|| PyValueError::new_err(format!("url: {name} is missing")))?;
    value.extract().map_err(Into::into)
}

fn seconds(options: &Bound<'_, PyDict>, name: &str) -> PyResult<Duration> {
    let seconds: f64 = option(options, name)?;
    // For ever is a year: it is added to times.
    Ok(Duration::from_secs_f64(seconds.clamp(0.001, 31_536_000.0)))
}
