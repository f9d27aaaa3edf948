//! Connections: to one server, to the master that Sentinels name, to a Cluster.

use std::sync::Arc;
use std::time::Duration;

use redis::TlsMode;
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult,
    TlsCertificates, Value, cmd,
};

use super::driver::why;
use super::nodes::Nodes;
use super::scripts;
use super::slots::Address;
use crate::runtime::tier::TierError;

/// Which servers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One server.
    Single,
    /// Sentinels, which know the master of that name.
    Sentinel(String),
    /// Nodes of a Cluster.
    Cluster,
}

/// Where Redis is, and how to be let in.
#[derive(Clone)]
pub struct Servers {
    /// Which servers there are.
    pub mode: Mode,
    /// Hosts and ports.
    pub nodes: Vec<(String, u16)>,
    /// The number of the database.
    pub db: i64,
    /// The ACL user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The ACL user of the Sentinels.
    pub sentinel_username: Option<String>,
    /// Their password, which is not that of the servers.
    pub sentinel_password: Option<String>,
    /// Whom to trust, if the way is encrypted.
    pub tls: Option<Tls>,
    /// How long connecting may take.
    pub timeout: Duration,
}

/// Certificates as PEM.
#[derive(Clone)]
pub struct Tls {
    /// Who may sign the server's; the system's own if there is none.
    pub ca: Option<Vec<u8>>,
    /// Ours and its key, for a server that asks.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    fn certificates(&self) -> TlsCertificates {
        let own = self.own.clone();
        TlsCertificates {
            client_tls: own
                .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: self.ca.clone(),
        }
    }

    /// Whether they are what they should be.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check(&self) -> Result<(), String> {
        let node = ConnectionAddr::TcpTls {
            host: "localhost".into(),
            port: 1,
            insecure: false,
            tls_params: None,
        };
        let built = Client::build_with_tls(node, self.certificates());
        built.map(drop).map_err(|error| error.to_string())
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the password.
        f.debug_struct("Servers")
            .field("mode", &self.mode)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl Servers {
    fn address(&self, (host, port): &(String, u16)) -> ConnectionAddr {
        let (host, port) = (host.clone(), *port);
        match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        }
    }

    fn info(&self, node: &(String, u16)) -> RedisResult<ConnectionInfo> {
        Ok(self.address(node).into_connection_info()?.set_redis_settings(self.settings()))
    }

    fn settings(&self) -> RedisConnectionInfo {
        let mut settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("ferrogate", env!("CARGO_PKG_VERSION"))
            .set_db(self.db);
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        settings
    }

    fn config(&self) -> AsyncConnectionConfig {
        // Replies are waited for by whoever knows the request's deadline.
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(None)
    }

    /// A client of the server to talk to; the `turn` says whom to ask first.
    pub(super) async fn client(&self, turn: usize) -> RedisResult<Client> {
        let first = turn % self.nodes.len();
        match &self.mode {
            Mode::Sentinel(name) => {
                // One that hangs uses up the time of an attempt.
                let nodes = self.nodes.iter().cycle().skip(first).take(self.nodes.len());
                let nodes = nodes.map(|node| self.address(node));
                let kind = SentinelServerType::Master;
                let mut builder = SentinelClientBuilder::new(nodes, name, kind)?
                    .set_client_to_redis_db(self.db)
                    .set_client_to_redis_protocol(ProtocolVersion::RESP3);
                if let Some(username) = &self.username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = &self.password {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(username) = &self.sentinel_username {
                    builder = builder.set_client_to_sentinel_username(username);
                }
                if let Some(password) = &self.sentinel_password {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                if let Some(tls) = &self.tls {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(tls.certificates())
                        .set_client_to_sentinel_certificates(tls.certificates());
                }
                builder.build()?.async_get_client().await
            }
            Mode::Single | Mode::Cluster => self.client_of(&self.nodes[first]),
        }
    }

    fn client_of(&self, node: &Address) -> RedisResult<Client> {
        let info = self.info(node)?;
        match &self.tls {
            None => Client::open(info),
            Some(tls) => Client::build_with_tls(info, tls.certificates()),
        }
    }

    /// Opens a connection for requests.
    pub(super) async fn open(&self, turn: usize) -> RedisResult<Wire> {
        let client = self.client(turn).await?;
        let mut one = client.get_multiplexed_async_connection_with_config(&self.config()).await?;
        let mut load = Pipeline::new();
        for script in scripts::all() {
            load.add_command(cmd("SCRIPT").arg("LOAD").arg(script.source).take());
        }
        let loaded = one.send_packed_commands(&load, 0, load.len()).await?;
        for reply in loaded {
            reply.extract_error()?;
        }
        Ok(Wire::One(one))
    }

    /// Opens a connection to a node of a Cluster, which is sent the source of scripts.
    pub(super) async fn open_node(&self, node: &Address) -> RedisResult<MultiplexedConnection> {
        let client = self.client_of(node)?;
        client.get_multiplexed_async_connection_with_config(&self.config()).await
    }

    /// Opens a connection that hears what is published on `channels`; the `node` is one of a
    /// Cluster.
    pub(super) async fn listen(
        &self,
        turn: usize,
        node: Option<&Address>,
        channels: &[&str],
        ear: impl AsyncPushSender,
    ) -> RedisResult<MultiplexedConnection> {
        let client = match node {
            Some(node) => self.client_of(node)?,
            None => self.client(turn).await?,
        };
        let config = self.config().set_push_sender(ear);
        let mut one = client.get_multiplexed_async_connection_with_config(&config).await?;
        one.subscribe(channels).await?;
        Ok(one)
    }
}

/// A connection for requests, or one to each node.
#[derive(Clone)]
pub(super) enum Wire {
    One(MultiplexedConnection),
    Cluster(Arc<Nodes>),
}

impl Wire {
    /// The replies to all commands, errors of the server among them.
    pub(super) async fn send(&mut self, commands: Vec<Cmd>) -> Result<Vec<Value>, TierError> {
        let count = commands.len();
        match self {
            _ if count == 0 => Ok(Vec::new()),
            Self::One(one) => {
                let mut pipeline = Pipeline::with_capacity(count);
                for command in commands {
                    pipeline.add_command(command);
                }
                one.send_packed_commands(&pipeline, 0, count).await.map_err(|error| why(&error))
            }
            Self::Cluster(nodes) => nodes.send(commands).await,
        }
    }
}

/// What a node refused is a reply like any other.
pub(super) fn inline(reply: RedisResult<Value>) -> RedisResult<Value> {
    reply.or_else(|error: RedisError| match error.try_into() {
        Ok(refused) => Ok(Value::ServerError(refused)),
        Err(error) => Err(error),
    })
}
