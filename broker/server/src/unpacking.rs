//! Where compressed batches are unpacked: small ones at once, others in a few places apart, so that whoever sends bombs holds
//! neither the threads that serve everybody nor their memory.
//!
//! ```text
//!  no compression, or surely small ........... here and now: nothing is copied, nobody is woken
//!  small as it came, of unknown size ......... here and now, as far as INLINE_BYTES_MAX; else
//!  all others ................................ one of the connection's places, bytes of the budget, one of the pool's places
//! ```
//!
//! The pool's place is held while something runs; the connection's, and the bytes, until the records are needed no more. Of a size
//! that is not known before, the bytes are as many as there may be, and once the records are there as many as they have. All
//! three are given out in the order of asking, so that a connection waits for others' batches, at most two of each, and not
//! for all that one of them sends. Produce streams and subscriptions of one connection have its places together, also those that another
//! broker brings.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tidemill_protocol::BrokerId;
use tidemill_protocol::messages::Error;
use tidemill_protocol::record_batch::{BatchError, BatchLimits, Compression, RecordBatch, Records};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors;

/// What is unpacked where it came: its bytes, decompressed. Some hundreds of microseconds.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// Whose size is not known before is tried where it came if it has no more than this, compressed.
const INLINE_COMPRESSED_BYTES_MAX: usize = 64 << 10;
/// Batches that are unpacked, or made anew, at once.
const PLACES: usize = 4;
/// Those of one connection that are unpacked and not done with.
const CONNECTION_PLACES: usize = 2;
/// Decompressed bytes of batches that were unpacked apart. The largest that a broker may be set to take fits.
const BYTES_MAX: usize = BatchLimits::DECOMPRESSED_BYTES_MOST;
/// Of so few connections to other brokers it is not looked which have no stream here any more.
const BROUGHT_MIN: usize = 64;

/// The places and the memory that all connections share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct UnpackPool {
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    brought: Arc<Mutex<Brought>>,
}

/// The places of connections to other brokers, for as long as these bring streams of them: by the broker, and its number for the
/// connection.
#[derive(Default)]
struct Brought {
    places: HashMap<(BrokerId, u64), Weak<Semaphore>>,
    /// With so many of them it is looked again which are over: twice as many as there were then.
    look_at: usize,
}

/// The pool as one connection has it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Unpacker {
    pool: UnpackPool,
    connection: Arc<Semaphore>,
}

/// A batch's records, decompressed and each found good; with the room that they take, until they are dropped.
pub(crate) struct Unpacked {
    records: Records,
    _room: Option<Room>,
}

struct Room {
    _connection: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
}

/// How a batch is unpacked.
type Unpack = fn(&RecordBatch, &BatchLimits) -> Result<Records, BatchError>;

impl UnpackPool {
    pub(crate) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
            bytes: Arc::new(Semaphore::new(BYTES_MAX)),
            brought: Arc::default(),
        }
    }

    /// For one more connection: all its streams have this one.
    pub(crate) fn for_connection(&self) -> Unpacker {
        Unpacker { pool: self.clone(), connection: Arc::new(Semaphore::new(CONNECTION_PLACES)) }
    }

    /// For a stream that another broker brings of a connection that it knows by this number: all that it brings of it have this one.
    pub(crate) fn for_brought(&self, by: BrokerId, connection: u64) -> Unpacker {
        Unpacker { pool: self.clone(), connection: self.brought.lock().places_of((by, connection)) }
    }
}

impl Brought {
    fn places_of(&mut self, connection: (BrokerId, u64)) -> Arc<Semaphore> {
        if let Some(places) = self.places.get(&connection).and_then(Weak::upgrade) {
            return places;
        }
        if self.places.len() >= self.look_at.max(BROUGHT_MIN) {
            self.places.retain(|_, places| places.strong_count() > 0);
            self.look_at = self.places.len() * 2;
        }
        let places = Arc::new(Semaphore::new(CONNECTION_PLACES));
        self.places.insert(connection, Arc::downgrade(&places));
        places
    }
}

impl Unpacker {
    /// The records of a batch, each of them checked.
    ///
    /// # Errors
    /// The batch is not as it should be; as the client is told.
    pub(crate) async fn unpack(&self, batch: &RecordBatch, limits: &BatchLimits) -> Result<Unpacked, Error> {
        self.unpack_by(checked, batch, limits).await
    }

    /// The records of a stored batch, as they are: they were checked when they came. More of them than `usual_bytes_max` are tried last:
    /// where nothing says a batch's size before, it would take the whole budget each time.
    ///
    /// # Errors
    /// The batch does not unpack; as the client is told.
    pub(crate) async fn unpack_stored(
        &self,
        batch: &RecordBatch,
        usual_bytes_max: usize,
    ) -> Result<Unpacked, Error> {
        let usual = BatchLimits { decompressed_bytes_max: usual_bytes_max, ..BatchLimits::STORED };
        if let Ok(unpacked) = self.unpack_by(RecordBatch::records, batch, &usual).await {
            return Ok(unpacked);
        }
        self.unpack_by(RecordBatch::records, batch, &BatchLimits::STORED).await
    }

    async fn unpack_by(
        &self,
        unpack: Unpack,
        batch: &RecordBatch,
        limits: &BatchLimits,
    ) -> Result<Unpacked, Error> {
        if batch.header().attributes.compression == Compression::None {
            let records = unpack(batch, limits).map_err(|error| errors::batch(&error))?;
            return Ok(Unpacked { records, _room: None });
        }
        if is_worth_a_try(batch) {
            let bytes_max = limits.decompressed_bytes_max.min(INLINE_BYTES_MAX);
            let small = BatchLimits { decompressed_bytes_max: bytes_max, ..*limits };
            match unpack(batch, &small) {
                Ok(records) => return Ok(Unpacked { records, _room: None }),
                // With so little room that proves nothing.
                Err(BatchError::DecompressedTooLarge { .. } | BatchError::Decompress { .. }) => {}
                Err(error) => return Err(errors::batch(&error)),
            }
        }
        self.unpack_apart(unpack, batch.clone(), *limits).await
    }

    async fn unpack_apart(
        &self,
        unpack: Unpack,
        batch: RecordBatch,
        limits: BatchLimits,
    ) -> Result<Unpacked, Error> {
        metrics::counter!("tidemill_unpacked_apart_total").increment(1);
        let most = batch.decompressed_bytes_at_most().unwrap_or(usize::MAX);
        let bytes = most.min(limits.decompressed_bytes_max).min(BYTES_MAX);
        let connection = taken(&self.connection, 1).await;
        let mut room = Room { _connection: connection, bytes: taken(&self.pool.bytes, bytes).await };
        let unpacked = self.in_a_place(move || -> Result<Unpacked, BatchError> {
            let records = unpack(&batch, &limits)?;
            room.shrink_to(records.data().len());
            Ok(Unpacked { records, _room: Some(room) })
        });
        unpacked.await?.map_err(|error| errors::batch(&error))
    }

    /// Makes batches of records: at once where there are few bytes, or none to compress; else in one of the pool's places.
    ///
    /// # Errors
    /// The broker is stopping.
    pub(crate) async fn make<T: Send + 'static>(
        &self,
        unpacked: Unpacked,
        compression: Compression,
        make: impl FnOnce(&Records) -> T + Send + 'static,
    ) -> Result<T, Error> {
        if compression == Compression::None || unpacked.data().len() <= INLINE_BYTES_MAX {
            return Ok(make(&unpacked));
        }
        self.in_a_place(move || make(&unpacked)).await
    }

    /// What is left of a batch, not compressed, in the compression that the batch had. The room that the batch takes is held until then.
    ///
    /// # Errors
    /// It can't be compressed, or the broker is stopping.
    pub(crate) async fn repack(
        &self,
        unpacked: Unpacked,
        left: RecordBatch,
        compression: Compression,
    ) -> Result<RecordBatch, Error> {
        if compression == Compression::None {
            return Ok(left);
        }
        let left = left.records(&BatchLimits::MADE_HERE).map_err(|error| errors::batch(&error))?;
        let pack = move |left: &Records| left.recompressed(compression);
        let packed = self.make(unpacked.with(left), compression, pack).await?;
        packed.map_err(|error| errors::reshape(&error))
    }

    /// Whoever waits may go meanwhile: the place is given back when the work is done.
    async fn in_a_place<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let place = taken(&self.pool.places, 1).await;
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        match work.await {
            Ok(done) => Ok(done),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(errors::stopping()),
        }
    }
}

impl Unpacked {
    /// Other records in their place, which take the same room.
    pub(crate) fn with(self, records: Records) -> Self {
        Self { records, ..self }
    }
}

impl Room {
    /// Gives back what is not needed, now that the size is known.
    fn shrink_to(&mut self, bytes: usize) {
        let unused = self.bytes.num_permits().saturating_sub(bytes);
        drop(self.bytes.split(unused));
    }
}

impl Deref for Unpacked {
    type Target = Records;

    fn deref(&self) -> &Records {
        &self.records
    }
}

fn checked(batch: &RecordBatch, limits: &BatchLimits) -> Result<Records, BatchError> {
    let records = batch.records(limits)?;
    records.validate()?;
    Ok(records)
}

fn is_worth_a_try(batch: &RecordBatch) -> bool {
    match batch.decompressed_bytes_at_most() {
        Some(most) => most <= INLINE_BYTES_MAX,
        None => batch.bytes().len() <= INLINE_COMPRESSED_BYTES_MAX,
    }
}

async fn taken(from: &Arc<Semaphore>, count: usize) -> OwnedSemaphorePermit {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Arc::clone(from).acquire_many_owned(count).await.expect("nobody closes it")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tidemill_protocol::record_batch::{BatchBuilder, BuilderOptions};
    use tidemill_protocol::{ErrorCode, Timestamp};

    use super::*;

    const MIB: usize = 1 << 20;
    const PACKED: [Compression; 4] =
        [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    fn limits() -> BatchLimits {
        BatchLimits { decompressed_bytes_max: 16 * MIB, record_bytes_max: 64 * MIB, ..BatchLimits::default() }
    }

    /// A batch of one record that is easy to compress.
    fn batch(compression: Compression, bytes: usize) -> RecordBatch {
        let options =
            BuilderOptions { compression, batch_bytes_max: usize::MAX, ..BuilderOptions::default() };
        let mut builder = BatchBuilder::new(options);
        builder.append(Timestamp::new(5), Some(b"k"), Some(&vec![0; bytes]), []).expect("it fits");
        RecordBatch::decode(builder.build().expect("it builds"), &limits()).expect("it decodes")
    }

    #[tokio::test]
    async fn what_is_small_or_not_compressed_waits_for_nobody() {
        let pool = UnpackPool::new();
        let _bombs = taken(&pool.places, PLACES).await;
        let unpacker = pool.for_connection();
        for batch in [batch(Compression::None, 4 * MIB)]
            .into_iter()
            .chain(PACKED.map(|compression| batch(compression, 100_000)))
        {
            let unpacked = unpacker.unpack(&batch, &limits()).now_or_never().expect("at once").expect("good");
            assert_eq!(unpacked.len(), 1);
            let made =
                unpacker.make(unpacked, Compression::Lz4, |records| records.len()).now_or_never().is_some();
            assert_eq!(made, batch.header().attributes.compression != Compression::None, "4 MiB are many");
        }
        for compression in PACKED {
            let large = batch(compression, 4 * MIB);
            let now = unpacker.unpack(&large, &limits()).now_or_never();
            assert!(now.is_none(), "{compression}: every place is taken");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_small_batch_is_answered_while_another_connection_sends_bombs() {
        let pool = UnpackPool::new();
        let bomber = pool.for_connection();
        let bombs = PACKED.map(|compression| batch(compression, 17 * MIB));
        let bombs: Vec<_> = bombs
            .into_iter()
            .cycle()
            .take(24)
            .map(|bomb| {
                let bomber = bomber.clone();
                tokio::spawn(async move { bomber.unpack(&bomb, &limits()).await.map(drop) })
            })
            .collect();
        let other = pool.for_connection();
        for compression in PACKED {
            let small = batch(compression, 50_000);
            assert!(other.unpack(&small, &limits()).now_or_never().expect("at once").is_ok());
        }
        // A large one comes to its turn before all of them have been: the bomber has two places, and there are four.
        let large = other.unpack(&batch(Compression::Zstd, 4 * MIB), &limits()).await.expect("good");
        assert_eq!(large.data().len() / MIB, 4);
        for bomb in bombs {
            let error = bomb.await.expect("no panic").expect_err("too large");
            assert_eq!(error.error_code(), Some(ErrorCode::BatchTooLarge));
        }
    }

    #[tokio::test]
    async fn no_connection_has_more_than_its_places_and_none_takes_more_than_the_budget() {
        let pool = UnpackPool::new();
        let (first, second) = (pool.for_connection(), pool.for_connection());
        let large = batch(Compression::Zstd, 4 * MIB);
        let mut held = Vec::new();
        for _ in 0..CONNECTION_PLACES {
            held.push(first.unpack(&large, &limits()).await.expect("good"));
        }
        assert_eq!(pool.places.available_permits(), PLACES, "nothing runs");
        assert!(first.unpack(&large, &limits()).now_or_never().is_none(), "its places are taken");
        assert_eq!(first.connection.available_permits(), 0);
        drop(second.unpack(&large, &limits()).await.expect("another's are not"));
        let used: usize = held.iter().map(|unpacked| unpacked.data().len()).sum();
        assert_eq!(pool.bytes.available_permits(), BYTES_MAX - used, "zstd says its size");
        // Of unknown size: as much as it may have, and once it is there as much as it has.
        held.clear();
        let gzip = batch(Compression::Gzip, 3 * MIB);
        let too_little = taken(&pool.bytes, BYTES_MAX - limits().decompressed_bytes_max + 1).await;
        assert!(first.unpack(&gzip, &limits()).now_or_never().is_none(), "it might have more");
        drop(too_little);
        let unknown = first.unpack(&gzip, &limits()).await.expect("good");
        assert_eq!(pool.bytes.available_permits(), BYTES_MAX - unknown.data().len());
        assert_eq!(unknown.data().len() / MIB, 3);
        let all_of_it = taken(&pool.bytes, pool.bytes.available_permits()).await;
        assert!(second.unpack(&large, &limits()).now_or_never().is_none(), "the budget is used up");
        drop((unknown, all_of_it));
        assert!(second.unpack(&large, &limits()).await.is_ok());
        assert!(first.unpack(&batch(Compression::Gzip, 17 * MIB), &limits()).await.is_err(), "too large");
        assert_eq!(pool.bytes.available_permits(), BYTES_MAX, "who is refused holds nothing");
    }

    #[tokio::test]
    async fn streams_of_one_connection_have_its_places_also_where_another_broker_brings_them() {
        let pool = UnpackPool::new();
        let (one, other) = (BrokerId::new(1), BrokerId::new(2));
        let large = batch(Compression::Zstd, 4 * MIB);
        let mut held = Vec::new();
        for _ in 0..CONNECTION_PLACES {
            held.push(pool.for_brought(one, 7).unpack(&large, &limits()).await.expect("good"));
        }
        let third = pool.for_brought(one, 7);
        assert!(third.unpack(&large, &limits()).now_or_never().is_none(), "its places are taken");
        for another in [pool.for_brought(one, 8), pool.for_brought(other, 7), pool.for_connection()] {
            drop(another.unpack(&large, &limits()).await.expect("another's are not"));
        }
        held.clear();
        assert!(third.unpack(&large, &limits()).await.is_ok());
        drop(third);
        for number in 0..10 * BROUGHT_MIN as u64 {
            drop(pool.for_brought(one, number));
        }
        assert!(pool.brought.lock().places.len() <= BROUGHT_MIN, "of those that are over nothing is kept");
    }

    /// A subscription's filter reads what was checked when it came, and takes the same room for it.
    #[tokio::test]
    async fn a_stored_batch_takes_room_too_where_it_is_large() {
        let pool = UnpackPool::new();
        let unpacker = pool.for_connection();
        for compression in PACKED {
            let small = unpacker.unpack_stored(&batch(compression, 100_000), 16 * MIB).now_or_never();
            assert_eq!(small.expect("at once").expect("good").len(), 1);
            assert_eq!(pool.bytes.available_permits(), BYTES_MAX);
            // More than the broker takes by now.
            let large = unpacker.unpack_stored(&batch(compression, 17 * MIB), 16 * MIB).await.expect("good");
            assert_eq!(pool.bytes.available_permits(), BYTES_MAX - large.data().len(), "{compression}");
        }
    }

    #[tokio::test]
    async fn the_limit_that_a_client_is_told_of_is_the_brokers() {
        let unpacker = UnpackPool::new().for_connection();
        for compression in PACKED {
            let whole = batch(compression, 100_000);
            let low = BatchLimits { decompressed_bytes_max: 90_000, ..limits() };
            let error = unpacker.unpack(&whole, &low).await.err().expect("too large");
            assert_eq!(error.error_code(), Some(ErrorCode::BatchTooLarge), "{compression}");
            assert!(error.message.contains("90000"), "{compression}: {error}");
        }
    }
}
