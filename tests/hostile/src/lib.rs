//! Components that misbehave, written as text and assembled by the tests that need them.
