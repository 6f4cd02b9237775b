//! Consumer groups' committed positions as a pure state machine.
