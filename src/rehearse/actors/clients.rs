//! Clients in the background: so many plain requests a second.

use crate::rehearse::nginx::Nginx;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// How much clients ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests in a second.
    pub per_second: u32,
    /// How long requests gather before they are sent.
    pub interval: Duration,
}

/// Runs as long as somebody can change the load. While there is none, nothing is done.
pub async fn run(nginx: Nginx, mut load: Receiver<Load>) {
    loop {
        let Ok(interval) = load
            .wait_for(|load| load.per_second > 0)
            .await
            .map(|load| load.interval)
        else {
            return;
        };
        tokio::time::sleep(interval).await;
        nginx.crowd(load.borrow().per_second, interval);
    }
}
