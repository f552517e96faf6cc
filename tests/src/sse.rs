//! A client of Server-Sent Events: <https://html.spec.whatwg.org/multipage/server-sent-events.html>, limited to the
//! parts that the worker uses.

use std::net::SocketAddr;

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::client::client;
use crate::results::Event;
use crate::wait::TIMEOUT;

/// A subscription over one connection.
pub struct Subscription {
    response: reqwest::Response,
    /// Bytes that were received but not parsed yet.
    buffer: Vec<u8>,
    /// The id of the last event with an id, which a client sends when it reconnects.
    pub last_event_id: Option<String>,
    /// Received comments: heartbeats.
    pub comments: u64,
    /// Whether the stream has ended.
    ended: bool,
}

/// An event as received.
#[derive(Debug, Clone, PartialEq)]
pub struct SseEvent {
    pub event: String,
    pub id: Option<String>,
    pub data: String,
}

impl SseEvent {
    /// Returns the result in the event.
    pub fn result(&self) -> Event {
        assert_eq!(self.event, "join_result", "{}", self.data);
        let event = Event::read(&self.data);
        if let Some(id) = &self.id {
            assert_eq!(*id, event.id, "the id of the event is the id of its result");
        }
        event
    }

    /// Returns the data as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }
}

impl Subscription {
    /// Subscribes with `query`, such as `join=enriched&replay=true`.
    pub async fn open(address: SocketAddr, query: &str, last_event_id: Option<&str>) -> Self {
        Self::try_open(address, query, last_event_id)
            .await
            .unwrap_or_else(|error| panic!("could not subscribe: {error:?}"))
    }

    /// Subscribes; returns an error if no server answers.
    pub async fn try_open(
        address: SocketAddr,
        query: &str,
        last_event_id: Option<&str>,
    ) -> Result<Self, reqwest::Error> {
        let mut request = client().get(format!("http://{address}/subscribe?{query}"));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.header("Accept", "text/event-stream").send().await?.error_for_status()?;
        let last_event_id = last_event_id.map(str::to_owned);
        Ok(Self { response, buffer: Vec::new(), last_event_id, comments: 0, ended: false })
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns the next event; `None` when the stream has ended.
    ///
    /// # Panics
    /// If neither happens in time.
    pub async fn next(&mut self) -> Option<SseEvent> {
        loop {
            while let Some(block) = self.take_block() {
                if let Some(event) = self.read(&block) {
                    return Some(event);
                }
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Returns the next event; panics if the stream has ended.
    pub async fn expect_next(&mut self) -> SseEvent {
        self.next().await.expect("the stream goes on")
    }

    /// Waits for the next heartbeat, and asserts that no event comes before it.
    pub async fn expect_comment(&mut self) {
        let before = self.comments;
        while self.comments == before {
            match self.take_block() {
                Some(block) => assert_eq!(self.read(&block), None, "nothing but a comment comes"),
                None => assert!(self.receive().await, "the stream goes on"),
            }
        }
    }

    /// Returns all events up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// Returns the state that a subscription with `replay=true` begins with, up to the `replayed` event.
    pub async fn replayed(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.expect_next().await;
            if event.event == "replayed" {
                return events;
            }
            events.push(event.result());
        }
    }

    async fn receive(&mut self) -> bool {
        if self.ended {
            return false;
        }
        let chunk = tokio::time::timeout(TIMEOUT, self.response.chunk()).await;
        match chunk.expect("an event, a heartbeat or the end comes") {
            Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
            // A client can't distinguish a broken stream from an ended one, and reconnects after both.
            Ok(None) | Err(_) => self.ended = true,
        }
        !self.ended
    }

    /// Removes and returns the lines up to the next empty one.
    fn take_block(&mut self) -> Option<String> {
        let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
        let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
        Some(String::from_utf8(block).expect("events are UTF-8"))
    }

    fn read(&mut self, block: &str) -> Option<SseEvent> {
        let (mut name, mut id, mut data) = (String::from("message"), None, Vec::new());
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.comments += 1,
                "event" => value.clone_into(&mut name),
                "id" => id = Some(value.to_owned()),
                "data" => data.push(value),
                "retry" => assert!(value.parse::<u32>().is_ok(), "milliseconds: {value}"),
                other => panic!("unknown field {other} in {block}"),
            }
        }
        if id.is_some() {
            self.last_event_id.clone_from(&id);
        }
        (!data.is_empty()).then(|| SseEvent { event: name, id, data: data.join("\n") })
    }
}
