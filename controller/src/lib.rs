//! Longshore's controller: from a commit in a fleet repo to a running change on a device.
//!
//! The modules in the order in which a commit passes them ([`longshore_fleet`] holds the pure middle part):
//!
//! ```text
//! source ─▶ fleet ─▶ closure ─▶ render ─▶ rollout ─▶ reconcile ─▶ hub ─▶ gateway ─▶ (agent)
//! Revision  Fleet    InputKey   objects   Plan       desired      poke   messages
//!           └──── longshore_fleet ────┘
//! ```
//!
//! Before the way, [`preview`] tells what a change would do; after it, [`commit_status`] tells how far a commit is.
//! Both tell it through a [`forge`], the Git host of the fleet; [`hosting`] is one for those who have none.
//!
//! Beside the way: [`enrollment`] and [`ca`] let devices in, [`store`] remembers, [`api`] answers operators,
//! [`logs`] lets them read devices' logs, [`run`] wires it all.
#![warn(missing_docs)]

pub mod api;
pub mod builds;
pub mod ca;
pub mod certificates;
pub mod clock;
pub mod commit_status;
pub mod config;
mod crowd;
pub mod enrollment;
pub mod error;
pub mod files;
pub mod fleets;
pub mod forge;
pub mod gateway;
pub mod hosting;
pub mod hub;
pub mod logs;
pub mod metrics;
pub mod preview;
mod process_group;
pub mod rate;
pub mod reconcile;
pub mod replica;
pub mod rollout;
pub mod run;
pub mod secret;
mod shares;
pub mod source;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod tls;
