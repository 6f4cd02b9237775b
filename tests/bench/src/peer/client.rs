use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::sync::{Semaphore, mpsc};

use super::frames::{self, Reader};
use super::{COPY_CHUNK_BYTES, COPY_CHUNKS_AHEAD, Kind, tls};
use crate::Outcome;
use crate::stats::Latencies;
use crate::work::noise;

/// Frames of a produce-like stream that wait for their acknowledgement: as many as the broker allows on a produce stream.
const IN_FLIGHT_MAX: usize = 32;
/// Different payloads that are sent in turn: as many as may be under way, so that no processor cache holds them.
const PAYLOADS: usize = IN_FLIGHT_MAX;
/// Credit of a fetch-like stream, and what is returned at once: as Tidemill's consumer has it.
const CREDIT_BYTES: u64 = 8 << 20;
const CREDIT_RETURN_BYTES: u64 = CREDIT_BYTES / 8;

/// One connection to the peer.
pub(crate) struct PeerClient {
    connection: quinn::Connection,
    endpoint: quinn::Endpoint,
}

impl PeerClient {
    pub(super) async fn connect(address: SocketAddr, authority: &Path) -> Outcome<Self> {
        let (endpoint, config) = tls::client(authority)?;
        let connection = endpoint.connect_with(config, address, "localhost")?.await?;
        Ok(Self { connection, endpoint })
    }

    async fn open(&self, kind: Kind) -> Outcome<(quinn::SendStream, Reader)> {
        let (mut send, receive) = self.connection.open_bi().await?;
        send.write_all(&[kind.byte()]).await?;
        Ok((send, Reader::new(receive)))
    }

    /// Sends frames of `payload_bytes` over so many streams at once for a while, and waits until all are acknowledged. Payload
    /// bytes per second.
    pub(crate) async fn produce(&self, streams: usize, payload_bytes: usize, leg: Duration) -> Outcome<f64> {
        let payloads: Arc<[Bytes]> = (0..PAYLOADS).map(|_| noise(payload_bytes)).collect();
        let mut open = Vec::new();
        for _ in 0..streams {
            open.push(self.open(Kind::Produce).await?);
        }
        let begun = Instant::now();
        let sending = open.into_iter().map(|(send, reader)| {
            let payloads = Arc::clone(&payloads);
            tokio::spawn(produce(send, reader, payloads, begun + leg))
        });
        let mut frames = 0;
        for sent in try_join_all(sending).await? {
            frames += sent?;
        }
        Ok(frames as f64 * payload_bytes as f64 / begun.elapsed().as_secs_f64())
    }

    /// Frames of `payload_bytes` there and back, one at a time.
    pub(crate) async fn echo(&self, payload_bytes: usize, leg: Duration) -> Outcome<Latencies> {
        let (mut send, mut reader) = self.open(Kind::Echo).await?;
        let payload = noise(payload_bytes);
        let mut latencies = Latencies::new()?;
        let until = Instant::now() + leg;
        let mut begun = Instant::now();
        while begun < until {
            frames::send(&mut send, &[0; super::HEADER_BYTES], payload.clone()).await?;
            reader.next().await?.ok_or("the bare peer ended its echo")?;
            let now = Instant::now();
            latencies.record(now - begun);
            begun = now;
        }
        send.finish()?;
        Ok(latencies)
    }

    /// Frames of `payload_bytes` there and back, one each `period`, from a thread that waits for nothing: each is timed from the call that
    /// sends it.
    pub(crate) async fn echo_at(
        &self,
        payload_bytes: usize,
        leg: Duration,
        period: Duration,
    ) -> Outcome<Latencies> {
        let (mut send, mut reader) = self.open(Kind::Echo).await?;
        let payload = noise(payload_bytes);
        // The first says that the peer is there.
        frames::send(&mut send, &[0; super::HEADER_BYTES], payload.clone()).await?;
        reader.next().await?.ok_or("the bare peer ended its echo")?;
        let clock = Instant::now();
        let runtime = tokio::runtime::Handle::current();
        let sending = std::thread::spawn(move || {
            let begun = Instant::now();
            let mut due = begun;
            while due < begun + leg {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let mark = u64::try_from(clock.elapsed().as_nanos())?;
                // The stream has room: it waits for nothing but the connection's lock.
                runtime.block_on(frames::send(&mut send, &mark.to_be_bytes(), payload.clone()))?;
                due += period;
            }
            send.finish()?;
            Outcome::Ok(())
        });
        let mut latencies = Latencies::new()?;
        while let Some(frame) = reader.next().await? {
            let mark = frame.header.first_chunk().copied().map(u64::from_be_bytes);
            let sent = Duration::from_nanos(mark.ok_or("a frame came back without its mark")?);
            latencies.record(clock.elapsed().saturating_sub(sent));
        }
        sending.join().map_err(|_| "the sending thread panicked")??;
        Ok(latencies)
    }

    /// Takes frames of `payload_bytes` that the peer pushes, for a while. Payload bytes per second.
    pub(crate) async fn fetch(&self, payload_bytes: usize, leg: Duration) -> Outcome<f64> {
        let (mut send, mut reader) = self.open(Kind::Fetch).await?;
        send.write_all(&u32::try_from(payload_bytes)?.to_be_bytes()).await?;
        send.write_all(&CREDIT_BYTES.to_be_bytes()).await?;
        // The first frame says that the peer has made its payloads.
        reader.next().await?.ok_or("the bare peer ended its stream")?;
        let (begun, mut bytes, mut owed) = (Instant::now(), 0_u64, payload_bytes as u64);
        while begun.elapsed() < leg {
            let frame = reader.next().await?.ok_or("the bare peer ended its stream")?;
            bytes += frame.payload.len() as u64;
            owed += frame.payload.len() as u64;
            if owed >= CREDIT_RETURN_BYTES {
                send.write_all(&owed.to_be_bytes()).await?;
                owed = 0;
            }
        }
        let rate = bytes as f64 / begun.elapsed().as_secs_f64();
        send.finish()?;
        Ok(rate)
    }

    /// Copies a file to the peer's disk, until it is synced there. Bytes per second.
    pub(crate) async fn copy(&self, file: &Path) -> Outcome<f64> {
        let (mut send, mut reader) = self.open(Kind::Copy).await?;
        let (chunks, mut read) = mpsc::channel(COPY_CHUNKS_AHEAD);
        let file = file.to_owned();
        let begun = Instant::now();
        let reading = tokio::task::spawn_blocking(move || read_file(&file, &chunks));
        let mut bytes = 0_u64;
        while let Some(chunk) = read.recv().await {
            bytes += chunk.len() as u64;
            frames::send(&mut send, &[0; super::HEADER_BYTES], chunk).await?;
        }
        reading.await??;
        send.finish()?;
        let answer = reader.next().await?.ok_or("the bare peer ended its copy")?;
        let rate = bytes as f64 / begun.elapsed().as_secs_f64();
        match answer.header.first_chunk().copied().map(u64::from_be_bytes) {
            Some(written) if written == bytes => Ok(rate),
            written => Err(format!("the bare peer wrote {written:?} of {bytes} bytes").into()),
        }
    }

    pub(crate) async fn close(self) {
        self.connection.close(0_u32.into(), b"");
        self.endpoint.wait_idle().await;
    }
}

/// A file's bytes in chunks, each in a buffer of its own.
fn read_file(path: &Path, chunks: &mpsc::Sender<Bytes>) -> Outcome<()> {
    let mut file = std::fs::File::open(path)?;
    loop {
        let mut chunk = Vec::with_capacity(COPY_CHUNK_BYTES);
        let taken = Read::by_ref(&mut file).take(COPY_CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        // Nobody takes them any more where sending failed, which says why.
        if taken == 0 || chunks.blocking_send(chunk.into()).is_err() {
            return Ok(());
        }
    }
}

async fn produce(
    mut send: quinn::SendStream,
    mut reader: Reader,
    payloads: Arc<[Bytes]>,
    until: Instant,
) -> Outcome<u64> {
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let freed = Arc::clone(&places);
    let acknowledged = tokio::spawn(async move {
        let mut count = 0_u64;
        while let Some(frame) = reader.next().await? {
            let number =
                frame.header.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            if number != Some(count) {
                return Err("the bare peer acknowledged out of turn".into());
            }
            count += 1;
            freed.add_permits(1);
        }
        Outcome::Ok(count)
    });
    let mut number = 0_u64;
    while Instant::now() < until {
        places.acquire().await?.forget();
        let payload = payloads[usize::try_from(number)? % payloads.len()].clone();
        frames::send(&mut send, &number.to_be_bytes(), payload).await?;
        number += 1;
    }
    send.finish()?;
    let count = acknowledged.await??;
    if count != number {
        return Err(format!("the bare peer acknowledged {count} of {number} frames").into());
    }
    Ok(count)
}
