//! Why a reconcile could not be finished. Time puts such errors right, so a reconcile is tried again. A mistake that
//! only the author of a document can put right is a complaint in its status instead.

/// Why a reconcile could not be finished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A call of the API that failed.
    #[error("could not {what}")]
    Api {
        /// The purpose of the call, such as `apply StatefulSet shop/orders`.
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
}

impl Error {
    /// One word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        let Error::Api { source, .. } = self;
        match source.as_ref() {
            kube::Error::Api(status) => match status.code {
                403 => "Forbidden",
                404 => "NotFound",
                409 => "Conflict",
                422 => "Invalid",
                429 => "TooManyRequests",
                500.. => "ServerError",
                _ => "Refused",
            },
            _ => "Unreachable",
        }
    }

    /// The API server's answer if it refused or failed; `None` if trying again is all that it asks for.
    pub(crate) fn answer(&self) -> Option<String> {
        let Error::Api { what, source } = self;
        match source.as_ref() {
            kube::Error::Api(status) if !matches!(status.code, 404 | 409 | 429) => {
                Some(format!("could not {what}: {}", status.message))
            }
            _ => None,
        }
    }
}

/// Adds to an error of the API what the call was for.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Api { what: what(), source: Box::new(source) })
    }
}
