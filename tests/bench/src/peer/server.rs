use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::json;

use super::frames::{self, Reader};
use super::{ACK_BYTES, FRAME_BYTES_MAX, HEADER_BYTES, Kind, tls};
use crate::Outcome;
use crate::work::noise;

/// Different payloads that a fetch-like stream sends in turn: more than a processor's caches hold.
const FETCH_PAYLOADS: usize = 64;

/// Serves until standard input ends, which it does with the process that started this one.
pub(crate) async fn serve(tls_dir: &Path) -> Outcome<()> {
    let (endpoint, authority) = tls::server(tls_dir)?;
    println!("{}", json!({ "listening": endpoint.local_addr()?.to_string(), "ca": authority }));
    let accepting = tokio::spawn(accept(endpoint.clone()));
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    accepting.abort();
    endpoint.close(0_u32.into(), b"");
    Ok(())
}

/// Serves every connection to an endpoint.
pub(super) async fn accept(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                connection_of(connection).await;
            }
        });
    }
}

async fn connection_of(connection: quinn::Connection) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(async move {
            if let Err(error) = stream_of(send, receive).await {
                eprintln!("bench: the bare peer: {error}");
            }
        });
    }
}

async fn stream_of(send: quinn::SendStream, receive: quinn::RecvStream) -> Outcome<()> {
    let mut reader = Reader::new(receive);
    let Some([kind]) = reader.number().await? else { return Ok(()) };
    match Kind::of(kind).ok_or("a stream of no known kind")? {
        Kind::Produce => produce(send, reader).await,
        Kind::Echo => echo(send, reader).await,
        Kind::Fetch => fetch(send, reader).await,
    }
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
    let (more, mut granted) = tokio::sync::mpsc::unbounded_channel();
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
