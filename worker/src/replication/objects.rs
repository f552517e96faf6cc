//! The small objects beside Litestream's files: claims, births, READY, restore points. Every call ends within a bounded time, so
//! a store that hangs is an error like any other. Objects are whole or not there, and none is larger than a page.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::{StreamExt, TryStreamExt};
use litejoin_crds::plan::{Encryption, Replication};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

use super::config::SSE_CUSTOMER_KEY_PATH;
use super::listing::Listing;
use super::location::{Backend, ReplicaLocation};
use super::sftp::Sftp;
use crate::blocking::blocking;
use crate::fault;

/// For one call with its retries; a store that does not answer by then is taken for one that is away.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// To be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Bytes of an object of ours at most.
const OBJECT_BYTES_MAX: usize = 1 << 20;

/// Length of a key by which S3 encrypts.
const KEY_BYTES: usize = 32;

/// The words of S3 stores for a request whose time is more than a quarter of an hour off, whatever its code.
const CLOCK_REFUSAL: &str = "difference between the request time and the";

/// Why a store gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectsError {
    #[error("{place}: {problem}")]
    Settings { place: String, problem: String },
    #[error("{place}: could not {doing}")]
    Failed { place: String, doing: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "{place}: could not {doing}: the clocks of the store and of this machine differ by too much; set the one that is \
         wrong"
    )]
    Clock { place: String, doing: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{place}: could not {doing}: no answer within {} s; see whether the store is up and the endpoint right", CALL_TIMEOUT.as_secs())]
    Hangs { place: String, doing: String },
}

/// The objects below a location.
#[derive(Clone)]
pub(crate) struct Objects {
    location: ReplicaLocation,
    store: StoreClient,
}

#[derive(Clone)]
enum StoreClient {
    /// A store that [`object_store`] speaks with.
    Cloud(Arc<dyn ObjectStore>),
    /// A folder of this machine; made with the first object.
    Folder(PathBuf),
    Sftp(Arc<Sftp>),
}

/// Something that went wrong inside one call.
type StoreProblem = Box<dyn std::error::Error + Send + Sync>;

impl Objects {
    /// Opens the store of a location; nothing is sent yet.
    pub(crate) fn open(
        location: &ReplicaLocation,
        replication: &Replication,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, ObjectsError> {
        let settings = |problem: String| ObjectsError::Settings { place: location.to_string(), problem };
        let store = match &location.backend {
            Backend::S3 { bucket } => {
                StoreClient::Cloud(s3(bucket, replication, environment).map_err(settings)?)
            }
            Backend::Gcs { bucket } => StoreClient::Cloud(gcs(bucket, environment).map_err(settings)?),
            Backend::Abs { account, container } => {
                let account = account.as_deref();
                StoreClient::Cloud(abs(account, container, replication, environment).map_err(settings)?)
            }
            Backend::Sftp { host, port, user } => {
                StoreClient::Sftp(Arc::new(Sftp::new(host, *port, user.as_deref(), environment)))
            }
            Backend::File => StoreClient::Folder(location.folder()),
        };
        Ok(Self { location: location.clone(), store })
    }

    /// The content of an object; `None` if there is none of that name.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ObjectsError> {
        self.call(&format!("read {name}"), async {
            match &self.store {
                StoreClient::Cloud(store) => read(store.as_ref(), &self.key(name)).await,
                StoreClient::Folder(folder) => match local(folder)? {
                    Some(store) => read(&store, &Path::from(name)).await,
                    None => Ok(None),
                },
                StoreClient::Sftp(sftp) => Ok(sftp.get(&self.path(name)).await?),
            }
        })
        .await
    }

    /// Writes an object, in place of one that was there.
    pub(crate) async fn put(&self, name: &str, content: Vec<u8>) -> Result<(), ObjectsError> {
        self.call(&format!("write {name}"), async {
            match &self.store {
                StoreClient::Cloud(store) => {
                    store.put(&self.key(name), content.into()).await?;
                }
                StoreClient::Folder(folder) => {
                    std::fs::create_dir_all(folder)?;
                    let store = LocalFileSystem::new_with_prefix(folder)?;
                    store.put(&Path::from(name), content.into()).await?;
                }
                StoreClient::Sftp(sftp) => sftp.put(&self.path(name), &content).await?,
            }
            Ok(())
        })
        .await
    }

    /// The names directly below a folder, `""` being the whole.
    pub(crate) async fn list(&self, folder_name: &str) -> Result<Listing, ObjectsError> {
        self.call("list what is there", async {
            match &self.store {
                StoreClient::Cloud(store) => list(store.as_ref(), &self.key(folder_name)).await,
                StoreClient::Folder(folder) => match local(folder)? {
                    Some(store) => list(&store, &Path::from(folder_name)).await,
                    None => Ok(Listing::default()),
                },
                StoreClient::Sftp(sftp) => Ok(sftp.list(&self.path(folder_name)).await?),
            }
        })
        .await
    }

    /// Removes a folder with all that is in it: the object `first` before all others, and `last` after them. Folders may
    /// be large, so each step is bounded and the whole is not; what is cut off can be begun again.
    pub(crate) async fn remove(
        &self,
        folder_name: &str,
        first: &str,
        last: &str,
    ) -> Result<(), ObjectsError> {
        self.remove_object(&format!("{folder_name}/{first}")).await?;
        // In a thread that a test may hold.
        blocking(|| fault::point("removal-begun")).await;
        let doing = format!("remove {folder_name}");
        match &self.store {
            StoreClient::Cloud(store) => {
                let last_key = self.key(&format!("{folder_name}/{last}"));
                let found = store.list(Some(&self.key(folder_name))).map_ok(|object| object.location);
                let others = found.try_filter(move |key| std::future::ready(*key != last_key));
                let mut removed = store.delete_stream(others.boxed());
                let mut is_left = true;
                while is_left {
                    let next = async { Ok(removed.try_next().await?.is_some()) };
                    is_left = self.call(&doing, next).await?;
                }
                self.remove_object(&format!("{folder_name}/{last}")).await
            }
            StoreClient::Folder(folder) => {
                let folder = folder.join(folder_name);
                let removed = blocking(move || remove_folders_first(&folder)).await;
                removed.map_err(|error| self.failed(&doing, error.into()))
            }
            StoreClient::Sftp(sftp) => {
                let removed = sftp.remove(&self.path(folder_name), last).await;
                removed.map_err(|error| self.failed(&doing, error.into()))
            }
        }
    }

    /// Removes an object, if it is there.
    async fn remove_object(&self, name: &str) -> Result<(), ObjectsError> {
        self.call(&format!("remove {name}"), async {
            match &self.store {
                StoreClient::Cloud(store) => match store.delete(&self.key(name)).await {
                    Err(object_store::Error::NotFound { .. }) => Ok(()),
                    outcome => Ok(outcome?),
                },
                StoreClient::Folder(folder) => match std::fs::remove_file(folder.join(name)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                },
                StoreClient::Sftp(sftp) => Ok(sftp.remove_file(&self.path(name)).await?),
            }
        })
        .await
    }

    async fn call<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, StoreProblem>>,
    ) -> Result<T, ObjectsError> {
        match tokio::time::timeout(CALL_TIMEOUT, work).await {
            Ok(outcome) => outcome.map_err(|source| self.failed(doing, source)),
            Err(_) => Err(ObjectsError::Hangs { place: self.location.to_string(), doing: doing.to_owned() }),
        }
    }

    fn failed(&self, doing: &str, source: StoreProblem) -> ObjectsError {
        let (place, doing) = (self.location.to_string(), doing.to_owned());
        if source.to_string().contains(CLOCK_REFUSAL) {
            return ObjectsError::Clock { place, doing, source };
        }
        ObjectsError::Failed { place, doing, source }
    }

    fn key(&self, name: &str) -> Path {
        Path::from(self.location.join(name).path)
    }

    fn path(&self, name: &str) -> String {
        format!("/{}", self.location.join(name).path)
    }
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(true)
}

fn retries() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: CALL_TIMEOUT / 2, ..RetryConfig::default() }
}

/// The variables that a client knows by their names, in lower case: those with its prefix.
fn variables<'e>(
    environment: &'e BTreeMap<String, String>,
    prefix: &'static str,
) -> impl Iterator<Item = (String, &'e String)> {
    let of_client = environment.iter().filter(move |(name, _)| name.starts_with(prefix));
    of_client.map(|(name, value)| (name.to_lowercase(), value))
}

/// A client for S3, or why the settings make none.
fn s3(
    bucket: &str,
    replication: &Replication,
    environment: &BTreeMap<String, String>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = AmazonS3Builder::new().with_client_options(client_options()).with_retry(retries());
    for (name, value) in variables(environment, "AWS_") {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    let of_litestream =
        |name| environment.get(name).filter(|_| !environment.contains_key("AWS_ACCESS_KEY_ID"));
    if let Some(id) = of_litestream("LITESTREAM_ACCESS_KEY_ID") {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = of_litestream("LITESTREAM_SECRET_ACCESS_KEY") {
        builder = builder.with_secret_access_key(secret);
    }
    if let Some(endpoint) = &replication.endpoint {
        builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
    }
    if let Some(region) = &replication.region {
        builder = builder.with_region(region);
    }
    builder = match &replication.encryption {
        Some(Encryption::Kms { key_id }) => builder.with_sse_kms_encryption(key_id),
        Some(Encryption::CustomerKey) => builder.with_ssec_encryption(customer_key(environment)?),
        None => builder,
    };
    Ok(Arc::new(builder.with_bucket_name(bucket).build().map_err(|error| error.to_string())?))
}

/// A client for Google Cloud Storage, or why the settings make none.
fn gcs(bucket: &str, environment: &BTreeMap<String, String>) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder =
        GoogleCloudStorageBuilder::new().with_client_options(client_options()).with_retry(retries());
    for (name, value) in variables(environment, "GOOGLE_") {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    Ok(Arc::new(builder.with_bucket_name(bucket).build().map_err(|error| error.to_string())?))
}

/// A client for Azure Blob Storage, or why the settings make none.
fn abs(
    account: Option<&str>,
    container: &str,
    replication: &Replication,
    environment: &BTreeMap<String, String>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder =
        MicrosoftAzureBuilder::new().with_client_options(client_options()).with_retry(retries());
    for (name, value) in variables(environment, "AZURE_") {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    // The name that Litestream has for the key.
    if let Some(key) = environment.get("LITESTREAM_AZURE_ACCOUNT_KEY") {
        builder = builder.with_access_key(key);
    }
    if let Some(endpoint) = &replication.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    Ok(Arc::new(builder.with_container_name(container).build().map_err(|error| error.to_string())?))
}

/// The key that the credentials name a file of.
fn customer_key(environment: &BTreeMap<String, String>) -> Result<String, String> {
    let path = environment.get(SSE_CUSTOMER_KEY_PATH).ok_or_else(|| {
        format!(
            "spec.replication.serverSideEncryption: sse-c needs {SSE_CUSTOMER_KEY_PATH} among the credentials, the path of \
             a file with the key"
        )
    })?;
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{SSE_CUSTOMER_KEY_PATH}: could not read {path}: {error}"))?;
    let key = text.trim();
    match BASE64.decode(key).map(|bytes| bytes.len()) {
        Ok(KEY_BYTES) => Ok(key.to_owned()),
        found => Err(format!(
            "{SSE_CUSTOMER_KEY_PATH}: {path} holds {}, allowed: {KEY_BYTES} bytes in base64, as `openssl rand -base64 \
             {KEY_BYTES}` makes them",
            found.map_or_else(|_| "no base64".to_owned(), |length| format!("{length} bytes"))
        )),
    }
}

/// `None` while there is no such folder.
fn local(folder: &std::path::Path) -> Result<Option<LocalFileSystem>, StoreProblem> {
    Ok(if folder.try_exists()? { Some(LocalFileSystem::new_with_prefix(folder)?) } else { None })
}

/// Removes a folder, and the files in it after the folders.
fn remove_folders_first(folder: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    std::fs::remove_dir_all(folder)
}

async fn read(store: &dyn ObjectStore, key: &Path) -> Result<Option<Vec<u8>>, StoreProblem> {
    let found = match store.get(key).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    if found.meta.size > OBJECT_BYTES_MAX as u64 {
        return Err(format!("it is larger than {OBJECT_BYTES_MAX} bytes, and so none of ours").into());
    }
    Ok(Some(found.bytes().await?.to_vec()))
}

async fn list(store: &dyn ObjectStore, key: &Path) -> Result<Listing, StoreProblem> {
    let found = store.list_with_delimiter(Some(key).filter(|key| !key.as_ref().is_empty())).await?;
    let name = |path: &Path| path.filename().unwrap_or_default().to_owned();
    Ok(Listing {
        files: found.objects.iter().map(|object| name(&object.location)).collect(),
        folders: found.common_prefixes.iter().map(name).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use expect_test::expect;

    #[test]
    fn a_key_of_ours_is_a_file_that_the_credentials_name() {
        let folder = tempfile::tempdir().unwrap();
        let key_of = |content: Option<&str>| {
            let path = folder.path().join("key");
            let named = (SSE_CUSTOMER_KEY_PATH.to_owned(), path.display().to_string());
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let found = customer_key(&BTreeMap::from([named])).unwrap_or_else(|problem| problem);
            found.replace(&folder.path().display().to_string(), "<folder>") + "\n"
        };
        let all = [
            customer_key(&BTreeMap::new()).unwrap_err() + "\n",
            key_of(None),
            key_of(Some("c2hvcnQ=")),
            key_of(Some("not base64")),
            key_of(Some("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")),
        ];
        expect![[r#"
            spec.replication.serverSideEncryption: sse-c needs LITEJOIN_SSE_CUSTOMER_KEY_PATH among the credentials, the path of a file with the key
            LITEJOIN_SSE_CUSTOMER_KEY_PATH: could not read <folder>/key: No such file or directory (os error 2)
            LITEJOIN_SSE_CUSTOMER_KEY_PATH: <folder>/key holds 5 bytes, allowed: 32 bytes in base64, as `openssl rand -base64 32` makes them
            LITEJOIN_SSE_CUSTOMER_KEY_PATH: <folder>/key holds no base64, allowed: 32 bytes in base64, as `openssl rand -base64 32` makes them
            MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
        "#]].assert_eq(&all.concat());
    }
}
