//! A client that costs little, since it shares the machine with what it measures: requests are made beforehand,
//! and blocking threads write them to plain sockets, one request at a time on each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workload::Row;

/// Makes requests of `batch` rows each.
pub(crate) fn requests(rows: &[Row], batch: usize, addr: &str) -> Vec<Vec<u8>> {
    rows.chunks(batch)
        .map(|rows| {
            let body = lines(rows);
            let mut request = format!(
                "POST /ingest HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/x-ndjson\r\n\
                 content-length: {}\r\n\r\n",
                body.len()
            )
            .into_bytes();
            request.extend_from_slice(&body);
            request
        })
        .collect()
}

/// The rows as `{topic, key, payload}`, one a line.
pub(crate) fn lines(rows: &[Row]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(rows.len() * 256);
    for row in rows {
        let (topic, key, payload) = (row.topic.name(), &row.key, &row.payload);
        lines.extend_from_slice(
            format!("{{\"topic\":\"{topic}\",\"key\":\"{key}\",\"payload\":{payload}}}\n").as_bytes(),
        );
    }
    lines
}

/// Sends all requests over `connections` sockets, in their order but for those on their way at the same time, and
/// waits for every answer; the first that is not 200 is an error. Returns the CPU time of the client.
pub(crate) fn send_all(addr: &str, connections: usize, requests: &[Vec<u8>]) -> Result<Duration> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..connections).map(|_| scope.spawn(|| send_some(addr, requests, &next))).collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).sum()
    })
}

fn send_some(addr: &str, requests: &[Vec<u8>], next: &AtomicUsize) -> Result<Duration> {
    let mut stream = TcpStream::connect(addr).with_context(|| format!("could not connect to {addr}"))?;
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        stream.write_all(request)?;
        answer(&mut answers, &mut line)?;
    }
    process::thread_cpu_time()
}

/// Reads one answer.
fn answer(answers: &mut BufReader<TcpStream>, line: &mut String) -> Result<()> {
    let mut length = 0;
    let mut accepted = false;
    for n in 0.. {
        line.clear();
        if answers.read_line(line)? == 0 {
            bail!("the worker has closed a connection");
        }
        let text = line.trim_end().to_ascii_lowercase();
        if n == 0 {
            accepted = text.contains(" 200 ");
        } else if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse().context("the answer has no length")?;
        } else if text.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    answers.read_exact(&mut body)?;
    if !accepted {
        bail!("the worker has answered {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}
