//! A client of `POST /ingest`.

use std::net::SocketAddr;

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};

use crate::client::client;
use crate::wait::TIMEOUT;

/// One http source.
#[derive(Clone)]
pub struct Ingest {
    url: String,
    client: reqwest::Client,
}

/// An answer of the source.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Ingest {
    pub fn new(address: SocketAddr) -> Self {
        Self { url: format!("http://{address}/ingest"), client: client() }
    }

    /// Posts a body; without a `content-type` header if `content_type` is `None`.
    pub async fn try_post(
        &self,
        content_type: Option<&str>,
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.post(&self.url).timeout(TIMEOUT).body(body);
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}: {error}: {text}"));
        Ok(Answer { status, headers, body })
    }

    /// Posts a body.
    ///
    /// # Panics
    /// If no answer comes.
    pub async fn post(&self, content_type: Option<&str>, body: impl Into<reqwest::Body>) -> Answer {
        let answer = self.try_post(content_type, body).await;
        answer.unwrap_or_else(|error| panic!("POST {}: {error:?}", self.url))
    }

    /// Posts messages as a JSON array.
    pub async fn try_send(&self, messages: &[Value]) -> Result<Answer, reqwest::Error> {
        self.try_post(Some("application/json"), Value::from(messages).to_string()).await
    }

    /// Posts messages as a JSON array, asserts that the source accepts them, and returns the epoch that contains them.
    pub async fn send(&self, messages: &[Value]) -> u64 {
        let answer = self.post(Some("application/json"), Value::from(messages).to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["accepted"], messages.len(), "{}", answer.body);
        answer.body["epoch"].as_u64().unwrap_or_else(|| panic!("no epoch: {}", answer.body))
    }

    /// Sends one message, as [`Self::send`] does.
    pub async fn put(&self, topic: &str, key: &str, payload: Value) -> u64 {
        self.send(&[message(topic, key, payload)]).await
    }
}

/// Returns a message; `null` as its payload deletes.
pub fn message(topic: &str, key: &str, payload: Value) -> Value {
    json!({"topic": topic, "key": key, "payload": payload})
}
