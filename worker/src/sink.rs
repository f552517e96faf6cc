//! Where results go. A sink that is written to implements [`Sink`] and leaves retries, order and dead letters
//! to [`crate::delivery`]; the SSE sink is read from instead, each client at its own pace.

use std::pin::Pin;

pub(crate) mod routes;
pub(crate) mod sse;
pub(crate) mod stdout;

/// A result on its way: what it is called and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    pub(crate) key: String,
    /// The whole result as one line of JSON.
    pub(crate) json: String,
}

/// What became of one result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    /// It may go through later.
    Failed(String),
    /// It never will as it is.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "standard output takes everything; other sinks will not")
    )]
    Refused(String),
}

/// Outcomes of a batch, one for each result, in its order.
pub(crate) type Outcomes<'a> = Pin<Box<dyn Future<Output = Vec<Outcome>> + Send + 'a>>;

/// A sink that results are written to.
pub(crate) trait Sink: Send + Sync {
    /// Delivers results in their order and says what became of each. A call may be given up at any await; what
    /// was not answered for is delivered again.
    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a>;
}
