//! Clients in the background: so many plain requests a second.

use crate::rehearse::nginx::Nginx;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// Runs as long as somebody can change the number of requests a second. While there are none, nothing is done.
pub async fn run(nginx: Nginx, mut per_second: Receiver<u32>) {
    while per_second.wait_for(|requests| *requests > 0).await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        nginx.crowd(*per_second.borrow());
    }
}
