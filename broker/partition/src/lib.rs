//! One partition's replicated state: offsets, epochs, producer sequences.
