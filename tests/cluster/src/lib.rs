//! Real broker processes under test: the world, the checks, chaos.
