//! A watch that goes on whatever happens to it.

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Duration};

/// Before a watch that was refused starts over.
const START_OVER: Duration = Duration::from_secs(10);

/// Lists and watches for as long as it is polled. What `slim` leaves of each object is told, and so is each error.
pub async fn watch_on<K>(
    api: Api<K>,
    config: watcher::Config,
    slim: impl Fn(&mut K),
    mut tell: impl FnMut(watcher::Result<watcher::Event<K>>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    loop {
        let stream = watcher(api.clone(), config.clone()).modify(&slim).default_backoff();
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            let over = event.as_ref().is_err_and(is_over);
            tell(event);
            if over {
                break;
            }
        }
        tokio::time::sleep(START_OVER).await;
    }
}

/// kube tries the same version again for ever: after 410 in vain, and after 403 without a sign that it works again.
fn is_over(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 410))
}
