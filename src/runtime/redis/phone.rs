//! A connection that no task of ours reads from.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

use redis::{ConnectionAddr, Parser, Pipeline, RedisError, RedisResult, Value, cmd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::plan::Then;
use super::shared::Job;
use super::wire::Servers;
use crate::runtime::watch::{Source, Watch};

/// Read in one go.
const CHUNK: usize = 16 << 10;

/// What is kept of a buffer that was larger.
const KEPT: usize = 64 << 10;

/// One connection, with one request under way at most.
pub(super) struct Phone {
    pub(super) socket: Arc<TcpStream>,
    /// Tells it from those before and after it.
    pub(super) number: u64,
    pub(super) taken: bool,
    pub(super) call: Option<Call>,
    heard: Vec<u8>,
    /// The event loop that watches it; none if a thread does.
    pub(super) watch: Weak<Watch>,
}

/// A request under way.
pub(super) struct Call {
    pub(super) job: Job,
    pub(super) replies: usize,
    /// Who asked, to read itself if no loop does.
    pub(super) by: ThreadId,
    pub(super) then: Then,
}

/// Who reads the replies.
pub(super) enum Reader<'a> {
    Loop(&'a Arc<Watch>),
    Thread,
    Same,
}

pub(super) enum Heard {
    Part,
    All(Vec<Value>),
    /// It is of no use any more.
    Over,
}

impl Phone {
    pub(super) fn new(socket: TcpStream, number: u64) -> Self {
        let socket = Arc::new(socket);
        Self { socket, number, taken: false, call: None, heard: Vec::new(), watch: Weak::new() }
    }

    /// Hands the reading over; false if that fails.
    pub(super) fn watched_by(&mut self, reader: &Reader<'_>, source: &Weak<dyn Source>) -> bool {
        let watch = match reader {
            Reader::Same => return true,
            Reader::Loop(watch) => Arc::downgrade(watch),
            Reader::Thread => Weak::new(),
        };
        if self.watch.ptr_eq(&watch) {
            return true;
        }
        if let Some(before) = self.watch.upgrade() {
            before.remove(self.socket.as_fd(), source);
        }
        self.watch = watch;
        match reader {
            Reader::Loop(watch) => watch.add(self.socket.as_fd(), source).is_ok(),
            _ => true,
        }
    }

    /// Writes a request; false if it does not go out as a whole, at once.
    pub(super) fn write(&self, bytes: &[u8]) -> bool {
        matches!((&*self.socket).write(bytes), Ok(length) if length == bytes.len())
    }

    /// Ends the connection, and the wait of a thread that reads from it.
    pub(super) fn hang_up(self) -> Option<Job> {
        let _ = self.socket.shutdown(Shutdown::Both);
        self.call.map(|call| call.job)
    }

    /// Reads what there is.
    pub(super) fn listen(&mut self) -> Heard {
        loop {
            let length = self.heard.len();
            self.heard.resize(length + CHUNK, 0);
            let read = (&*self.socket).read(&mut self.heard[length..]);
            self.heard.truncate(length + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Heard::Over,
                Ok(CHUNK) => {}
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Heard::Over,
            }
        }
        let Some(call) = &self.call else {
            // Nobody has asked for it.
            return if self.heard.is_empty() { Heard::Part } else { Heard::Over };
        };
        if self.heard.len() < least(&self.heard) {
            return Heard::Part;
        }
        match parse(&self.heard, call.replies) {
            Ok(Some(values)) => {
                self.heard.clear();
                self.heard.shrink_to(KEPT);
                Heard::All(values)
            }
            Ok(None) => Heard::Part,
            Err(_) => Heard::Over,
        }
    }
}

/// How many bytes there have to be at least, as far as the first ones tell: a large value is not
/// to be parsed again with each part of it that comes.
fn least(bytes: &[u8]) -> usize {
    let line = |from: usize| {
        let rest = bytes.get(from..)?;
        let length = rest.windows(2).take(24).position(|end| end == b"\r\n")?;
        Some((&rest[..length], from + length + 2))
    };
    // `*2`, and the length of the value.
    let value = line(0).filter(|(array, _)| array.starts_with(b"*")).and_then(|(_, at)| line(at));
    let length = value.and_then(|(header, at)| {
        let digits = std::str::from_utf8(header.strip_prefix(b"$")?).ok()?;
        Some(at.saturating_add(digits.parse::<usize>().ok()?))
    });
    length.unwrap_or(0)
}

/// So many replies; `None` if they are not all there.
fn parse(bytes: &[u8], count: usize) -> RedisResult<Option<Vec<Value>>> {
    let (mut parser, mut rest) = (Parser::new(), bytes);
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        match parser.parse_value(&mut rest) {
            Ok(value) => values.push(value),
            // The bytes end too early.
            Err(error) if error.is_connection_dropped() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(values))
}

/// A connection to the server that requests go to, let in and ready.
pub(super) async fn connect(servers: &Servers, turn: usize) -> RedisResult<TcpStream> {
    let client = servers.client(turn).await?;
    let ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr() else {
        return Err(RedisError::from(std::io::Error::from(ErrorKind::Unsupported)));
    };
    let mut socket = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
    socket.set_nodelay(true)?;
    let mut hello = Pipeline::new();
    if let Some(password) = &servers.password {
        let mut auth = cmd("AUTH");
        hello.add_command(auth.arg(&servers.username).arg(password).take());
    }
    if servers.db != 0 {
        hello.add_command(cmd("SELECT").arg(servers.db).take());
    }
    // Redis 6 does not know it.
    hello.add_command(cmd("CLIENT").arg("SETINFO").arg("LIB-NAME").arg("ferrogate").take());
    socket.write_all(&hello.get_packed_pipeline()).await?;
    let mut heard = Vec::new();
    loop {
        if socket.read_buf(&mut heard).await? == 0 {
            return Err(RedisError::from(std::io::Error::from(ErrorKind::UnexpectedEof)));
        }
        if let Some(mut values) = parse(&heard, hello.len())? {
            values.pop();
            for value in values {
                value.extract_error()?;
            }
            return Ok(socket.into_std()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_reply_is_parsed_once_it_is_there() {
        let whole = [b"*2\r\n$300000\r\n".to_vec(), vec![b'x'; 300_000], b"\r\n".to_vec()].concat();
        for length in [0, 1, 3, 4, 5, 8] {
            assert_eq!(least(&whole[..length]), 0);
        }
        assert_eq!(least(&whole[..20]), 13 + 300_000);
        for other in
            [&b"$-1\r\n"[..], b"*2\r\n$-1\r\n$-1\r\n", b":1\r\n", b"-ERR no\r\n", b"*2\r\n$"]
        {
            assert_eq!(least(other), 0);
        }
        assert!(matches!(parse(&whole, 1), Ok(None)));
        let all = [&whole[..], b"$1\r\ng\r\n:-1\r\n"].concat();
        assert_eq!(parse(&all, 2).unwrap().unwrap().len(), 2);
    }
}
