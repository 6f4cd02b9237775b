//! The certificates that this broker signs for itself, made anew before they expire: a broker may run for longer than they count.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidemill_net::{BindError, CERTIFICATE_LIFE, Listener};
use tokio_util::sync::CancellationToken;

use crate::config::BrokerConfig;
use crate::data_dir::Meta;
use crate::opening::{peer_tls, tls};
use crate::peers::Peers;

/// Where they are shown. Connections that are open stay as they are: a certificate is looked at when one begins.
pub(crate) struct Certificates {
    /// Of the authority and of what it signed.
    pub(crate) directory: PathBuf,
    pub(crate) meta: Meta,
    pub(crate) config: BrokerConfig,
    pub(crate) peers: Peers,
    pub(crate) listener: Arc<Listener>,
}

/// When to renew.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// How long a certificate counts.
    life: Duration,
    /// How often it is looked whether half of that has passed: what fails is tried again so often.
    look_interval: Duration,
}

const SCHEDULE: Schedule = Schedule { life: CERTIFICATE_LIFE, look_interval: Duration::from_secs(24 * 3600) };

impl Certificates {
    /// Renews for as long as the broker runs. They were made when it started.
    pub(crate) async fn keep(self, stopping: CancellationToken) {
        let all = Arc::new(self);
        let renew = || {
            let all = Arc::clone(&all);
            async move {
                let renewed = tokio::task::spawn_blocking(move || all.renew()).await;
                renewed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
            }
        };
        tokio::select! {
            () = keep_renewed(SCHEDULE, renew) => {}
            () = stopping.cancelled() => {}
        }
    }

    fn renew(&self) -> Result<(), BindError> {
        self.peers.renew(&peer_tls(&self.meta, &self.directory)?)?;
        // The operator's own is the operator's to renew, with a restart.
        if self.config.tls_certificate.is_none() {
            self.listener.renew(&tls(&self.config, &self.directory)?)?;
        }
        Ok(())
    }
}

async fn keep_renewed<F>(schedule: Schedule, renew: impl Fn() -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let mut issued = SystemTime::now();
    loop {
        tokio::time::sleep(schedule.look_interval).await;
        let now = SystemTime::now();
        if !is_due(issued, now, schedule.life) {
            continue;
        }
        match renew().await {
            Ok(()) => {
                tracing::info!("renewed this broker's certificates");
                issued = now;
            }
            Err(reason) => {
                tracing::error!(
                    reason,
                    "this broker's certificates are not renewed; trying again before they expire"
                );
            }
        }
    }
}

/// Whether half of a certificate's life has passed, by the wall clock, which goes on while a machine sleeps.
fn is_due(issued: SystemTime, now: SystemTime, life: Duration) -> bool {
    now.duration_since(issued).is_ok_and(|age| age >= life / 2)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn half_of_the_life_is_time_enough() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let day = Duration::from_secs(24 * 3600);
        let due = |days: u32| is_due(issued, issued + day * days, CERTIFICATE_LIFE);
        assert!(!due(0) && !due(182) && due(183) && due(400));
        assert!(!is_due(issued, issued - day, CERTIFICATE_LIFE), "a clock that was set back");
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_and_what_was_renewed_is_renewed_again() {
        let schedule = Schedule { life: Duration::ZERO, look_interval: Duration::from_millis(1) };
        let (tries, seen) = (AtomicU32::new(0), tokio::sync::Notify::new());
        let renew = || {
            let tried = tries.fetch_add(1, Ordering::Relaxed);
            if tried == 3 {
                seen.notify_one();
            }
            std::future::ready(if tried == 0 { Err("the disk is full".to_owned()) } else { Ok(()) })
        };
        tokio::select! {
            () = keep_renewed(schedule, renew) => panic!("it never ends"),
            () = seen.notified() => {}
        }
        assert!(tries.load(Ordering::Relaxed) >= 4);
    }
}
