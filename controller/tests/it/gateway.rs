//! What the gateway does with the store and with devices.

mod admission;
mod floods;
mod logs;
mod recorder;
mod slow_readers;
mod stalls;
mod storms;
mod world;
