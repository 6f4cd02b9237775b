//! A source that can't be read: it is told, it holds up no other, and it goes on where it stood.

use tidemill_hostile as hostile;
use tidemill_protocol::Timestamp;

use crate::kit::*;

#[tokio::test]
async fn a_source_that_cannot_be_read_is_told_and_goes_on_when_it_can() {
    let second = partition_of(9);
    let options = StageOptions { second_source: Some(second), ..StageOptions::default() };
    let stage = options.set(hostile::does_everything()).await;
    stage.port.damage(source(), "a frame of segment 7 is damaged");
    stage.append(&keys_but(2, &[]), 1000);
    stage.port.shard.append(second, &batch(&keys_but(3, &[]), 1000), Timestamp::new(1000));
    stage.run();
    let position =
        |of| stage.task().positions.iter().find(|(source, _)| *source == of).map(|(_, at)| at.get());
    eventually("the other source's records are done", || position(second) == Some(3)).await;
    let waits = || stage.room.hosting.waits(DEPLOYMENT, PARTITION);
    eventually("it is told", || waits().is_some_and(|reason| reason.contains("segment 7"))).await;
    eventually("it is looked at again", || stage.counter("unreadable_reads") >= 3).await;
    assert_eq!(stage.log().matches("segment 7").count(), 1, "once, however often: {}", stage.log());
    // What comes meanwhile is done, and changes nothing of it.
    stage.port.shard.append(second, &batch(&keys_but(1, &[]), 1000), Timestamp::new(1000));
    eventually("what comes is done", || position(second) == Some(4)).await;
    assert_eq!(position(source()), Some(0), "no record is gone past");
    assert!(waits().is_some());
    stage.port.mend();
    stage.reaches(2).await;
    eventually("nothing is wrong any more", || waits().is_none()).await;
    assert_eq!(stage.log().matches("source-0 can be read again").count(), 1, "{}", stage.log());
}

#[tokio::test]
async fn a_task_whose_only_source_cannot_be_read_waits_and_does_not_spin() {
    let stage = StageOptions::default().set(hostile::relay()).await;
    stage.port.damage(source(), "the disk does not answer");
    stage.append(&keys_but(2, &[]), 1000);
    stage.run();
    eventually("it looks several times", || stage.counter("unreadable_reads") >= 4).await;
    let looks = stage.port.fetches();
    let pauses: Vec<u128> = looks.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(pauses.iter().zip([100, 200, 400]).all(|(pause, least)| *pause >= least - 5), "{pauses:?}");
    stage.port.mend();
    stage.reaches(2).await;
    assert_eq!(stage.counter("calls"), 1);
}
