//! Answers that list things come in pages, so that none grows without bound.

use prost::Message;

/// Items of a page, whatever a client asks for.
const PAGE_ITEMS_MAX: usize = 1_000;
/// Bytes of a page. The item that goes beyond it is its last.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// As many of the items as a page takes, and whether there are more. A `limit` of 0 is none of the client's.
pub(crate) fn page<M: Message>(mut items: impl Iterator<Item = M>, limit: u32) -> (Vec<M>, bool) {
    let limit = match usize::try_from(limit) {
        Ok(0) | Err(_) => PAGE_ITEMS_MAX,
        Ok(limit) => limit.min(PAGE_ITEMS_MAX),
    };
    let (mut page, mut bytes) = (Vec::new(), 0);
    while page.len() < limit && bytes < PAGE_BYTES_MAX {
        let Some(item) = items.next() else { return (page, false) };
        bytes += item.encoded_len();
        page.push(item);
    }
    (page, items.next().is_some())
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::messages::PluginVersion;

    use super::*;

    fn items(count: usize, bytes: usize) -> impl Iterator<Item = PluginVersion> {
        (0..count).map(move |_| PluginVersion { summary: "s".repeat(bytes), ..PluginVersion::default() })
    }

    #[test]
    fn a_page_is_bounded_by_what_is_asked_by_items_and_by_bytes() {
        for (count, bytes, limit, expected) in [
            (0, 1, 0, (0, false)),
            (5, 1, 0, (5, false)),
            (5, 1, 5, (5, false)),
            (5, 1, 2, (2, true)),
            (1_001, 1, u32::MAX, (1_000, true)),
            (1_001, 1, 0, (1_000, true)),
            (3, 2 << 20, 0, (1, true)),
            (40, 100_000, 0, (11, true)),
        ] {
            let (page, more) = page(items(count, bytes), limit);
            assert_eq!((page.len(), more), expected, "{count} items of {bytes} bytes, limit {limit}");
        }
    }
}
