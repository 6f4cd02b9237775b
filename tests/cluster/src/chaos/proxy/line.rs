use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::Shared;
use super::weather::count;
use crate::fixtures::Random;

/// Late packets of a line at the most; more are lost, as on a wire.
const LATE_MAX: usize = 2_048;
/// Overtaken ones.
const OVERTAKEN_MAX: usize = 256;

/// Where packets of one direction go out.
#[derive(Debug, Clone)]
pub(super) struct Exit {
    pub(super) socket: Arc<UdpSocket>,
    /// `None`: to whom the socket is connected.
    pub(super) to: Option<SocketAddr>,
}

impl Exit {
    async fn send(&self, packet: &[u8]) {
        // A broker that is gone refuses it: then it is lost.
        let _ = match self.to {
            Some(to) => self.socket.send_to(packet, to).await,
            None => self.socket.send(packet).await,
        };
    }
}

/// Packets of one direction between two brokers, by the weather there.
#[derive(Debug)]
pub(super) struct Line {
    shared: Arc<Shared>,
    /// From, to; 0 is nobody that is known.
    pair: (usize, usize),
    exit: Exit,
    random: Random,
    late: mpsc::Sender<(Instant, Vec<u8>)>,
    overtaken: Arc<Semaphore>,
    sending: JoinHandle<()>,
}

impl Line {
    pub(super) fn new(shared: Arc<Shared>, pair: (usize, usize), exit: Exit, seed: u64) -> Self {
        let (late, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(LATE_MAX);
        let out = exit.clone();
        let sending = tokio::spawn(async move {
            while let Some((at, packet)) = queue.recv().await {
                sleep_until(at).await;
                out.send(&packet).await;
            }
        });
        let overtaken = Arc::new(Semaphore::new(OVERTAKEN_MAX));
        Self { shared, pair, exit, random: Random::new(seed), late, overtaken, sending }
    }

    pub(super) async fn pass(&mut self, packet: &[u8]) {
        let counters = &self.shared.counters;
        let fate = self.shared.weather(self.pair).fate(&mut self.random);
        match fate.copies {
            0 => return count(&counters.dropped),
            1 => {}
            _ => count(&counters.doubled),
        }
        for _ in 0..fate.copies {
            if fate.is_overtaken {
                self.hold_up(packet, fate.after);
            } else if fate.after.is_zero() {
                self.exit.send(packet).await;
            } else if self.late.try_send((Instant::now() + fate.after, packet.to_vec())).is_err() {
                count(&counters.dropped);
                return;
            }
        }
        count(&counters.forwarded);
        if fate.is_overtaken {
            count(&counters.overtaken);
        }
        if !fate.after.is_zero() {
            count(&counters.delayed);
        }
    }

    fn hold_up(&self, packet: &[u8], after: Duration) {
        let Ok(permit) = Arc::clone(&self.overtaken).try_acquire_owned() else {
            return count(&self.shared.counters.dropped);
        };
        let (exit, packet) = (self.exit.clone(), packet.to_vec());
        tokio::spawn(async move {
            sleep(after).await;
            exit.send(&packet).await;
            drop(permit);
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.sending.abort();
    }
}
