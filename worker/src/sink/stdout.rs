//! One JSON line a result on standard output.

use std::io::Write;

use tokio::sync::mpsc;

use super::{Delivery, Outcome, Outcomes, Sink};

/// Writes to standard output in a thread of its own, since its reader may stop reading.
pub(crate) struct Stdout {
    /// Rung once when there is no reader any more.
    closed: mpsc::Sender<()>,
}

impl Stdout {
    /// `closed` hears of it when standard output is closed, as by `| head`.
    pub(crate) fn new(closed: mpsc::Sender<()>) -> Self {
        Self { closed }
    }
}

impl Sink for Stdout {
    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a> {
        let mut text = String::with_capacity(results.iter().map(|result| result.json.len() + 1).sum());
        for result in results {
            text.push_str(&result.json);
            text.push('\n');
        }
        let count = results.len();
        let closed = self.closed.clone();
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
            })
            .await;
            let outcome = match written {
                Ok(Ok(())) => Outcome::Delivered,
                Ok(Err(error)) => {
                    if error.kind() == std::io::ErrorKind::BrokenPipe {
                        let _ = closed.try_send(());
                    }
                    Outcome::Failed(format!("could not write to standard output: {error}"))
                }
                Err(error) => Outcome::Failed(format!("could not write to standard output: {error}")),
            };
            vec![outcome; count]
        })
    }
}
