//! Redis: connects with the user, password and database of the URL, and sends `PING`.

use std::time::Duration;

use redis::{Client, ErrorKind, RedisError, ServerErrorKind};

use super::diagnostic::Diagnostic;
use crate::remote;
use links_config::runtime::{Origin, Resolved, file_of};

pub fn ask(url: &Resolved, limit: Duration) -> Option<Diagnostic> {
    ping(&url.value, limit)
        .err()
        .map(|error| diagnostic(&error, url, limit))
}

fn ping(url: &str, limit: Duration) -> Result<(), RedisError> {
    // rustls does not choose a provider if the build contains several. The first choice stays, so an error means it is made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut connection = Client::open(url)?.get_connection_with_timeout(limit)?;
    connection.set_read_timeout(Some(limit))?;
    connection.set_write_timeout(Some(limit))?;
    redis::cmd("PING").query(&mut connection)
}

/// Leaves out the library's own message where it could quote the URL.
fn diagnostic(error: &RedisError, url: &Resolved, limit: Duration) -> Diagnostic {
    let credential = match &url.origin {
        Origin::Credential(name) => Some(name.as_str()),
        Origin::Written | Origin::Variable(_) => None,
    };
    let place = match credential {
        Some(name) => format!("the URL in {}", file_of(name)),
        None => "`url`".to_owned(),
    };
    match (error.kind(), error.code()) {
        (ErrorKind::InvalidClientConfig, _) => Diagnostic::error("has a URL that Redis clients do not understand")
            .help(format!(
                "write {place} as redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]"
            )),
        (_, Some("NOAUTH")) => Diagnostic::error("asks for a password").help(format!(
            "put redis://:PASSWORD@HOST into {}, mode 0600, and write url = \"credential:NAME\"",
            file_of(credential.unwrap_or("NAME"))
        )),
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => {
            Diagnostic::error("refuses the user or the password").help(format!("correct {place}"))
        }
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => {
            Diagnostic::error("is loading its data and does not serve yet").help("try again in a while")
        }
        _ if error.is_timeout() => Diagnostic::error(format!("does not answer: {}", remote::too_late(limit)))
            .help(format!("check that {place} is right and that the server runs")),
        (ErrorKind::Io, _) => Diagnostic::error(format!("does not answer: {error}"))
            .help(format!("check that {place} is right and that the server runs")),
        (_, Some(code)) => Diagnostic::error(format!("reports the error {code}")),
        _ => Diagnostic::error(format!("does not speak Redis's protocol: {}", error.category())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Serves RESP. `answer` gets each command with its arguments, and returns the bytes of the reply.
    fn serve(answer: fn(&[String]) -> &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(&stream);
                // The loop ends when the client closes the connection.
                while let Some(command) = read(&mut reader) {
                    if (&stream).write_all(answer(&command).as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        address
    }

    fn read(reader: &mut BufReader<&TcpStream>) -> Option<Vec<String>> {
        let number = |reader: &mut BufReader<&TcpStream>| {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            line.trim_end().get(1..)?.parse::<usize>().ok()
        };
        let count = number(reader)?;
        let mut words = vec![];
        for _ in 0..count {
            let mut word = vec![0; number(reader)? + 2];
            reader.read_exact(&mut word).ok()?;
            words.push(String::from_utf8(word).ok()?.trim_end().to_owned());
        }
        Some(words)
    }

    fn diagnose(url: &str, credential: Option<&str>) -> Option<String> {
        let url = Resolved {
            value: url.to_owned(),
            origin: match credential {
                Some(name) => Origin::Credential(name.to_owned()),
                None => Origin::Written,
            },
        };
        let diagnostic = ask(&url, LIMIT)?;
        Some(format!(
            "{}; {}",
            diagnostic.message,
            diagnostic.help.unwrap_or_default()
        ))
    }

    fn protected(command: &[String]) -> &'static str {
        match command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["AUTH", .., "right"] => "+OK\r\n",
            ["AUTH", ..] => "-WRONGPASS invalid username-password pair\r\n",
            ["CLIENT", ..] => "-NOAUTH Authentication required.\r\n",
            _ => "+PONG\r\n",
        }
    }

    #[test]
    fn the_password_of_the_url_is_used_and_never_repeated() {
        let address = serve(protected);
        assert_eq!(diagnose(&format!("redis://:right@{address}"), Some("redis_url")), None);
        assert_eq!(
            diagnose(&format!("redis://user:HUSH@{address}"), Some("redis_url")).unwrap(),
            "refuses the user or the password; correct the URL in /etc/links/credentials/redis_url"
        );
    }

    #[test]
    fn a_missing_password_is_reported() {
        let address = serve(|_| "-NOAUTH Authentication required.\r\n");
        assert_eq!(
            diagnose(&format!("redis://{address}"), None).unwrap(),
            "asks for a password; put redis://:PASSWORD@HOST into /etc/links/credentials/NAME, mode 0600, and write url = \
             \"credential:NAME\""
        );
    }

    #[test]
    fn a_server_that_is_not_redis_or_not_ready_is_reported() {
        let address = serve(|_| "HTTP/1.1 400 Bad Request\r\n\r\n");
        let diagnosis = diagnose(&format!("redis://{address}"), None).unwrap();
        assert!(diagnosis.contains("Redis's protocol"), "{diagnosis}");
        let loading = serve(|command| match command[0].as_str() {
            "PING" => "-LOADING Redis is loading the dataset in memory\r\n",
            _ => "+OK\r\n",
        });
        let diagnosis = diagnose(&format!("redis://{loading}"), None).unwrap();
        assert!(diagnosis.contains("loading its data"), "{diagnosis}");
    }

    #[test]
    fn a_server_without_tls_is_reported() {
        let address = serve(|_| "+PONG\r\n");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hangs_up = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.accept().map(drop));
        for address in [address, hangs_up] {
            let diagnosis = diagnose(&format!("rediss://:HUSH@{address}"), Some("r")).unwrap();
            assert!(diagnosis.starts_with("does not answer"), "{diagnosis}");
            assert!(!diagnosis.contains("HUSH"), "{diagnosis}");
        }
    }

    #[test]
    fn a_malformed_url_is_not_repeated() {
        let diagnosis = diagnose("redis://u:HUSH@", Some("r")).unwrap();
        assert!(diagnosis.contains("do not understand"), "{diagnosis}");
        assert!(!diagnosis.contains("HUSH"), "{diagnosis}");
    }
}
