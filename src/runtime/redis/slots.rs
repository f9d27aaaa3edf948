//! Which node of a Cluster has a key.

use redis::{Arg, Cmd, Value};

/// A host and a port.
pub(super) type Address = (String, u16);

/// So many slots a Cluster has.
pub(super) const COUNT: u16 = 16_384;

/// The slot of a key: of what is between its first braces, if there is anything.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let inside = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let end = rest.iter().position(|byte| *byte == b'}').filter(|end| *end > 0)?;
        Some(&rest[..end])
    });
    crc16(inside.unwrap_or(key)) % COUNT
}

/// XMODEM's.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ (u16::from(*byte) << 8), |sum, _| {
            if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 }
        })
    })
}

/// What a command is routed by: its first key, which for a script is the first of several.
pub(super) fn key_of(command: &Cmd) -> &[u8] {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let nth = if words.next() == Some(b"EVAL") { 2 } else { 0 };
    words.nth(nth).unwrap_or_default()
}

/// Ranges of slots, and the master of each, as the node at `from` sees it; empty if it is in no
/// Cluster (any more).
pub(super) fn view(reply: Value, from: &Address) -> Vec<(u16, u16, Address)> {
    let Value::Array(ranges) = reply else { return Vec::new() };
    let master = |node: &Value| {
        let Value::Array(parts) = node else { return None };
        let port = match parts.get(1) {
            Some(Value::Int(port)) => u16::try_from(*port).ok()?,
            _ => return None,
        };
        match parts.first() {
            Some(Value::BulkString(host)) if host == b"?" => None,
            Some(Value::BulkString(host)) if !host.is_empty() => {
                Some((String::from_utf8(host.clone()).ok()?, port))
            }
            // It does not know its own name: it is the one that was asked.
            _ => Some((from.0.clone(), port)),
        }
    };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), node, ..] = &parts[..] else { return None };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        (first <= last && last < COUNT).then_some(())?;
        Some((first, last, master(node)?))
    };
    ranges.iter().filter_map(range).collect()
}

/// Where a node sends us instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// For good.
    Moved(Address),
    /// For this once.
    Ask(Address),
    /// To itself, in a moment.
    Again,
    /// Somewhere; it does not know.
    Unknown,
}

/// Whether the node at `from` has sent us elsewhere.
pub(super) fn elsewhere(reply: &Value, from: &Address) -> Option<Elsewhere> {
    let Value::ServerError(error) = reply else { return None };
    let there = || {
        let (host, port) = error.details()?.split(' ').nth(1)?.rsplit_once(':')?;
        let host = if host.is_empty() { &from.0 } else { host };
        Some((host.to_owned(), port.parse().ok()?))
    };
    match error.code() {
        "MOVED" => Some(there().map_or(Elsewhere::Unknown, Elsewhere::Moved)),
        "ASK" => Some(there().map_or(Elsewhere::Unknown, Elsewhere::Ask)),
        "TRYAGAIN" => Some(Elsewhere::Again),
        "CLUSTERDOWN" | "MASTERDOWN" | "READONLY" => Some(Elsewhere::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::cluster_routing::Slot;
    use redis::{ServerError, cmd};

    use super::*;

    #[test]
    fn slots_are_those_of_everybody_else() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for key in ["", "a", "{ns:k}", "f:{ns:k}:lease", "x{}{a}", "}{", "{", "{{a}}", "ns:ö"] {
            assert_eq!(Slot::new(slot_of(key.as_bytes())), Some(Slot::for_key(key)), "{key}");
        }
    }

    #[test]
    fn commands_are_routed_by_their_first_key() {
        let mut script = cmd("EVAL");
        script.arg("return 1").arg(2).arg("first").arg("second").arg("more");
        assert_eq!(key_of(&script), b"first");
        assert_eq!(key_of(cmd("GET").arg("k")), b"k");
        assert_eq!(key_of(&cmd("PING")), b"");
    }

    fn node(host: Option<&str>, port: i64) -> Value {
        let host = host.map_or(Value::Nil, |host| Value::BulkString(host.into()));
        Value::Array(vec![host, Value::Int(port)])
    }

    #[test]
    fn a_view_is_read_with_care() {
        let range =
            |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let asked = ("seed".to_owned(), 1);
        let reply = Value::Array(vec![
            range(0, 5, node(Some("h"), 7)),
            range(6, 7, node(Some(""), 8)),
            range(8, 9, node(None, 9)),
            range(10, 11, node(Some("?"), 9)),
            range(0, 16_384, node(Some("h"), 7)),
            range(0, 5, Value::Nil),
            Value::Nil,
        ]);
        let seen = view(reply, &asked);
        let at = |host: &str, port| (host.to_owned(), port);
        assert_eq!(seen, [(0, 5, at("h", 7)), (6, 7, at("seed", 8)), (8, 9, at("seed", 9))]);
        assert!(view(Value::Nil, &asked).is_empty());
    }

    #[test]
    fn redirections_are_understood() {
        let asked = ("seed".to_owned(), 1);
        let said = |line: &str| {
            let error = redis::parse_redis_value(line.as_bytes());
            let Ok(Value::ServerError(error)) = error else { panic!("{error:?}") };
            let _: &ServerError = &error;
            elsewhere(&Value::ServerError(error), &asked)
        };
        let at = |host: &str, port| (host.to_owned(), port);
        assert_eq!(said("-MOVED 1 h:7\r\n"), Some(Elsewhere::Moved(at("h", 7))));
        assert_eq!(said("-MOVED 1 ::1:7\r\n"), Some(Elsewhere::Moved(at("::1", 7))));
        assert_eq!(said("-MOVED 1 :7\r\n"), Some(Elsewhere::Moved(at("seed", 7))));
        assert_eq!(said("-MOVED 1\r\n"), Some(Elsewhere::Unknown));
        assert_eq!(said("-ASK 1 h:7\r\n"), Some(Elsewhere::Ask(at("h", 7))));
        assert_eq!(said("-TRYAGAIN x\r\n"), Some(Elsewhere::Again));
        assert_eq!(said("-CLUSTERDOWN x\r\n"), Some(Elsewhere::Unknown));
        assert_eq!(said("-ERR x\r\n"), None);
        assert_eq!(elsewhere(&Value::Nil, &asked), None);
    }
}
