use std::path::PathBuf;

use tidemill_client::{Client, ClientConfig, Compression, NewTopic, Record, Start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `tidemill dev` listens here, and keeps its authority there: what it signed is trusted.
    let address = std::env::var("TIDEMILL_ADDRESS").unwrap_or_else(|_| "127.0.0.1:9630".to_owned());
    let authority = std::env::var_os("TIDEMILL_CA").map_or("tidemill-data/tls/ca.pem".into(), PathBuf::from);
    let config = ClientConfig::new([address]).trust_file(authority).client_id("example");
    let client = Client::connect(config).await?;
    client.topics().create(NewTopic::new("plays", 3).if_not_exists()).await?;

    // Records are gathered into batches, sent in order, and stored once, whatever breaks in between.
    let producer = client.producer("plays").compression(Compression::Zstd).build().await?;
    for number in 0..1_000 {
        let (user, play) = (format!("user-{}", number % 7), format!(r#"{{"song": {number}}}"#));
        producer.send_and_forget(Record::new(&play).key(&user)).await?;
    }
    producer.flush().await?;
    // One record whose place matters.
    let delivery = producer.send(Record::new(r#"{"song": "the last one"}"#)).await?;
    println!("stored at {:?}", delivery.await?.offset());

    // Reads from where "royalties" left off, to the end of what is there now.
    let mut consumer =
        client.consumer().topic("plays").from(Start::committed("royalties")).stop_at_end().build().await?;
    while let Some(record) = consumer.next().await {
        let record = record?;
        println!("{}-{} {:?}", record.topic, record.offset, record.value);
    }
    consumer.commit("royalties").await?;
    client.close().await;
    Ok(())
}
