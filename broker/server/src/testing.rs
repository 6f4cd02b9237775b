//! What tests of more than one module begin with.

use std::path::Path;

use crate::config::BrokerConfig;

/// The settings of a broker alone, of one data shard, that needs little room.
pub(crate) fn small_config(data_dir: &Path) -> BrokerConfig {
    let mut config = BrokerConfig {
        data_dir: data_dir.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        shards: Some(1),
        ..BrokerConfig::default()
    };
    config.wal.segment_bytes = 8 << 20;
    config.wal.bytes_max = 64 << 20;
    config.storage.disk_reserve_bytes = 0;
    config.storage.disk_free_min_bytes = 0;
    config
}
