use std::sync::Arc;

use crate::cluster::{Cluster, TopicMetadata, Trouble};
use crate::{ClientConfig, ConnectError, ProducerBuilder, RequestError};

/// A connection to a cluster. Cheap to clone; every method may be called from many tasks at once.
///
/// One QUIC connection per broker carries everything. While topics are in use, up to three brokers are listened to, so that news of
/// who leads what come from those that live when one dies. A connection that breaks is made again with growing pauses; meanwhile
/// requests, producers and consumers go on at other brokers, where they were.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) cluster: Arc<Cluster>,
}

impl Client {
    /// Connects to whichever configured address answers first.
    ///
    /// # Errors
    /// None did, or the settings do not stand.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let client = Self::detached(config)?;
        client.connected().await?;
        Ok(client)
    }

    /// Waits until there is a connection: for one attempt at each of the configured addresses.
    ///
    /// # Errors
    /// None did answer.
    pub async fn connected(&self) -> Result<(), ConnectError> {
        self.cluster.connection(None).await.map(drop)
    }

    /// A client that connects when it is first used. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The settings do not stand.
    pub fn detached(config: ClientConfig) -> Result<Self, ConnectError> {
        Ok(Self { cluster: Cluster::new(config)? })
    }

    /// Begins a producer for a topic.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.cluster), topic.into())
    }

    /// What is known of a topic. Asks the cluster the first time; from then on changes are pushed, as long as a producer or consumer
    /// of this client uses the topic, or it is one of the 256 others that were named last.
    ///
    /// # Errors
    /// No such topic, or no answer.
    pub async fn topic_metadata(&self, name: &str) -> Result<Arc<TopicMetadata>, RequestError> {
        self.cluster.topic(name).await
    }

    /// What keeps the client from its work just now, such as a broker that does not answer; `None` while all is well. It goes on
    /// trying by itself: this is for whoever tells a person what is waited for.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.cluster.trouble()
    }

    /// Closes every connection. Producers and consumers of this client end with an error.
    pub async fn close(&self) {
        self.cluster.close().await;
    }
}
