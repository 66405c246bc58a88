//! The servers of the operator's configuration: asked over HTTP, with files that change under way.
//!
//! Kubernetes swaps a mounted Secret or ConfigMap by a symbolic link and renews tokens well before they end. So the files
//! are read whenever a server is asked, and compared: they are a few KB in memory-backed volumes, and what is compared
//! byte by byte cannot be missed for the time stamp it has. Nobody asks, nothing is read.

use super::{
    answer,
    config::{ConfigError, LabelNames, ServerConfig, parse},
    error::{Problem, QueryError},
};
use crate::analysis::scraper::innermost;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// What a server that fails may say of it.
const LONGEST_MESSAGE: usize = 64 << 10;
/// Connections that are not used for longer are closed; queries come every few seconds.
const IDLE: Duration = Duration::from_secs(60);

/// Where queries go.
pub trait Ask: Send + Sync {
    /// The names of the servers there are.
    fn names(&self) -> Vec<String>;

    /// How series are found in a server.
    ///
    /// # Errors
    /// Where there is no server of this name.
    fn labelling(&self, server: &str) -> Result<Labelling, QueryError>;

    /// Evaluates an instant query, now: the JSON of a successful answer, of `limit` bytes at most.
    fn ask<'a>(&'a self, server: &'a str, query: &'a str, limit: usize) -> BoxFuture<'a, Result<Bytes, QueryError>>;
}

/// How the series of ingress-nginx are found in a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labelling {
    /// What it calls the labels.
    pub names: LabelNames,
    /// What labels the series of this cluster have besides.
    pub select: BTreeMap<String, String>,
}

/// The servers of a configuration file, over HTTP.
#[derive(Default)]
pub struct Servers {
    /// None: there are none, and will be none.
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The file when it was last read.
    text: Vec<u8>,
    servers: BTreeMap<String, Arc<Server>>,
    /// Why these are not those of the file.
    broken: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves the value whole: it is only ever replaced.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Servers {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// Where it cannot be read, or not be used.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let servers = configured(&text, &BTreeMap::new())?;
        Ok(Self {
            path: Some(path.to_owned()),
            state: Mutex::new(State {
                text,
                servers,
                broken: None,
            }),
        })
    }

    /// The state of the file as it is now, or as it was when it could last be used.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        let Some(path) = &self.path else { return state };
        let told = match read(path) {
            Ok(text) if text == state.text => return state,
            Ok(text) => {
                let servers = configured(&text, &state.servers);
                state.text = text;
                servers
            }
            Err(error) => Err(error),
        };
        match told {
            Ok(servers) => {
                tracing::info!(path = %path.display(), servers = ?servers.keys(), "the Prometheus servers have changed");
                (state.servers, state.broken) = (servers, None);
            }
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                if state.broken.as_ref() != Some(&why) {
                    tracing::warn!(why, "the Prometheus servers stay as they were");
                }
                state.broken = Some(why);
            }
        }
        state
    }

    fn server(&self, name: &str) -> Result<(Arc<Server>, Option<String>), QueryError> {
        let state = self.current();
        match state.servers.get(name) {
            Some(server) => Ok((server.clone(), state.broken.clone())),
            None => Err(QueryError::Unknown {
                name: name.to_owned(),
                known: state.servers.keys().cloned().collect(),
            }),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|error| ConfigError::Unreadable(error.to_string()))
}

/// The servers of a file; those that have not changed keep their connections.
fn configured(
    text: &[u8],
    before: &BTreeMap<String, Arc<Server>>,
) -> Result<BTreeMap<String, Arc<Server>>, ConfigError> {
    let text = std::str::from_utf8(text).map_err(|error| ConfigError::Malformed(error.to_string()))?;
    let servers = parse(text)?.into_iter().map(|(name, config)| {
        let same = before.get(&name).filter(|server| server.config == config).cloned();
        (name, same.unwrap_or_else(|| Arc::new(Server::new(config))))
    });
    Ok(servers.collect())
}

impl Ask for Servers {
    fn names(&self) -> Vec<String> {
        self.current().servers.keys().cloned().collect()
    }

    fn labelling(&self, server: &str) -> Result<Labelling, QueryError> {
        let (server, _) = self.server(server)?;
        Ok(Labelling {
            names: server.config.labels.clone(),
            select: server.config.select.clone(),
        })
    }

    fn ask<'a>(&'a self, server: &'a str, query: &'a str, limit: usize) -> BoxFuture<'a, Result<Bytes, QueryError>> {
        Box::pin(async move {
            let (found, mut outdated) = self.server(server)?;
            let answer = match found.access() {
                Ok((access, broken)) => {
                    outdated = broken.or(outdated);
                    found.ask(&access, query, limit).await
                }
                Err(why) => Err(Problem::Files(why)),
            };
            answer.map_err(|problem| QueryError::Failed {
                server: server.to_owned(),
                problem,
                outdated,
            })
        })
    }
}

struct Server {
    config: ServerConfig,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    /// What was last tried.
    files: Option<Files>,
    /// What was made of the last that could be used.
    access: Option<Access>,
    /// Why that is not of the last that was tried.
    broken: Option<String>,
}

/// What a server's files hold.
#[derive(Clone, Default, PartialEq, Eq)]
struct Files {
    token: Option<Vec<u8>>,
    tls: Tls,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Tls {
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

/// What it takes to ask a server.
#[derive(Clone)]
struct Access {
    client: HttpClient<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    tls: Tls,
    token: Option<HeaderValue>,
}

impl Server {
    fn new(config: ServerConfig) -> Self {
        Self {
            config,
            used: Mutex::default(),
        }
    }

    /// With the files as they are now, or as they were when they could last be used, and then why.
    fn access(&self) -> Result<(Access, Option<String>), String> {
        let mut used = lock(&self.used);
        let made = match self.files() {
            Ok(files) if used.files.as_ref() == Some(&files) => None,
            Ok(files) => {
                used.files = Some(files.clone());
                Some(self.make(files, used.access.as_ref()))
            }
            Err(why) => {
                // Whatever is there next is worth trying.
                used.files = None;
                Some(Err(why))
            }
        };
        match made {
            None => {}
            Some(Ok(access)) => (used.access, used.broken) = (Some(access), None),
            Some(Err(why)) => {
                if used.broken.as_ref() != Some(&why) {
                    tracing::warn!(
                        server = self.config.name,
                        why,
                        "files of a Prometheus server cannot be used"
                    );
                }
                used.broken = Some(why);
            }
        }
        match &used.access {
            Some(access) => Ok((access.clone(), used.broken.clone())),
            None => Err(used.broken.clone().unwrap_or_default()),
        }
    }

    fn files(&self) -> Result<Files, String> {
        let read = |key: &str, path: &Option<PathBuf>| {
            let path = path.as_deref();
            let content = path.map(|path| fs::read(path).map_err(|error| named(key, path, &error)));
            content.transpose()
        };
        let config = &self.config;
        Ok(Files {
            token: read("bearerTokenFile", &config.bearer_token_file)?,
            tls: Tls {
                ca: read("caFile", &config.ca_file)?,
                cert: read("certFile", &config.cert_file)?,
                key: read("keyFile", &config.key_file)?,
            },
        })
    }

    /// A new token goes with the connections there are; new certificates do not.
    fn make(&self, files: Files, before: Option<&Access>) -> Result<Access, String> {
        let token = match &files.token {
            Some(token) => Some(bearer(token).ok_or_else(|| {
                let path = self.config.bearer_token_file.as_deref().unwrap_or(Path::new(""));
                named("bearerTokenFile", path, &"it is empty, or holds what no header may")
            })?),
            None => None,
        };
        let client = match before.filter(|before| before.tls == files.tls) {
            Some(before) => before.client.clone(),
            None => self.client(&files.tls)?,
        };
        Ok(Access {
            client,
            tls: files.tls,
            token,
        })
    }

    fn client(&self, tls: &Tls) -> Result<HttpClient<HttpsConnector<HttpConnector>, Empty<Bytes>>, String> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls(tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector))
    }

    fn tls(&self, tls: &Tls) -> Result<ClientConfig, String> {
        let config = &self.config;
        let named = |key: &str, path: &Option<PathBuf>, what: &dyn std::fmt::Display| {
            named(key, path.as_deref().unwrap_or(Path::new("")), what)
        };
        let builder = ClientConfig::builder();
        let builder = match &tls.ca {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem).map_err(|why| named("caFile", &config.ca_file, &why))? {
                    let added = roots.add(certificate);
                    added.map_err(|error| named("caFile", &config.ca_file, &error))?;
                }
                builder.with_root_certificates(roots)
            }
            // Reading the system's takes as long as a query does.
            None if !config.url.is_encrypted() => builder.with_root_certificates(RootCertStore::empty()),
            None => builder
                .with_native_roots()
                .map_err(|error| format!("the system's certificates cannot be read: {error}"))?,
        };
        let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(cert).map_err(|why| named("certFile", &config.cert_file, &why))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| named("keyFile", &config.key_file, &error))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| named("certFile", &config.cert_file, &error))
    }

    async fn ask(&self, access: &Access, query: &str, limit: usize) -> Result<Bytes, Problem> {
        let deadline = self.config.deadline.get();
        let exchange = async {
            let request = self.request(access, query)?;
            let response = access.client.request(request).await.map_err(|error| {
                let why = innermost(&error);
                if error.is_connect() {
                    Problem::Connect(why)
                } else {
                    Problem::Interrupted(why)
                }
            })?;
            whole(response, limit).await
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or(Err(Problem::Deadline(deadline)))
    }

    /// GET, for a proxy that lets only readers through takes POST for writing.
    fn request(&self, access: &Access, query: &str) -> Result<Request<Empty<Bytes>>, Problem> {
        let deadline = format!("{}ms", self.config.deadline.get().as_millis());
        let parameters = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", query)
            .append_pair("timeout", &deadline)
            // Thanos leaves out what a store does not answer unless told so; series that are missing for a moment would
            // count from zero when they come back.
            .append_pair("partial_response", "false")
            .finish();
        let uri: Uri = format!("{}?{parameters}", self.config.url.query())
            .parse()
            .map_err(|error: http::uri::InvalidUri| Problem::Connect(error.to_string()))?;
        let mut request = Request::get(uri)
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("canary-operator/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &access.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        request
            .body(Empty::new())
            .map_err(|error| Problem::Connect(error.to_string()))
    }
}

fn named(key: &str, path: &Path, what: &dyn std::fmt::Display) -> String {
    format!("{key} {}: {what}", path.display())
}

fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let token = token.trim_ascii();
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
    value.set_sensitive(true);
    (!token.is_empty()).then_some(value)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

/// The body of a successful answer.
async fn whole(response: Response<Incoming>, limit: usize) -> Result<Bytes, Problem> {
    let status = response.status();
    let header = |name| {
        let value = response.headers().get(name).map(HeaderValue::to_str);
        value.and_then(Result::ok).unwrap_or_default().to_owned()
    };
    if status.is_redirection() {
        return Err(Problem::Redirect(header(header::LOCATION)));
    }
    let kind = header(header::CONTENT_TYPE);
    if !status.is_success() {
        let body = body(response, LONGEST_MESSAGE).await.unwrap_or_default();
        let message = answer::message(&body);
        return Err(Problem::Status { status, message });
    }
    let essence = kind.split(';').next().unwrap_or_default().trim();
    match essence {
        "" => return Err(Problem::ContentType("no content type".to_owned())),
        essence if !essence.eq_ignore_ascii_case("application/json") => {
            return Err(Problem::ContentType(essence.to_owned()));
        }
        _ => {}
    }
    body(response, limit).await
}

async fn body(response: Response<Incoming>, limit: usize) -> Result<Bytes, Problem> {
    let collected = Limited::new(response.into_body(), limit).collect().await;
    let body = collected.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Problem::TooLarge(limit as u64)
        } else {
            Problem::Interrupted(innermost(error.as_ref()))
        }
    })?;
    Ok(body.to_bytes())
}
