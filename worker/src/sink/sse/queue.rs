//! The events that wait in memory for one client: bounded in number and in bytes. A feed that has more to send waits.

use std::sync::Arc;

use axum::response::sse::Event;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Events that wait.
const EVENTS_MAX: usize = 64;

/// Bytes of events that wait; one that is larger waits alone.
const BYTES_MAX: usize = 1 << 20;

/// Where a client's events go in.
pub(super) struct EventQueue {
    sender: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

/// An event and the room that it takes up.
pub(super) struct Queued {
    event: Event,
    _room: OwnedSemaphorePermit,
}

/// A queue, and where events come out of it.
pub(super) fn queue() -> (EventQueue, mpsc::Receiver<Queued>) {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    (EventQueue { sender, room: Arc::new(Semaphore::new(BYTES_MAX)) }, receiver)
}

impl EventQueue {
    /// Puts an event of so many bytes in, as soon as there is room. Returns `false` if the client has gone.
    pub(super) async fn send(&self, event: Event, bytes: usize) -> bool {
        let permits = u32::try_from(bytes.min(BYTES_MAX)).expect("that many bytes fit in 32 bits");
        // Events that had been waiting for a client that has gone make room too.
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let room = room.expect("the semaphore is never closed");
        self.sender.send(Queued { event, _room: room }).await.is_ok()
    }

    /// Returns when the client has gone.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl Queued {
    /// The event, on its way to the client.
    pub(super) fn take(self) -> Event {
        self.event
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn bytes_wait_for_room_and_the_largest_event_for_all_of_it() {
        let (queue, mut receiver) = queue();
        assert!(queue.send(Event::default(), BYTES_MAX / 2).await);
        let mut large = pin!(queue.send(Event::default(), 10 * BYTES_MAX));
        assert!(poll!(&mut large).is_pending());
        drop(receiver.recv().await);
        assert!(large.await);
        let mut small = pin!(queue.send(Event::default(), 1));
        assert!(poll!(&mut small).is_pending(), "the large one waits alone");
        drop(receiver);
        assert!(!small.await, "nobody is there to take it");
    }
}
