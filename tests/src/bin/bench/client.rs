//! A client that costs little, since it shares the machine with the measured worker: requests are built in advance,
//! and blocking threads write them to plain sockets, one request at a time on each.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process;
use crate::row::Row;

/// How many requests are in flight, and their size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending {
    pub(crate) connections: usize,
    /// Messages in one body.
    pub(crate) batch: usize,
}

/// Requests by connection. All rows of a key use the same connection, so they arrive in order.
pub(crate) type Requests = Vec<Vec<Vec<u8>>>;

/// The cost and the outcome of sending.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// CPU time of the client.
    pub(crate) cpu: Duration,
    /// The epoch that contains all rows.
    pub(crate) epoch: u64,
}

/// Returns requests for all rows.
pub(crate) fn requests(rows: &[Row], sending: Sending, address: SocketAddr) -> Requests {
    let mut requests: Vec<Vec<&Row>> = vec![Vec::new(); sending.connections];
    for row in rows {
        let mut hasher = DefaultHasher::new();
        (row.topic, &row.key).hash(&mut hasher);
        let connection = hasher.finish() % sending.connections as u64;
        requests[usize::try_from(connection).expect("a small number")].push(row);
    }
    let of_connection =
        |rows: Vec<&Row>| rows.chunks(sending.batch).map(|rows| request(rows, address)).collect();
    requests.into_iter().map(of_connection).collect()
}

/// Returns one request.
pub(crate) fn request(rows: &[&Row], address: SocketAddr) -> Vec<u8> {
    let body = lines(rows.iter().copied());
    let mut request = format!(
        "POST /ingest HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(&body);
    request
}

/// Returns the rows as `{topic, key, payload}`, one a line.
pub(crate) fn lines<'r>(rows: impl IntoIterator<Item = &'r Row>) -> Vec<u8> {
    let mut lines = Vec::new();
    for Row { topic, key, payload } in rows {
        let payload = payload.as_deref().unwrap_or("null");
        // A write to memory does not fail.
        let _ = writeln!(lines, "{{\"topic\":\"{topic}\",\"key\":\"{key}\",\"payload\":{payload}}}");
    }
    lines
}

/// Sends all requests, and waits for every answer; returns an error for the first answer other than 200.
pub(crate) fn send_all(address: SocketAddr, requests: &Requests) -> Result<Sent> {
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            requests.iter().map(|requests| scope.spawn(move || send(address, requests))).collect();
        let mut all = Sent { cpu: Duration::ZERO, epoch: 0 };
        for client in clients {
            let sent = client.join().expect("a client does not panic")?;
            all = Sent { cpu: all.cpu + sent.cpu, epoch: all.epoch.max(sent.epoch) };
        }
        Ok(all)
    })
}

fn send(address: SocketAddr, requests: &[Vec<u8>]) -> Result<Sent> {
    let mut connection = Connection::open(address)?;
    let mut epoch = 0;
    for request in requests {
        epoch = epoch.max(connection.send(request)?);
    }
    Ok(Sent { cpu: process::thread_cpu_time()?, epoch })
}

/// A kept-alive connection.
pub(crate) struct Connection {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

#[derive(Deserialize)]
struct Accepted {
    epoch: u64,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("could not connect to {address}"))?;
        stream.set_nodelay(true)?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, answers })
    }

    /// Sends a request, waits for the answer, and returns the epoch that contains its messages.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<u64> {
        self.stream.write_all(request)?;
        let head = Head::read(&mut self.answers)?;
        let mut body = vec![0; head.length.context("the answer has no length")?];
        self.answers.read_exact(&mut body)?;
        if head.status != 200 {
            bail!("the worker has answered {}: {}", head.status, String::from_utf8_lossy(&body));
        }
        let accepted: Accepted = serde_json::from_slice(&body).context("the answer names no epoch")?;
        Ok(accepted.epoch)
    }
}

/// Gets a path; returns the status and the body. With HTTP/1.0 the worker closes the connection after the body and
/// does not send it in chunks.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, BufReader<TcpStream>)> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("could not connect to {address}"))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let head = Head::read(&mut answer)?;
    Ok((head.status, answer))
}

/// Gets a path as [`get`] does; returns the whole body.
pub(crate) fn get_all(address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>)> {
    let (status, mut answer) = get(address, path)?;
    let mut body = Vec::new();
    answer.read_to_end(&mut body).with_context(|| format!("{path} broke off"))?;
    Ok((status, body))
}

/// The status and headers of an answer.
struct Head {
    status: u16,
    length: Option<usize>,
}

impl Head {
    fn read(answers: &mut impl BufRead) -> Result<Self> {
        let mut line = String::new();
        let mut head: Option<Self> = None;
        loop {
            line.clear();
            if answers.read_line(&mut line)? == 0 {
                bail!("the worker has closed a connection");
            }
            let text = line.trim_end().to_ascii_lowercase();
            match &mut head {
                None => {
                    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
                    head = Some(Self { status: status.context("the answer has no status")?, length: None });
                }
                Some(head) if text.is_empty() => return Ok(Self { ..*head }),
                Some(head) => {
                    if let Some(length) = text.strip_prefix("content-length:") {
                        head.length = Some(length.trim().parse().context("the answer has no length")?);
                    }
                }
            }
        }
    }
}
