//! A connection that no task of ours reads from.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

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
    pub(super) fn new(socket: TcpStream) -> Self {
        let socket = Arc::new(socket);
        Self { socket, taken: false, call: None, heard: Vec::new(), watch: Weak::new() }
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
            before.remove(self.socket.as_fd());
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
