//! A client that minds its own business while others misbehave.

use std::time::Duration;

use tidemill_client::{Client, PartitionId, Record, Start};
use tidemill_cluster_tests::{Outcome, TestBroker};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::kit::{PATIENCE, create};

/// Produces and reads, record by record, until it is asked how it went.
pub(crate) struct Bystander {
    stopped: watch::Sender<bool>,
    going: JoinHandle<Outcome<u64>>,
    rounds: watch::Receiver<u64>,
}

impl Bystander {
    pub(crate) async fn beside(broker: &TestBroker) -> Outcome<Self> {
        let client = broker.client().await?;
        create(&client, "bystander", 1).await?;
        let (stopped, stop) = watch::channel(false);
        let (round, rounds) = watch::channel(0);
        Ok(Self { stopped, going: tokio::spawn(go(client, stop, round)), rounds })
    }

    /// Waits until it has gone on a little: what was done to the broker before has not stopped it.
    pub(crate) async fn goes_on(&mut self) -> Outcome<()> {
        let now = *self.rounds.borrow();
        timeout(PATIENCE, self.rounds.wait_for(|rounds| *rounds > now + 2))
            .await
            .map_err(|_| "the bystander is stuck")?
            .map_err(|_| "the bystander failed")?;
        Ok(())
    }

    /// It must have gone on all the time, on the connection that it began with.
    pub(crate) async fn was_undisturbed(mut self) -> Outcome<()> {
        self.goes_on().await?;
        self.stopped.send_replace(true);
        let rounds = self.going.await??;
        assert!(rounds > 0);
        Ok(())
    }
}

async fn go(client: Client, stop: watch::Receiver<bool>, round: watch::Sender<u64>) -> Outcome<u64> {
    let producer = client.producer("bystander").build().await?;
    let mut consumer = client.consumer().topic("bystander").from(Start::Earliest).build().await?;
    let mut number: u64 = 0;
    while !*stop.borrow() {
        let value = number.to_string();
        let receipt = producer.send(Record::new(&value).partition(PartitionId::new(0))).await?.await?;
        assert_eq!(receipt.offset().map(|offset| offset.get()), i64::try_from(number).ok());
        let read = timeout(PATIENCE, consumer.next()).await?.ok_or("the bystander's topic ended")??;
        assert_eq!(read.value.as_deref(), Some(value.as_bytes()));
        number += 1;
        round.send_replace(number);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(consumer.stats().reconnects, 0, "its subscription was never broken");
    assert_eq!(producer.stats().resent_batches, 0, "nothing had to be sent again");
    Ok(number)
}
