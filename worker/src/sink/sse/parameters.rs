//! The query parameters of an endpoint. A parameter that is unknown, or given twice, is refused: a client that spells
//! one wrong would get an answer to another question.

use axum::extract::Query;
use axum::http::Uri;
use litejoin_crds::complaint::near_or_allowed;

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads the query of a request, in which `allowed` may stand, or says what is wrong.
    pub(super) fn read(uri: &Uri, allowed: &[&str]) -> Result<Self, String> {
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|rejection| rejection.body_text())?;
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !allowed.contains(&name.as_str()) {
                let near = near_or_allowed(name, allowed, "");
                return Err(format!("there is no parameter {name:?} here{near}"));
            }
            if pairs[..index].iter().any(|(other, _)| other == name) {
                return Err(format!("{name}: is given twice; write it once"));
            }
        }
        Ok(Self(pairs))
    }

    /// Takes the value of a parameter, as text.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes the value of a parameter that `parse` reads; `allowed` says what that is.
    pub(super) fn parsed<T>(
        &mut self,
        name: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{name}: got {text:?}; allowed: {allowed}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_or_refused_by_name() {
        let read = |query: &str| {
            let uri: Uri = format!("/snapshot{query}").parse().unwrap();
            Parameters::read(&uri, &["join", "key", "minEpoch"]).map(|parameters| parameters.0)
        };
        let pairs = |pairs: &[(&str, &str)]| {
            Ok(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(read(""), pairs(&[]));
        assert_eq!(read("?join=a%26b&key="), pairs(&[("join", "a&b"), ("key", "")]));
        for (query, error) in [
            ("?min_epoch=3", "there is no parameter \"min_epoch\" here; did you mean \"minEpoch\"?"),
            ("?since=3", "there is no parameter \"since\" here; allowed: join, key, minEpoch"),
            ("?key=1&key=2", "key: is given twice; write it once"),
        ] {
            assert_eq!(read(query), Err(error.to_owned()));
        }
    }
}
