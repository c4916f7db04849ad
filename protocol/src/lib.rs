//! The contract between Longshore's controller, its agents and its operators.
//!
//! Everything here is pure: no I/O, no clock, no runtime. The crate has four parts:
//!
//! - **names**: [`id`], [`digest`], [`generation`] parse once, so that the rest of the code never validates;
//! - **content**: [`object`] and [`manifest`] say what a device runs, content-addressed, with
//!   [`manifest::diff`] and [`manifest::apply`] between two versions of it;
//! - **sessions**: [`message`] is what travels on the WebSocket, [`session`] the two state machines that
//!   exchange it;
//! - **HTTP**: [`api`] is the shape of enrollment and of the operator's API.
#![warn(missing_docs)]

pub mod api;
pub mod condition;
pub mod digest;
pub mod generation;
pub mod id;
pub mod manifest;
pub mod message;
pub mod object;
pub mod session;
pub mod text;
mod wire;

pub use condition::{Condition, ConditionStatus};
pub use digest::Digest;
pub use generation::Generation;
pub use id::{DeviceId, DeviceName, FleetName, TenantName, TokenId};
pub use manifest::{Delta, Entry, ManifestSet};
pub use object::{Object, ObjectKey};
