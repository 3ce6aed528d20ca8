//! Redis: a connection with what the URL says (user, password, database), and `PING`.

use std::time::Duration;

use redis::{Client, ErrorKind, RedisError, ServerErrorKind};

use super::Complaint;
use crate::config::runtime::{Origin, Resolved, file_of};
use crate::remote;

pub fn ask(url: &Resolved, limit: Duration) -> Option<Complaint> {
    ping(&url.value, limit).err().map(|error| complaint(&error, url, limit))
}

fn ping(url: &str, limit: Duration) -> Result<(), RedisError> {
    // Where other crates bring another implementation along, rustls does not choose; once chosen, it stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut connection = Client::open(url)?.get_connection_with_timeout(limit)?;
    connection.set_read_timeout(Some(limit))?;
    connection.set_write_timeout(Some(limit))?;
    redis::cmd("PING").query(&mut connection)
}

/// The library's own words are left out where they could repeat the URL.
fn complaint(error: &RedisError, url: &Resolved, limit: Duration) -> Complaint {
    let credential = match &url.origin {
        Origin::Credential(name) => Some(name.as_str()),
        Origin::Written | Origin::Variable(_) => None,
    };
    let place = match credential {
        Some(name) => format!("the URL in {}", file_of(name)),
        None => "`url`".to_owned(),
    };
    match (error.kind(), error.code()) {
        (ErrorKind::InvalidClientConfig, _) => Complaint::error("has a URL that Redis clients do not understand").help(
            format!("write {place} as redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]"),
        ),
        (_, Some("NOAUTH")) => Complaint::error("asks for a password").help(format!(
            "put redis://:PASSWORD@HOST into {}, mode 0600, and write url = \"credential:NAME\"",
            file_of(credential.unwrap_or("NAME"))
        )),
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => {
            Complaint::error("refuses the user or the password").help(format!("mend {place}"))
        }
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => {
            Complaint::error("is loading its data and does not serve yet").help("try again in a while")
        }
        _ if error.is_timeout() => Complaint::error(format!("does not answer: {}", remote::too_late(limit)))
            .help(format!("see that {place} is right, and that the server runs")),
        (ErrorKind::Io, _) => Complaint::error(format!("does not answer: {error}"))
            .help(format!("see that {place} is right, and that the server runs")),
        (_, Some(code)) => Complaint::error(format!("reports the error {code}")),
        _ => Complaint::error(format!("does not answer as Redis does: {}", error.category())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// The commands of RESP that a client sends, each with its arguments; `answer` gives the reply's bytes.
    fn serve(answer: fn(&[String]) -> &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(&stream);
                // Until the client leaves.
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

    fn said(url: &str, credential: Option<&str>) -> Option<String> {
        let url = Resolved {
            value: url.to_owned(),
            origin: match credential {
                Some(name) => Origin::Credential(name.to_owned()),
                None => Origin::Written,
            },
        };
        let complaint = ask(&url, LIMIT)?;
        Some(format!("{}; {}", complaint.message, complaint.help.unwrap_or_default()))
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
        assert_eq!(said(&format!("redis://:right@{address}"), Some("redis_url")), None);
        assert_eq!(
            said(&format!("redis://user:HUSH@{address}"), Some("redis_url")).unwrap(),
            "refuses the user or the password; mend the URL in /etc/links/credentials/redis_url"
        );
    }

    #[test]
    fn a_missing_password_is_told() {
        let address = serve(|_| "-NOAUTH Authentication required.\r\n");
        assert_eq!(
            said(&format!("redis://{address}"), None).unwrap(),
            "asks for a password; put redis://:PASSWORD@HOST into /etc/links/credentials/NAME, mode 0600, and write url = \
             \"credential:NAME\""
        );
    }

    #[test]
    fn what_is_no_redis_is_told() {
        let address = serve(|_| "HTTP/1.1 400 Bad Request\r\n\r\n");
        let told = said(&format!("redis://{address}"), None).unwrap();
        assert!(told.contains("as Redis does"), "{told}");
        let loading = serve(|command| match command[0].as_str() {
            "PING" => "-LOADING Redis is loading the dataset in memory\r\n",
            _ => "+OK\r\n",
        });
        let told = said(&format!("redis://{loading}"), None).unwrap();
        assert!(told.contains("loading its data"), "{told}");
    }

    #[test]
    fn what_does_not_speak_tls_is_told() {
        let address = serve(|_| "+PONG\r\n");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let leaves = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.accept().map(drop));
        for address in [address, leaves] {
            let told = said(&format!("rediss://:HUSH@{address}"), Some("r")).unwrap();
            assert!(told.starts_with("does not answer"), "{told}");
            assert!(!told.contains("HUSH"), "{told}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_is_not_repeated() {
        let told = said("redis://u:HUSH@", Some("r")).unwrap();
        assert!(told.contains("do not understand"), "{told}");
        assert!(!told.contains("HUSH"), "{told}");
    }
}
