//! Where credentials are found: variables of the environment, and Secrets as files of a folder: `<secret>/<key>` as
//! Kubernetes mounts them, or `_gathered/<secret>..<key>` as an operator gathers them. They are looked up when a request is made, so one that is rotated is used from the next
//! request on, and none is kept in a plan, a log or an error.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

use litejoin_crds::credentials::{Credential, GATHERED_FOLDER, PemSource, SecretKeyRef, gathered_key};

/// All that a worker may look up.
#[derive(Default)]
pub(crate) struct Secrets {
    variables: BTreeMap<String, String>,
    folder: Option<PathBuf>,
}

/// A credential. It does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

/// Why a credential is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("the environment variable {name} is not set; set it where the worker is started")]
    Variable { name: String },
    #[error(
        "Secret {secret} cannot be looked up: the worker was started without --secrets-dir; give it the folder that \
         holds {secret}/{key}, or write env in place of secretKeyRef"
    )]
    NoFolder { secret: String, key: String },
    #[error("could not read {path}")]
    File { path: String, source: io::Error },
    #[error("{path} is no text")]
    NoText { path: String },
    #[error("{text:?} is no name of a file")]
    Name { text: String },
    #[error("neither secretKeyRef nor {other} is written")]
    Nothing { other: &'static str },
}

impl Secret {
    /// The credential itself, for the request that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl Secrets {
    pub(crate) fn new(
        variables: impl IntoIterator<Item = (String, String)>,
        folder: Option<PathBuf>,
    ) -> Self {
        Self { variables: variables.into_iter().collect(), folder }
    }

    /// Looks a credential up.
    pub(crate) fn credential(&self, credential: &Credential) -> Result<Secret, CredentialError> {
        match credential {
            Credential { secret_key_ref: Some(reference), .. } => self.key(reference),
            Credential { env: Some(text), .. } => self.fill_in(text).map(Secret),
            _ => Err(CredentialError::Nothing { other: "env" }),
        }
    }

    /// Reads a PEM text; a relative path is relative to the working directory.
    pub(crate) fn pem(&self, source: &PemSource) -> Result<Secret, CredentialError> {
        match source {
            PemSource { secret_key_ref: Some(reference), .. } => self.key(reference),
            PemSource { path: Some(path), .. } => read(Path::new(path)).map(Secret),
            _ => Err(CredentialError::Nothing { other: "path" }),
        }
    }

    /// Puts the values of environment variables in place of `${NAME}`. Anything else stays as it is.
    pub(crate) fn fill_in(&self, text: &str) -> Result<String, CredentialError> {
        let (mut filled, mut rest) = (String::with_capacity(text.len()), text);
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let name = after.split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
            let Some(name) = name else {
                filled.push_str("${");
                rest = after;
                continue;
            };
            let value = self.variables.get(name).filter(|value| !value.is_empty());
            filled.push_str(value.ok_or_else(|| CredentialError::Variable { name: name.to_owned() })?);
            rest = &after[name.len() + 1..];
        }
        filled.push_str(rest);
        Ok(filled)
    }

    /// The values that [`Self::fill_in`] puts into a text.
    pub(crate) fn values_in(&self, text: &str) -> Vec<Secret> {
        let names = text.split("${").skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name));
        names.filter_map(|name| self.variables.get(name).cloned().map(Secret)).collect()
    }

    /// The environment for a program that is not ours, and with it the keys of a Secret that are variables.
    pub(crate) fn environment(
        &self,
        secret: Option<&str>,
    ) -> Result<BTreeMap<String, String>, CredentialError> {
        let mut all = self.variables.clone();
        let Some(name) = secret else { return Ok(all) };
        let folder = self
            .folder
            .as_ref()
            .ok_or_else(|| CredentialError::NoFolder { secret: name.to_owned(), key: "…".to_owned() })?;
        let path = folder.join(name);
        let io = |source| CredentialError::File { path: path.display().to_string(), source };
        for entry in std::fs::read_dir(&path).map_err(io)? {
            let key = entry.map_err(io)?.file_name();
            // Kubernetes keeps its own folders beside the keys.
            if let Some(key) = key.to_str().filter(|key| is_name(key)) {
                let reference = SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
                all.insert(key.to_owned(), self.key(&reference)?.0);
            }
        }
        Ok(all)
    }

    /// A key of a Secret, without the line end that editors leave behind it.
    fn key(&self, reference: &SecretKeyRef) -> Result<Secret, CredentialError> {
        let SecretKeyRef { name, key } = reference;
        let folder = self
            .folder
            .as_ref()
            .ok_or_else(|| CredentialError::NoFolder { secret: name.clone(), key: key.clone() })?;
        for text in [name, key] {
            let mut parts = Path::new(text).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(CredentialError::Name { text: text.clone() });
            }
        }
        let (own, gathered) =
            (folder.join(name).join(key), folder.join(GATHERED_FOLDER).join(gathered_key(name, key)));
        let text = read(if gathered.exists() { &gathered } else { &own })?;
        Ok(Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn read(path: &Path) -> Result<String, CredentialError> {
    let shown = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| CredentialError::File { path: shown(), source })?;
    String::from_utf8(bytes).map_err(|_| CredentialError::NoText { path: shown() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_and_nothing_else_is_touched() {
        let secrets = Secrets::new([("A".to_owned(), "1".to_owned()), ("E".to_owned(), String::new())], None);
        for (text, filled) in [
            ("x", "x"),
            ("${A}", "1"),
            ("a${A}b${A}", "a1b1"),
            ("$A ${", "$A ${"),
            ("${1} ${a b}", "${1} ${a b}"),
        ] {
            assert_eq!(secrets.fill_in(text).unwrap(), filled, "{text}");
        }
        let values: Vec<String> =
            secrets.values_in("${ ${A}/${B}${A}").iter().map(|value| value.expose().to_owned()).collect();
        assert_eq!(values, ["1", "1"]);
        for text in ["${B}", "x${E}"] {
            let error = secrets.fill_in(text).unwrap_err();
            assert!(matches!(error, CredentialError::Variable { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn a_key_of_a_secret_is_a_file_and_stays_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("api")).unwrap();
        std::fs::write(folder.path().join("api/token"), "t0p\n").unwrap();
        let secrets = Secrets::new([], Some(folder.path().to_owned()));
        let key = |name: &str, key: &str| {
            let reference = SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
            secrets.credential(&Credential { secret_key_ref: Some(reference), env: None })
        };
        assert_eq!(key("api", "token").unwrap().expose(), "t0p");
        assert!(matches!(key("api", "other"), Err(CredentialError::File { .. })));
        assert!(matches!(key("..", "token"), Err(CredentialError::Name { .. })));
        assert!(matches!(key("api", "../api/token"), Err(CredentialError::Name { .. })));
        assert_eq!(format!("{:?}", key("api", "token").unwrap()), "***");
    }
}
