//! Faults that the tests on a real cluster ask for by environment variables. Only builds with debug assertions have this
//! module: a release build, and so the image, has nothing of it.

use super::{
    Clock,
    around::{Answer, Around},
};
use http::{Method, Request};
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// After which of its writes the process dies.
const DIE_AFTER_WRITE: &str = "CANARY_OPERATOR_DIE_AFTER_WRITE";
/// File with the seconds by which the wall clock is wrong; it is read at every look at the clock.
const CLOCK_OFFSET: &str = "CANARY_OPERATOR_CLOCK_OFFSET_FILE";

/// Ends the process once a write has been answered, before anybody here learns of the answer.
#[derive(Clone, Debug)]
pub struct Fatal {
    /// Writes until then; 0 for never.
    after: u64,
    answered: Arc<AtomicU64>,
    die: fn(),
}

impl Fatal {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let after = std::env::var(DIE_AFTER_WRITE).ok();
        Self {
            after: after.and_then(|number| number.parse().ok()).unwrap_or_default(),
            answered: Arc::default(),
            // As by kill -9: nothing is put in order, and whoever is connected finds out by himself.
            die: || std::process::abort(),
        }
    }
}

/// Whether a request changes what releases are made of. Leading and telling are not among it, nor is asking what a change
/// would come to.
fn is_write(request: &Request<Body>) -> bool {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let aside = path.starts_with("/apis/coordination.k8s.io/") || path.starts_with("/apis/events.k8s.io/");
    request.method() != Method::GET && !aside && !query.split('&').any(|pair| pair.starts_with("dryRun="))
}

impl Around for Fatal {
    fn around<B: 'static>(&self, request: Request<Body>, send: impl FnOnce(Request<Body>) -> Answer<B>) -> Answer<B> {
        let counts = is_write(&request);
        let (fatal, answer) = (self.clone(), send(request));
        Box::pin(async move {
            let answer = answer.await?;
            // A refused write is none: a process for each would go on for ever.
            if counts
                && answer.status().is_success()
                && fatal.answered.fetch_add(1, Ordering::SeqCst) + 1 == fatal.after
            {
                (fatal.die)();
            }
            Ok(answer)
        })
    }
}

/// The machine's clock, put elsewhere.
#[derive(Clone, Debug)]
pub struct WrongClock<W> {
    wall: W,
    offset: Option<PathBuf>,
}

impl<W> WrongClock<W> {
    /// As the environment says.
    pub fn from_environment(wall: W) -> Self {
        Self {
            wall,
            offset: std::env::var_os(CLOCK_OFFSET).map(PathBuf::from),
        }
    }
}

impl<W: Clock> Clock for WrongClock<W> {
    fn now(&self) -> Timestamp {
        let written = self.offset.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        let seconds = written.and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        let now = self.wall.now();
        now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use std::sync::atomic::AtomicUsize;

    static DEATHS: AtomicUsize = AtomicUsize::new(0);

    /// The number of deaths after each of these requests, in a process that dies after its second write.
    async fn deaths(requests: &[(Method, &str, u16)]) -> Vec<usize> {
        let fatal = Fatal {
            after: 2,
            answered: Arc::default(),
            die: || {
                DEATHS.fetch_add(1, Ordering::SeqCst);
            },
        };
        let server = |request: Request<Body>| -> Answer<()> {
            let status: u16 = request.headers()["answer"].to_str().unwrap().parse().unwrap();
            Box::pin(async move { Ok(Response::builder().status(status).body(()).unwrap()) })
        };
        let mut deaths = Vec::new();
        for (method, uri, answer) in requests {
            let request = Request::builder().method(method).uri(*uri).header("answer", *answer);
            let request = request.body(Body::empty()).unwrap();
            fatal.around(request, server).await.unwrap();
            deaths.push(DEATHS.load(Ordering::SeqCst));
        }
        deaths
    }

    #[tokio::test]
    async fn the_process_dies_after_the_write_that_was_asked_for_and_nothing_else_counts() {
        let ingress = "/apis/networking.k8s.io/v1/namespaces/shop/ingresses/web";
        let died = deaths(&[
            (Method::PUT, ingress, 200),
            (Method::GET, ingress, 200),
            (Method::PATCH, &format!("{ingress}?dryRun=All"), 200),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/shop/leases/web",
                200,
            ),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events", 201),
            (Method::PATCH, ingress, 409),
            (Method::DELETE, ingress, 200),
            (Method::PUT, ingress, 200),
        ])
        .await;
        assert_eq!(died, [0, 0, 0, 0, 0, 0, 1, 1]);
    }

    struct Epoch;

    impl Clock for Epoch {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    #[test]
    fn the_clock_is_wrong_by_what_the_file_says_now() {
        let file = std::env::temp_dir().join(format!("clock-offset-{}", std::process::id()));
        let clock = WrongClock {
            wall: Epoch,
            offset: Some(file.clone()),
        };
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        std::fs::write(&file, "-3600\n").unwrap();
        assert_eq!(clock.now().as_second(), -3600);
        std::fs::remove_file(&file).unwrap();
    }
}
