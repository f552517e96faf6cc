//! Addresses to listen on: `host:port`, or `:port` for every interface; port 0 lets the system choose.

use std::fmt;
use std::net::IpAddr;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or number of an interface, without the brackets of IPv6; `None` is every interface.
    pub host: Option<String>,
    /// 0 lets the system choose.
    pub port: u16,
}

impl Address {
    /// Reads an address; the error says what is wrong and what to write.
    pub fn parse(text: &str) -> Result<Address, String> {
        let wrong =
            || format!("got {text:?}, write host:port or :port, such as \":8080\" or \"127.0.0.1:8080\"");
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits(text) {
            return Err(format!("got {text:?}, which lacks a colon; write \":{text}\""));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(match text.contains(['/', ' ']) || text.is_empty() {
                true => wrong(),
                false => format!("got {text:?}, which lacks a port; write for example \"{text}:8080\""),
            });
        };
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!(
                "got {text:?}, an address has no scheme; write {rest:?} without {scheme}://"
            ));
        }
        if !digits(port) {
            return Err(wrong());
        }
        let Ok(port) = port.parse::<u16>() else {
            return Err(format!("got port {port}, allowed 0 to 65535"));
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner,
            None if host.contains(':') => {
                return Err(format!(
                    "got {text:?}, an IPv6 address needs brackets; write \"[{host}]:{port}\""
                ));
            }
            None => host,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if !host.chars().all(plain) {
            return Err(wrong());
        }
        Ok(Address { host: (!host.is_empty()).then(|| host.to_owned()), port })
    }

    /// Whether two listeners cannot have these addresses at once. A name is only compared as text, and a port
    /// that the system chooses meets no other.
    pub fn meets(&self, other: &Address) -> bool {
        self.port == other.port
            && self.port != 0
            && match (self.interface(), other.interface()) {
                (Some(one), Some(two)) => one == two,
                _ => true,
            }
    }

    /// Whether only programs of the same machine, or the same pod, can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host
            .as_deref()
            .is_some_and(|host| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()))
    }

    /// The interface, with names for the same thing made one; `None` is every interface.
    fn interface(&self) -> Option<String> {
        match self.host.as_deref()?.to_ascii_lowercase().as_str() {
            "0.0.0.0" | "::" => None,
            "localhost" => Some("127.0.0.1".to_owned()),
            host => Some(host.to_owned()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_deref() {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
            None => write!(f, ":{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [":8080", "127.0.0.1:0", "[::1]:65535", "db.internal:5432"] {
            assert_eq!(Address::parse(text).map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address_says_what_to_write() {
        let table = [
            ("8080", "got \"8080\", which lacks a colon; write \":8080\""),
            ("localhost", "got \"localhost\", which lacks a port; write for example \"localhost:8080\""),
            (":70000", "got port 70000, allowed 0 to 65535"),
            ("::1:80", "got \"::1:80\", an IPv6 address needs brackets; write \"[::1]:80\""),
            ("http://a:80", "got \"http://a:80\", an address has no scheme; write \"a:80\" without http://"),
            (":http", "got \":http\", write host:port or :port, such as \":8080\" or \"127.0.0.1:8080\""),
            ("", "got \"\", write host:port or :port, such as \":8080\" or \"127.0.0.1:8080\""),
        ];
        for (text, message) in table {
            assert_eq!(Address::parse(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn loopback_is_not_reached_from_elsewhere() {
        let table = [
            (":80", false),
            ("0.0.0.0:80", false),
            ("db.internal:80", false),
            ("localhost:80", true),
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
        ];
        for (text, loopback) in table {
            assert_eq!(Address::parse(text).unwrap().is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn every_interface_meets_each() {
        let meet = |one: &str, two: &str| Address::parse(one).unwrap().meets(&Address::parse(two).unwrap());
        assert!(meet(":80", "127.0.0.1:80"));
        assert!(meet("0.0.0.0:80", "[::]:80"));
        assert!(meet("localhost:80", "127.0.0.1:80"));
        assert!(!meet("10.0.0.1:80", "127.0.0.1:80"));
        assert!(!meet(":80", ":81"));
        assert!(!meet(":0", ":0"));
    }
}
