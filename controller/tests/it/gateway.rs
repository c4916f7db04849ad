//! What the gateway does with the store.

mod recorder;
