//! How we reach a Kafka cluster: settings of a client, and what it tells of itself in words that help. Used by the source
//! and the sink; what either does with its client is theirs.

use std::sync::{Arc, Mutex, PoisonError};

use litejoin_crds::credentials::KafkaSaslMechanism;
use litejoin_crds::error::chain;
use litejoin_crds::plan::KafkaConnection;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext, Statistics};
use tracing::{debug, trace};

use crate::credentials::{CredentialError, Secrets};

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("kafka.{field}")]
    Credential { field: &'static str, source: CredentialError },
    /// Its text may repeat a setting, but none that holds a secret.
    #[error("the Kafka client does not take its settings ({detail}); check kafka.tls and kafka.sasl")]
    Settings { detail: String },
}

impl From<KafkaError> for ClientError {
    fn from(error: KafkaError) -> Self {
        let detail = match error {
            // The value that it does not like may be a key or a password.
            KafkaError::ClientConfig(_, _, setting, _) => format!("{setting} is not valid"),
            KafkaError::ClientCreation(text) => text,
            other => other.to_string(),
        };
        Self::Settings { detail }
    }
}

/// Settings that every client of a cluster has. Credentials are looked up each time, so a new client has new ones.
pub(crate) fn settings(connection: &KafkaConnection, secrets: &Secrets) -> Result<ClientConfig, ClientError> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", connection.brokers.join(","));
    config.set("client.id", "litejoin");
    // Brokers that are back are found soon, also after a long time.
    config.set("reconnect.backoff.max.ms", "2000");
    config.set("socket.connection.setup.timeout.ms", "10000");
    config.set("socket.keepalive.enable", "true");
    let protocol = match (&connection.sasl, &connection.tls) {
        (None, None) => "plaintext",
        (None, Some(_)) => "ssl",
        (Some(_), None) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(sasl) = &connection.sasl {
        let mechanism = match sasl.mechanism {
            KafkaSaslMechanism::Plain => "PLAIN",
            KafkaSaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            KafkaSaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config.set("sasl.mechanism", mechanism);
        for (field, setting, credential) in [
            ("sasl.username", "sasl.username", &sasl.username),
            ("sasl.password", "sasl.password", &sasl.password),
        ] {
            let secret = secrets.credential(credential);
            let secret = secret.map_err(|source| ClientError::Credential { field, source })?;
            config.set(setting, secret.expose());
        }
    }
    if let Some(tls) = &connection.tls {
        for (field, setting, pem) in [
            ("tls.ca", "ssl.ca.pem", &tls.ca),
            ("tls.cert", "ssl.certificate.pem", &tls.cert),
            ("tls.key", "ssl.key.pem", &tls.key),
        ] {
            if let Some(pem) = pem {
                let text = secrets.pem(pem).map_err(|source| ClientError::Credential { field, source })?;
                config.set(setting, text.expose());
            }
        }
        if tls.insecure_skip_verify {
            config.set("enable.ssl.certificate.verification", "false");
        }
    }
    Ok(config)
}

/// The events of a client between two calls; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<Heard>);

#[derive(Debug, Default)]
struct Heard {
    brokers: String,
    problem: Mutex<Option<KafkaProblem>>,
    statistics: Mutex<Option<Statistics>>,
}

/// A problem that keeps a client from its work, in words for the user who runs the pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KafkaProblem {
    pub(crate) text: String,
    /// Whether other credentials would help.
    pub(crate) is_refusal: bool,
}

impl Events {
    pub(crate) fn of(connection: &KafkaConnection) -> Self {
        Self(Arc::new(Heard { brokers: connection.brokers.join(","), ..Heard::default() }))
    }

    /// The last problem.
    pub(crate) fn problem(&self) -> Option<KafkaProblem> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what has gone wrong, since something went right.
    pub(crate) fn recovered(&self) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The newest statistics, once.
    pub(crate) fn statistics(&self) -> Option<Statistics> {
        self.0.statistics.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, code: Option<RDKafkaErrorCode>, reason: &str) {
        let mut problem = self.0.problem.lock().unwrap_or_else(PoisonError::into_inner);
        // The event that all brokers are down follows from the events of each.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) && problem.is_some() {
            return;
        }
        *problem = Some(explain(&self.0.brokers, code, reason));
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Lines that matter come as errors too, and are told where they can be acted on.
        match level {
            RDKafkaLogLevel::Debug => trace!(facility, message, "librdkafka"),
            _ => debug!(facility, message, "librdkafka"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        *self.0.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "the Kafka client tells of an error");
        self.note(error.rdkafka_error_code(), reason);
    }
}

impl ConsumerContext for Events {}

/// The mark of errors of OpenSSL.
const OF_OPENSSL: &str = ":SSL routines:";

/// Says what a client's error means for the user who runs the pipeline.
fn explain(brokers: &str, code: Option<RDKafkaErrorCode>, reason: &str) -> KafkaProblem {
    use RDKafkaErrorCode as Code;
    let reason = plain(reason);
    let code = match code {
        // librdkafka tells of one and the same handshake now in this way and now in that.
        Some(Code::BrokerTransportFailure) if reason.contains(OF_OPENSSL) => Some(Code::SSL),
        code => code,
    };
    let is_refusal = matches!(code, Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL));
    let text = match code {
        Some(Code::Authentication | Code::SaslAuthenticationFailed) => format!(
            "Kafka at {brokers} refuses our credentials ({reason}); check kafka.sasl: mechanism, username and password"
        ),
        Some(Code::SSL) => format!(
            "no TLS connection to Kafka at {brokers} ({reason}); check kafka.tls, and whether this is a port for TLS"
        ),
        Some(
            Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::MessageTimedOut,
        ) => format!(
            "Kafka at {brokers} does not answer ({reason}); check kafka.brokers, the network, and whether the port wants \
             TLS or credentials"
        ),
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
            format!("Kafka at {brokers} forbids this ({reason}); allow it to our user by an ACL")
        }
        _ => format!("Kafka at {brokers}: {reason}"),
    };
    KafkaProblem { text, is_refusal }
}

/// The reason without what differs from one attempt to the next, so that the same trouble is told once.
fn plain(reason: &str) -> &str {
    let end = ["(after ", ", (after "].iter().filter_map(|mark| reason.find(mark)).min();
    reason[..end.unwrap_or(reason.len())].trim_end_matches([' ', ',', ':'])
}

/// The problem behind an error of a call, with the events of the client meanwhile.
pub(crate) fn problem(events: &Events, error: &KafkaError) -> KafkaProblem {
    let known = events.problem();
    let code = error.rdkafka_error_code();
    match (code, known) {
        // A time-out says nothing; a problem that came meanwhile does.
        (
            Some(
                RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::MessageTimedOut
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown,
            ),
            Some(told),
        ) => told,
        _ => explain(&events.0.brokers, code, &chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use litejoin_crds::credentials::{ClientTls, Credential, KafkaSasl, PemSource};

    #[test]
    fn errors_say_what_to_do_and_the_same_trouble_is_the_same_text() {
        let text = |code, reason| explain("k:9092", Some(code), reason).text;
        assert_eq!(
            text(
                RDKafkaErrorCode::BrokerTransportFailure,
                "k:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 3ms in state \
                 CONNECT, 7 identical error(s) suppressed)"
            ),
            "Kafka at k:9092 does not answer (k:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection \
             refused); check kafka.brokers, the network, and whether the port wants TLS or credentials"
        );
        assert_eq!(
            text(RDKafkaErrorCode::Authentication, "invalid credentials (after 1ms in state AUTH_REQ)"),
            "Kafka at k:9092 refuses our credentials (invalid credentials); check kafka.sasl: mechanism, username and \
             password"
        );
        let handshake = "k:9092/bootstrap: error:0A000086:SSL routines::certificate verify failed";
        assert_eq!(
            text(RDKafkaErrorCode::BrokerTransportFailure, handshake),
            text(RDKafkaErrorCode::SSL, handshake)
        );
    }

    #[test]
    fn all_fields_of_a_connection_become_settings() {
        let folder = tempfile::tempdir().unwrap();
        let pem = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("pem of {name}")).unwrap();
            Some(PemSource { secret_key_ref: None, path: Some(path.display().to_string()) })
        };
        let env = |name: &str| Credential { secret_key_ref: None, env: Some(format!("${{{name}}}")) };
        let connection = KafkaConnection {
            brokers: vec!["a:1".to_owned(), "b:2".to_owned()],
            sasl: Some(KafkaSasl {
                mechanism: KafkaSaslMechanism::ScramSha512,
                username: env("U"),
                password: env("P"),
            }),
            tls: Some(ClientTls {
                ca: pem("ca"),
                cert: pem("cert"),
                key: pem("key"),
                server_name: None,
                insecure_skip_verify: true,
            }),
        };
        let variables = [("U", "me"), ("P", "s3cret")];
        let secrets = Secrets::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())), None);
        let config = settings(&connection, &secrets).unwrap();
        for (setting, expected) in [
            ("bootstrap.servers", "a:1,b:2"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "me"),
            ("sasl.password", "s3cret"),
            ("ssl.ca.pem", "pem of ca"),
            ("ssl.certificate.pem", "pem of cert"),
            ("ssl.key.pem", "pem of key"),
            ("enable.ssl.certificate.verification", "false"),
        ] {
            assert_eq!(config.get(setting), Some(expected), "{setting}");
        }
        let error = settings(&connection, &Secrets::default()).unwrap_err();
        assert_eq!(
            chain(&error),
            "kafka.sasl.username: the environment variable U is not set; set it where the worker is started"
        );
    }
}
