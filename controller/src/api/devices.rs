//! Devices.

use std::collections::HashMap;

use axum::{Json, extract::State as Extract, http::StatusCode};
use longshore_protocol::{
    Condition, ConditionStatus, TokenId,
    api::{self, DeviceDesired, DeviceManifests, DeviceObject, DeviceObserved, DeviceState, List},
};
use sqlx::AnyConnection;

use super::{
    Api, ApiError, State,
    access::{InFleet, OfDevice},
};
use crate::store::{
    StoreError, content,
    devices::{self, Device, DeviceView},
    fleets::FleetId,
    tokens,
};

pub(super) async fn list(
    Extract(api): State,
    InFleet(fleet): InFleet,
) -> Result<Json<List<api::Device>>, ApiError> {
    let mut db = api.store.read().await?;
    let labels = token_labels(&mut db, &fleet.id).await?;
    let items = devices::list(&mut db, &fleet.id)
        .await?
        .into_iter()
        .map(|device| view(device, &labels))
        .collect();
    Ok(Json(List { items }))
}

pub(super) async fn show(
    Extract(api): State,
    OfDevice { device, .. }: OfDevice,
) -> Result<Json<api::Device>, ApiError> {
    answer(&api, device).await
}

pub(super) async fn manifests(
    Extract(api): State,
    OfDevice { device, .. }: OfDevice,
) -> Result<Json<DeviceManifests>, ApiError> {
    let nothing = || {
        let detail = format!(
            "device `{}` has no desired state yet; `longshore devices show {}` says why",
            device.name, device.name
        );
        ApiError::refused(StatusCode::NOT_FOUND, detail)
    };
    let tenant = &device.fleet.tenant;
    let mut db = api.store.read().await?;
    let desired = devices::desired(&mut db, tenant, &device.id)
        .await?
        .ok_or_else(nothing)?;
    let set = content::set(&mut db, tenant, desired.target.digest)
        .await?
        .ok_or_else(nothing)?;
    let digests = set.entries().iter().map(|entry| entry.digest);
    let bodies = content::objects(&mut db, tenant, digests).await?;
    let objects = set
        .entries()
        .iter()
        .filter_map(|entry| {
            let object = bodies.get(&entry.digest)?;
            Some(DeviceObject {
                key: entry.key.clone(),
                digest: entry.digest,
                object: object.redacted(),
            })
        })
        .collect();
    Ok(Json(DeviceManifests {
        generation: desired.target.generation,
        digest: desired.target.digest,
        revision: desired.revision,
        objects,
    }))
}

pub(super) async fn approve(
    Extract(api): State,
    OfDevice { fleet, device }: OfDevice,
) -> Result<Json<api::Device>, ApiError> {
    match device.state {
        // Said twice, done once.
        DeviceState::Active => {}
        DeviceState::Pending => {
            let branches = api
                .fleets
                .branches(&fleet.id)
                .ok_or_else(|| ApiError::not_found("fleet", &fleet.id.name))?;
            let changes = api.fleets.changes(&fleet.id);
            branches.merge(&device).await?;
            // Another replica may be the one that approves.
            api.fleets.look(&fleet.id);
            if let Some(mut changes) = changes {
                // The answer shows the device approved, unless that takes unusually long.
                let limit = std::time::Duration::from_secs(5);
                let approved = async {
                    while changes.changed().await.is_ok() {
                        let mut db = api.store.read().await?;
                        let now = devices::by_id(&mut db, &device.id).await?;
                        if now.is_none_or(|device| device.state != DeviceState::Pending) {
                            break;
                        }
                    }
                    Ok::<_, StoreError>(())
                };
                if let Ok(result) = tokio::time::timeout(limit, approved).await {
                    result?;
                }
            }
        }
        DeviceState::Rejected | DeviceState::Decommissioned => return Err(ended(&device)),
    }
    again(&api, &device).await
}

pub(super) async fn reject(
    Extract(api): State,
    OfDevice { fleet, device }: OfDevice,
) -> Result<Json<api::Device>, ApiError> {
    match device.state {
        DeviceState::Rejected => {}
        DeviceState::Pending => {
            let mut db = api.store.write().await?;
            let reason = "an operator rejected it";
            let ids = [device.id.clone()];
            devices::set_state(&mut db, &fleet.id, &ids, DeviceState::Rejected, reason).await?;
            db.commit().await?;
            api.fleets.changed(&fleet.id);
        }
        DeviceState::Active => {
            return Err(ApiError::refused(
                StatusCode::CONFLICT,
                format!(
                    "device `{}` is approved already; `longshore devices decommission {}` cuts it off",
                    device.name, device.name
                ),
            ));
        }
        DeviceState::Decommissioned => return Err(ended(&device)),
    }
    again(&api, &device).await
}

pub(super) async fn decommission(
    Extract(api): State,
    OfDevice { fleet, device }: OfDevice,
) -> Result<Json<api::Device>, ApiError> {
    match device.state {
        DeviceState::Decommissioned => {}
        DeviceState::Active | DeviceState::Pending => {
            let mut db = api.store.write().await?;
            let reason = "an operator decommissioned it";
            let ids = [device.id.clone()];
            devices::set_state(
                &mut db,
                &fleet.id,
                &ids,
                DeviceState::Decommissioned,
                reason,
            )
            .await?;
            devices::set_folder_to_delete(&mut db, &fleet.id, &device.id, true).await?;
            db.commit().await?;
            // The cut-off is at once; the folder's deletion follows in Git.
            api.hub.poke([&device.id]);
            api.fleets.changed(&fleet.id);
        }
        DeviceState::Rejected => return Err(ended(&device)),
    }
    again(&api, &device).await
}

pub(super) fn ended(device: &Device) -> ApiError {
    let detail = format!(
        "device `{}` is out of the fleet: {}",
        device.name, device.state_reason
    );
    ApiError::refused(StatusCode::CONFLICT, detail)
}

async fn again(api: &Api, device: &Device) -> Result<Json<api::Device>, ApiError> {
    let mut db = api.store.read().await?;
    let device = devices::by_id(&mut db, &device.id)
        .await?
        .ok_or_else(|| ApiError::not_found("device", &device.name))?;
    drop(db);
    answer(api, device).await
}

async fn answer(api: &Api, device: Device) -> Result<Json<api::Device>, ApiError> {
    let mut db = api.store.read().await?;
    let labels = token_labels(&mut db, &device.fleet).await?;
    Ok(Json(view(devices::view(&mut db, device).await?, &labels)))
}

async fn token_labels(
    db: &mut AnyConnection,
    fleet: &FleetId,
) -> Result<HashMap<TokenId, String>, StoreError> {
    let tokens = tokens::list(db, fleet).await?;
    Ok(tokens
        .into_iter()
        .map(|token| (token.id, token.label))
        .collect())
}

/// Where the device stands, as a condition: its reason says who or what decided.
fn approved(device: &Device) -> Condition {
    let (status, reason) = match device.state {
        DeviceState::Pending => (ConditionStatus::Unknown, "Pending"),
        DeviceState::Active => (ConditionStatus::True, "InBranch"),
        DeviceState::Rejected => (ConditionStatus::False, "Rejected"),
        DeviceState::Decommissioned => (ConditionStatus::False, "Decommissioned"),
    };
    Condition {
        kind: "Approved".to_owned(),
        status,
        reason: reason.to_owned(),
        message: device.state_reason.clone(),
        since: device.created_at,
    }
}

fn view(view: DeviceView, labels: &HashMap<TokenId, String>) -> api::Device {
    let DeviceView {
        device,
        desired,
        observed,
        connection,
    } = view;
    let mut conditions = vec![approved(&device)];
    conditions.extend(device.conditions);
    if let Some(observed) = &observed {
        conditions.extend(observed.report.conditions.iter().cloned());
    }
    api::Device {
        enrollment_branch: device
            .enrollment_branch
            .filter(|_| device.state == DeviceState::Pending),
        id: device.id,
        name: device.name,
        fleet: device.fleet.name,
        state: device.state,
        public_key: device.public_key,
        labels: device.labels,
        facts: device.facts,
        token_label: labels.get(&device.token).cloned().unwrap_or_default(),
        source_address: device.source_address,
        desired: desired.map(|desired| DeviceDesired {
            generation: desired.target.generation,
            digest: desired.target.digest,
            revision: desired.revision,
            objects: desired.objects,
            since: desired.since,
        }),
        observed: observed.map(|observed| DeviceObserved {
            generation: observed.report.held.generation,
            digest: observed.report.held.digest,
            phase: observed.report.phase,
            reported_at: observed.reported_at,
        }),
        connected: connection.connected,
        last_seen: connection.seen_at,
        conditions,
        created_at: device.created_at,
    }
}
