//! What a plugin answers, checked and read as the broker does it.

use crate::batch::{Batch, NOT_ASKED, NULL};
use crate::failure::{Rejection, in_order};
use crate::headers::Headers;
use crate::output::{Output, ROW_BYTES};
use crate::testing::TestRecord;

const UNSET: u32 = 0xffff_ffff;

/// Reads emitted records; an error where the broker would refuse them.
pub(crate) fn emitted_records(output: &Output, input: &Batch) -> Result<Vec<TestRecord>, String> {
    read(output, input.len(), |row, ordinal| {
        let timestamp = match (timestamp(row), ordinal.and_then(|ordinal| input.get(ordinal))) {
            (None, Some(record)) => record.timestamp(),
            (None, None) => input.now(),
            (Some(timestamp), _) => timestamp,
        };
        let part = |column: usize| match row[column + 1] {
            NOT_ASKED => Err("\"as in the input\" is for filters only".to_owned()),
            _ => part(output, row, column),
        };
        Ok(TestRecord {
            key: part(0)?.map(<[u8]>::to_vec),
            value: part(2)?.map(<[u8]>::to_vec),
            headers: headers(part(4)?),
            timestamp,
            ordinal,
            partition: (row[9] != UNSET).then_some(row[9]),
        })
    })
}

/// Reads the records that a filter replaced; an error where the broker would refuse them.
pub(super) fn replaced_records(output: &Output, input: &Batch) -> Result<Vec<TestRecord>, String> {
    let mut next = 0;
    read(output, input.len(), |row, ordinal| {
        let ordinal = ordinal.ok_or("a filter's record comes from an input record")?;
        if ordinal < next {
            return Err(format!("record {ordinal} comes after record {}", next - 1));
        }
        next = ordinal + 1;
        if row[9] != UNSET {
            return Err("a filter moves no records to another partition".to_owned());
        }
        let record = input.get(ordinal).ok_or("no such record")?;
        let own = |column: usize, input: Option<&[u8]>| match row[column + 1] {
            NOT_ASKED => Ok(input.map(<[u8]>::to_vec)),
            _ => part(output, row, column).map(|part| part.map(<[u8]>::to_vec)),
        };
        Ok(TestRecord {
            key: own(0, record.key())?,
            value: own(2, record.value())?,
            headers: headers(own(4, Some(record.header_bytes()))?.as_deref()),
            timestamp: timestamp(row).unwrap_or(record.timestamp()),
            ordinal: Some(ordinal),
            partition: None,
        })
    })
}

/// Rejections as they reach the broker; an error where it would refuse them.
pub(super) fn checked_rejections(
    rejections: Vec<Rejection>,
    records: usize,
) -> Result<Vec<Rejection>, String> {
    match rejections.iter().find(|rejection| rejection.ordinal as usize >= records) {
        Some(rejection) => Err(format!("record {} is rejected, but there are {records}", rejection.ordinal)),
        None => Ok(in_order(rejections)),
    }
}

type Row = [u32; ROW_BYTES / 4];

fn read(
    output: &Output,
    inputs: usize,
    mut record: impl FnMut(&Row, Option<u32>) -> Result<TestRecord, String>,
) -> Result<Vec<TestRecord>, String> {
    let (rows, rest) = output.index.as_chunks::<ROW_BYTES>();
    if !rest.is_empty() {
        return Err(format!("the index has {} bytes too many", rest.len()));
    }
    rows.iter()
        .map(|row| {
            let mut columns: Row = [0; ROW_BYTES / 4];
            for (column, bytes) in columns.iter_mut().zip(row.as_chunks::<4>().0) {
                *column = u32::from_le_bytes(*bytes);
            }
            let ordinal = (columns[6] != UNSET).then_some(columns[6]);
            if ordinal.is_some_and(|ordinal| ordinal as usize >= inputs) {
                return Err(format!("a record comes from record {}, but there are {inputs}", columns[6]));
            }
            if timestamp(&columns).is_some_and(|timestamp| timestamp < 0) {
                return Err("a record's timestamp lies before 1970".to_owned());
            }
            record(&columns, ordinal)
        })
        .collect()
}

fn part<'o>(output: &'o Output, row: &Row, column: usize) -> Result<Option<&'o [u8]>, String> {
    let (offset, length) = (row[column] as usize, row[column + 1]);
    if length == NULL {
        return Ok(None);
    }
    let part = output.data.get(offset..).and_then(|rest| rest.get(..length as usize));
    part.map(Some).ok_or_else(|| {
        format!("the index points to {length} bytes at {offset}, the data has {}", output.data.len())
    })
}

fn timestamp(row: &Row) -> Option<i64> {
    let timestamp = (i64::from(row[8]) << 32) | i64::from(row[7]);
    (timestamp != -1).then_some(timestamp)
}

fn headers(encoded: Option<&[u8]>) -> Vec<(String, Option<Vec<u8>>)> {
    Headers::new(encoded.unwrap_or_default())
        .map(|header| (String::from_utf8_lossy(header.name).into_owned(), header.value.map(<[u8]>::to_vec)))
        .collect()
}
