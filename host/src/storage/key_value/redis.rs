//! Key-value stores on a Redis server. As in Spin, all labels with the same URL share one store, and its keys are the server's
//! keys without a prefix.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{AsyncCommands as _, Client, ConnectionAddr, IntoConnectionInfo as _, RedisError, RedisResult};

use crate::bindings::key_value::Error;
use crate::http_client::causes;
use crate::storage::answer::{MAX_RESULT_BYTES, too_large};

/// How long a connection may take to establish.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a response may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sent data may stay unacknowledged before the connection counts as broken (TCP_USER_TIMEOUT, tcp(7)).
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a failed first connection attempt also counts for the callers that were waiting for it.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How many keys each SCAN command examines.
const SCAN_COUNT: usize = 1_000;

/// A Redis server.
pub struct Server {
    client: Client,
    /// The host and port, or the path of a Unix socket, for messages.
    shown: String,
    /// Established on first use. The manager reconnects by itself.
    connection: tokio::sync::Mutex<Option<ConnectionManager>>,
    /// The time and the reason of the last failed attempt to establish `connection`.
    failed: Mutex<Option<(Instant, String)>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redis at {}", self.shown)
    }
}

impl Server {
    /// # Errors
    /// The URL is invalid. The error does not quote it, since it may hold a password.
    pub fn new(url: &str) -> Result<Arc<Self>> {
        let schemes = ["redis://", "rediss://", "redis+unix://", "unix://"];
        ensure!(
            schemes.iter().any(|scheme| url.starts_with(scheme)),
            "url must begin with redis://, rediss:// (TLS) or redis+unix://"
        );
        // Without this, the kernel takes a quarter of an hour to notice that a server has vanished.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(USER_TIMEOUT);
        let info = url.into_connection_info().context("url is invalid")?;
        let info = info.set_tcp_settings(tcp);
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            // This fails only if a provider is already installed.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(Arc::new(Self {
            shown: info.addr().to_string(),
            client: Client::open(info).context("url is invalid")?,
            connection: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
        }))
    }

    fn error(&self, error: &RedisError) -> Error {
        Error::Other(format!("{self}: {}", causes(error)))
    }

    /// Connects if there is no connection yet. An existing connection is not checked.
    pub async fn open(&self) -> Result<(), Error> {
        self.connection().await.map(drop)
    }

    async fn connection(&self) -> Result<ConnectionManager, Error> {
        let connect = || async {
            // Callers queue for the lock below, so without this they would each wait for their own attempt, one by one.
            if let Some((at, problem)) = &*self.failed()
                && at.elapsed() < RETRY_PAUSE
            {
                return Err(Error::Other(problem.clone()));
            }
            // Retries are left to the component, which knows how long it can wait.
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(0)
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(RESPONSE_TIMEOUT));
            let connected = ConnectionManager::new_with_config(self.client.clone(), config).await;
            connected.map_err(|error| {
                let problem = format!("{self}: {}", causes(&error));
                *self.failed() = Some((Instant::now(), problem.clone()));
                Error::Other(problem)
            })
        };
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        let connection = connect().await?;
        *kept = Some(connection.clone());
        Ok(connection)
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<(Instant, String)>> {
        // Nothing that can panic happens under this lock.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Converts a command's result, and drops the connection if the manager would not replace it.
    async fn checked<T>(&self, result: RedisResult<T>) -> Result<T, Error> {
        if let Err(error) = &result
            && !error.is_io_error()
        {
            // The manager reconnects only after a network error, not if the password was refused or the server was still
            // loading.
            drop(self.connection.lock().await.take());
        }
        result.map_err(|error| self.error(&error))
    }

    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let value: Option<Vec<u8>> = self.checked(self.connection().await?.get(key).await).await?;
        if value.as_ref().map_or(0, Vec::len) > MAX_RESULT_BYTES {
            return Err(too_large().into());
        }
        Ok(value)
    }

    pub async fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.checked(self.connection().await?.set(key, value).await).await
    }

    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        self.checked(self.connection().await?.del(key).await).await
    }

    pub async fn exists(&self, key: &str) -> Result<bool, Error> {
        self.checked(self.connection().await?.exists(key).await).await
    }

    /// Returns all keys, each once. Keys that are set or deleted during the scan may be missing (SCAN guarantees no more).
    pub async fn keys(&self) -> Result<Vec<String>, Error> {
        let mut connection = self.connection().await?;
        let (mut keys, mut bytes) = (Vec::new(), 0);
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("COUNT").arg(SCAN_COUNT);
            let (next, some): (u64, Vec<String>) = self.checked(scan.query_async(&mut connection).await).await?;
            bytes += some.iter().map(|key| size_of::<String>() + key.len()).sum::<usize>();
            if bytes > MAX_RESULT_BYTES {
                return Err(too_large().into());
            }
            keys.extend(some);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        match result {
            Err(Error::Other(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn displayed_servers_and_errors_hide_the_password() {
        for (url, shown) in [
            ("redis://kv.example", "Redis at kv.example:6379"),
            ("redis://user:s3cret@kv.example:7000/2", "Redis at kv.example:7000"),
            ("rediss://:s3cret@kv.example", "Redis at kv.example:6379"),
            ("redis+unix:///run/redis.sock?pass=s3cret", "Redis at /run/redis.sock"),
        ] {
            let server = Server::new(url).unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(format!("{server:?}"), shown);
        }
        for bad in [
            "http://:s3cret@kv",
            "redis://:s3cret@kv:x",
            "redis://:s3cret@kv/x",
            "s3cret",
        ] {
            let error = format!("{:?}", Server::new(bad).unwrap_err());
            assert!(error.contains("url") && !error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_reported_with_the_host() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let server = Server::new(&format!("redis://:s3cret@{free}")).unwrap();
        let begin = Instant::now();
        for _ in 0..3 {
            let error = message(server.get("a").await);
            assert!(
                error.contains(&free.to_string()) && error.contains("refused"),
                "{error}"
            );
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(begin.elapsed() < CONNECT_TIMEOUT, "{:?}", begin.elapsed());
    }

    /// Responds to each command with the result of `answer`, until that is none. Commands that set up a connection get OK.
    async fn serve(mut stream: TcpStream, mut answer: impl FnMut(&[String]) -> Option<String>) {
        let mut bytes = Vec::new();
        while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
            while let Some(words) = command(&mut bytes) {
                let answer = match words[0].as_str() {
                    "CLIENT" | "AUTH" | "SELECT" | "PING" => Some("+OK\r\n".to_owned()),
                    _ => answer(&words),
                };
                let Some(answer) = answer else { return };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    }

    /// Removes the first command if it is complete. Commands are arrays of strings: *2 $3 GET $1 a.
    fn command(bytes: &mut Vec<u8>) -> Option<Vec<String>> {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let mut lines = text.split_inclusive("\r\n").map(|line| line.strip_suffix("\r\n"));
        let count: usize = lines.next()??.strip_prefix('*').unwrap().parse().unwrap();
        let mut words = Vec::new();
        let mut length = count.to_string().len() + 3;
        for _ in 0..count {
            let (size, word) = (lines.next()??, lines.next()??);
            length += size.len() + word.len() + 4;
            words.push(word.to_owned());
        }
        bytes.drain(..length);
        Some(words)
    }

    #[tokio::test]
    async fn a_broken_connection_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::new(&format!("redis://{}", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(async move {
            for round in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                // The first connection is closed at the second command.
                let mut left = if round == 0 { 1 } else { u32::MAX };
                serve(stream, |_| {
                    left = left.checked_sub(1)?;
                    Some(format!("$1\r\n{round}\r\n"))
                })
                .await;
            }
        });
        assert_eq!(server.get("a").await.unwrap(), Some(b"0".to_vec()));
        assert!(server.get("a").await.is_err());
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.get("a").await.ok().flatten() != Some(b"1".to_vec()) {
            assert!(Instant::now() < deadline, "there is no new connection");
        }
    }

    #[tokio::test]
    async fn keys_are_scanned_in_parts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::new(&format!("redis://{}", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, |words| {
                Some(match words[1].as_str() {
                    "0" => "*2\r\n$1\r\n7\r\n*2\r\n$1\r\nb\r\n$1\r\na\r\n".to_owned(),
                    "7" => "*2\r\n$1\r\n0\r\n*2\r\n$1\r\nb\r\n$1\r\nc\r\n".to_owned(),
                    other => format!("-ERR {other}\r\n"),
                })
            })
            .await;
        });
        assert_eq!(server.keys().await.unwrap(), ["a", "b", "c"]);
    }
}
