//! Attempts to connect: at each address one at a time, in a task of its own, shared by all who wait for it. Whoever stops waiting
//! stops nothing: what answers late is there for the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tidemill_protocol::BrokerId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::BrokerConnection;
use super::pool::Cluster;
use crate::ConnectError;
use crate::backoff::Backoff;

/// How long an address has for itself before the next one is tried beside it. A dead one is only known by its silence.
const HEAD_START: Duration = Duration::from_millis(150);
/// Addresses that are remembered. A cluster that moves about leaves old ones behind.
const ADDRESSES_MAX: usize = 1_024;

type Dialled = Result<Arc<BrokerConnection>, ConnectError>;
type Waiting = watch::Receiver<Option<Dialled>>;

/// What is known of each address.
#[derive(Debug, Default)]
pub(super) struct Dials {
    by_address: Mutex<HashMap<String, Address>>,
}

#[derive(Debug)]
struct Address {
    backoff: Backoff,
    /// When the next attempt may begin.
    not_before: Option<Instant>,
    /// The last attempt failed.
    is_failing: bool,
    /// Who answered there last.
    broker: Option<BrokerId>,
    under_way: Option<Waiting>,
}

impl Dials {
    /// Who answered at this address last.
    pub(super) fn broker_at(&self, address: &str) -> Option<BrokerId> {
        self.by_address.lock().get(address)?.broker
    }

    pub(super) fn is_failing(&self, address: &str) -> bool {
        self.by_address.lock().get(address).is_some_and(|address| address.is_failing)
    }

    /// There is a reason to think that the next attempt goes well: it need not wait for long.
    pub(super) fn forgive(&self, addresses: &[String]) {
        let mut by_address = self.by_address.lock();
        for address in addresses {
            if let Some(address) = by_address.get_mut(address) {
                address.not_before = None;
                address.is_failing = false;
                address.backoff.reset();
            }
        }
    }

    /// The next attempt has no use before that.
    pub(super) fn put_off(&self, addresses: &[String], pause: Duration) {
        let mut by_address = self.by_address.lock();
        for address in addresses {
            if let Some(address) = by_address.get_mut(address) {
                address.not_before = Some(Instant::now() + pause);
            }
        }
    }

    fn ended(&self, address: &str, dialled: &Dialled, pause: Duration) {
        let mut by_address = self.by_address.lock();
        let Some(address) = by_address.get_mut(address) else { return };
        address.under_way = None;
        address.is_failing = dialled.is_err();
        match dialled {
            Ok(connection) => {
                address.broker = Some(connection.broker);
                address.backoff.reset();
                // A broker that takes connections and drops them at once is not asked without pause either.
                address.not_before = Some(Instant::now() + pause);
            }
            Err(_) => address.not_before = Some(Instant::now() + address.backoff.pause()),
        }
    }
}

impl Cluster {
    /// Joins the attempt that is under way at an address, or begins one, after the pause that earlier failures ask for.
    pub(super) fn begin_dial(self: &Arc<Self>, address: &str) -> Waiting {
        let mut by_address = self.dials.by_address.lock();
        if by_address.len() >= ADDRESSES_MAX && !by_address.contains_key(address) {
            by_address.retain(|_, address| address.under_way.is_some());
        }
        let entry = by_address.entry(address.to_owned()).or_insert_with(|| Address {
            backoff: self.backoff(),
            not_before: None,
            is_failing: false,
            broker: None,
            under_way: None,
        });
        if let Some(under_way) = &entry.under_way {
            return under_way.clone();
        }
        let (sender, waiting) = watch::channel(None);
        entry.under_way = Some(waiting.clone());
        let (cluster, address, not_before) = (Arc::clone(self), address.to_owned(), entry.not_before);
        tokio::spawn(async move {
            let dialling = async {
                if let Some(instant) = not_before {
                    tokio::time::sleep_until(instant).await;
                }
                cluster.dial(&address).await
            };
            let dialled = tokio::select! {
                biased;
                () = cluster.closed.cancelled() => Err(ConnectError::Closed),
                dialled = dialling => dialled,
            };
            cluster.dials.ended(&address, &dialled, cluster.config.backoff_min);
            if dialled.is_err() {
                cluster.did_not_answer(&address);
            }
            sender.send_replace(Some(dialled));
        });
        waiting
    }

    /// Connects to whichever address answers first: each has a head start before the next.
    pub(super) async fn race(self: &Arc<Self>, addresses: Vec<String>) -> Dialled {
        let mut last = ConnectError::NoAddress;
        let mut dials = FuturesUnordered::new();
        let mut waiting = addresses.into_iter();
        loop {
            match waiting.next() {
                Some(address) => dials.push(dialled(self.begin_dial(&address))),
                None if dials.is_empty() => break,
                None => {}
            }
            let is_last = waiting.len() == 0;
            tokio::select! {
                Some(dialled) = dials.next(), if !dials.is_empty() => match dialled {
                    Ok(connection) => return Ok(connection),
                    // One that may go better next time says more than one that will not.
                    Err(error) => if !last.retriable() { last = error },
                },
                () = tokio::time::sleep(HEAD_START), if !is_last => {}
            }
        }
        // Where nobody was left to ask, the trouble is what kept the client from those that it asked before.
        if !matches!(last, ConnectError::Closed | ConnectError::NoAddress) {
            self.is_troubled(&last);
        }
        Err(last)
    }
}

async fn dialled(mut waiting: Waiting) -> Dialled {
    match waiting.wait_for(Option::is_some).await {
        Ok(dialled) => dialled.clone().unwrap_or(Err(ConnectError::Closed)),
        // The task is gone, and the runtime with it.
        Err(_) => Err(ConnectError::Closed),
    }
}
