use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::json;
use tokio::sync::mpsc;

use super::frames::{self, Reader};
use super::{ACK_BYTES, COPY_CHUNKS_AHEAD, FRAME_BYTES_MAX, HEADER_BYTES, Kind, tls};
use crate::Outcome;
use crate::work::noise;

/// Different payloads that a fetch-like stream sends in turn: more than a processor's caches hold.
const FETCH_PAYLOADS: usize = 64;
/// Where a copy is written, beside the keys; gone when its length is told.
const COPY_FILE: &str = "copy";

/// Serves until standard input ends, which it does with the process that started this one.
pub(crate) async fn serve(tls_dir: &Path) -> Outcome<()> {
    let (endpoint, authority) = tls::server(tls_dir)?;
    println!("{}", json!({ "listening": endpoint.local_addr()?.to_string(), "ca": authority }));
    let accepting = tokio::spawn(accept(endpoint.clone(), tls_dir.into()));
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    accepting.abort();
    endpoint.close(0_u32.into(), b"");
    Ok(())
}

/// Serves every connection to an endpoint; copies are written in `dir`.
pub(super) async fn accept(endpoint: quinn::Endpoint, dir: Arc<Path>) {
    while let Some(incoming) = endpoint.accept().await {
        let dir = Arc::clone(&dir);
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                connection_of(connection, dir).await;
            }
        });
    }
}

async fn connection_of(connection: quinn::Connection, dir: Arc<Path>) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        let dir = Arc::clone(&dir);
        tokio::spawn(async move {
            if let Err(error) = stream_of(send, receive, &dir).await {
                eprintln!("bench: the bare peer: {error}");
            }
        });
    }
}

async fn stream_of(send: quinn::SendStream, receive: quinn::RecvStream, dir: &Path) -> Outcome<()> {
    let mut reader = Reader::new(receive);
    let Some([kind]) = reader.number().await? else { return Ok(()) };
    match Kind::of(kind).ok_or("a stream of no known kind")? {
        Kind::Produce => produce(send, reader).await,
        Kind::Echo => echo(send, reader).await,
        Kind::Fetch => fetch(send, reader).await,
        Kind::Copy => copy(send, reader, dir).await,
    }
}

async fn copy(mut send: quinn::SendStream, mut reader: Reader, dir: &Path) -> Outcome<()> {
    let path = dir.join(COPY_FILE);
    let (chunks, received) = mpsc::channel(COPY_CHUNKS_AHEAD);
    let writing = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || write_file(&path, received))
    };
    while let Some(frame) = reader.next().await? {
        if chunks.send(frame.payload).await.is_err() {
            // The writer says below what went wrong.
            break;
        }
    }
    drop(chunks);
    let bytes = writing.await??;
    std::fs::remove_file(&path)?;
    let answer = frames::head(&bytes.to_be_bytes(), 0)?;
    send.write_all(&answer).await?;
    send.finish()?;
    Ok(())
}

/// Writes what comes to a file, and syncs it at the end: a replica that is rebuilt is durable, too.
fn write_file(path: &Path, mut chunks: mpsc::Receiver<Bytes>) -> Outcome<u64> {
    let mut file = std::fs::File::create(path)?;
    let mut bytes = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk)?;
        bytes += chunk.len() as u64;
    }
    file.sync_all()?;
    Ok(bytes)
}

async fn produce(mut send: quinn::SendStream, mut reader: Reader) -> Outcome<()> {
    let mut offset = 0_u64;
    while let Some(frame) = reader.next().await? {
        let mut ack = [0; ACK_BYTES];
        ack[..HEADER_BYTES].copy_from_slice(frame.header.get(..HEADER_BYTES).ok_or("a header is too short")?);
        ack[8..16].copy_from_slice(&offset.to_be_bytes());
        offset += 1;
        let frame = frames::head(&ack, 0)?;
        send.write_all(&frame).await?;
    }
    send.finish()?;
    Ok(())
}

async fn echo(mut send: quinn::SendStream, mut reader: Reader) -> Outcome<()> {
    while let Some(frame) = reader.next().await? {
        frames::send(&mut send, &frame.header, frame.payload).await?;
    }
    send.finish()?;
    Ok(())
}

async fn fetch(mut send: quinn::SendStream, mut reader: Reader) -> Outcome<()> {
    let Some(bytes) = reader.number().await?.map(u32::from_be_bytes) else { return Ok(()) };
    let bytes = usize::try_from(bytes)?;
    if bytes == 0 || bytes > FRAME_BYTES_MAX {
        return Err(format!("frames of {bytes} bytes").into());
    }
    let payloads: Vec<Bytes> = (0..FETCH_PAYLOADS).map(|_| noise(bytes)).collect();
    let (mut credit, mut number) = (0_i64, 0_u64);
    // Credit is taken in while frames go out, as a subscription does it.
    let (more, mut granted) = mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        while let Ok(Some(bytes)) = reader.number().await {
            if more.send(i64::try_from(u64::from_be_bytes(bytes)).unwrap_or(i64::MAX)).is_err() {
                break;
            }
        }
    });
    loop {
        while let Ok(more) = granted.try_recv() {
            credit = credit.saturating_add(more);
        }
        if credit <= 0 {
            match granted.recv().await {
                Some(more) => credit = credit.saturating_add(more),
                None => break,
            }
            continue;
        }
        let payload = payloads[usize::try_from(number)? % payloads.len()].clone();
        credit -= i64::try_from(payload.len())?;
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_u64(number);
        number += 1;
        if frames::send(&mut send, &header, payload).await.is_err() {
            // The reader has what it wanted.
            break;
        }
    }
    reading.abort();
    Ok(())
}
