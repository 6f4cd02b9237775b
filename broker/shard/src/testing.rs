//! What tests say in one word.

use bytes::{BufMut, Bytes, BytesMut};
use tidemill_protocol::TopicPartition;

use crate::{Fetch, Shard};

/// A record batch of `count` records; its records' bytes are only as real as apply needs.
pub(crate) fn batch(count: u32) -> BatchSpec {
    BatchSpec { count, producer: (-1, -1, -1), timestamp: 0, payload: vec![b'x'; 20] }
}

pub(crate) struct BatchSpec {
    count: u32,
    producer: (i64, i16, i32),
    timestamp: i64,
    payload: Vec<u8>,
}

impl BatchSpec {
    pub(crate) fn producer(self, id: i64, epoch: i16, sequence: i32) -> Self {
        Self { producer: (id, epoch, sequence), ..self }
    }

    pub(crate) fn timestamp(self, timestamp: i64) -> Self {
        Self { timestamp, ..self }
    }

    pub(crate) fn payload(self, payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), ..self }
    }

    pub(crate) fn build(&self) -> Bytes {
        let count = i32::try_from(self.count).unwrap();
        let mut counted = BytesMut::new();
        counted.put_i16(0);
        counted.put_i32(count - 1);
        counted.put_i64(self.timestamp);
        counted.put_i64(self.timestamp);
        counted.put_i64(self.producer.0);
        counted.put_i16(self.producer.1);
        counted.put_i32(self.producer.2);
        counted.put_i32(count);
        counted.put_slice(&self.payload);
        let mut batch = BytesMut::new();
        batch.put_i64(-1);
        batch.put_i32(i32::try_from(counted.len() + 9).unwrap());
        batch.put_i32(-1);
        batch.put_u8(2);
        batch.put_u32(crc32c::crc32c(&counted));
        batch.put_slice(&counted);
        batch.freeze()
    }
}

/// All bytes of a partition, read in steps of so many, from memory and from segments.
pub(crate) fn read_all(shard: &Shard, id: TopicPartition, step_bytes: usize) -> Vec<u8> {
    let mut from = shard.partition(id).unwrap().log_start;
    let mut bytes = Vec::new();
    loop {
        let batches = match shard.fetch(id, from, step_bytes) {
            Fetch::Memory(batches) => batches,
            Fetch::Disk(disk) => disk.run().unwrap(),
            other => panic!("{other:?}"),
        };
        if batches.is_empty() {
            return bytes;
        }
        bytes.extend(batches.parts.concat());
        from = batches.next;
    }
}
