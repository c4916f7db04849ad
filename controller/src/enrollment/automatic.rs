//! What a pass writes to the tracked branch itself: devices of automatic tokens, and folders of devices that an
//! operator decommissioned.

use std::time::Duration;

use longshore_fleet::Tree as _;
use longshore_protocol::api::DeviceState;
use tokio::time::Instant;
use tracing::warn;

use super::{
    branches::BranchError,
    pass::{ARRIVAL, Pass},
    waiting::Obstacle,
};
use crate::{
    error::chain,
    source::mirror::Edit,
    store::{
        StoreError,
        devices::{self, Device},
    },
};

/// After how long a tracked branch that refused a push, and has not moved since, is tried again.
const REFUSED: Duration = Duration::from_mins(10);

impl Pass<'_> {
    /// Commits devices that need nobody's approval. Those that the tracked branch does not take are left to people.
    pub(super) async fn commit_automatic(&mut self) -> Result<(), BranchError> {
        let waiting: Vec<_> = self
            .pending
            .iter()
            .filter(|device| self.is_automatic(device))
            .cloned()
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let ground = self.ground(self.tracked).await?;
        let tree = self.parts.mirror.tree(self.tracked).await?;
        // A folder that people made is theirs: what a device would change in it, they decide.
        let (taken, devices): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|device| ground.has(device.name.as_str()));
        self.fallback.extend(taken.into_iter().map(|it| it.id));
        let is_refused = self
            .memory
            .refused
            .is_some_and(|(tracked, at)| tracked == self.tracked && at.elapsed() < REFUSED);
        if is_refused {
            self.fallback.extend(devices.into_iter().map(|it| it.id));
            return Ok(());
        }
        if devices.is_empty() {
            return Ok(());
        }
        // What was committed last is not seen yet: on top of that comes everything that came since, in one commit.
        let is_under_way = self
            .memory
            .committed
            .is_some_and(|(tracked, at)| tracked == self.tracked && at.elapsed() < ARRIVAL);
        if is_under_way {
            self.on_their_way
                .extend(devices.into_iter().map(|it| it.id));
            return Ok(());
        }
        if let Some(problem) = self.memory.push_pause.problem() {
            self.obstruct_tracked(&devices, problem);
            return Ok(());
        }
        let edits = devices
            .iter()
            .filter_map(|device| Some((device, self.tokens.get(&device.token)?)))
            .flat_map(|(device, token)| self.parts.files(&ground, &tree, device, token))
            .collect();
        let message = match devices.as_slice() {
            [device] => format!("Enroll {}\n", device.name),
            several => {
                let names: Vec<_> = several.iter().map(|it| format!("- {}", it.name)).collect();
                format!("Enroll {} devices\n\n{}\n", several.len(), names.join("\n"))
            }
        };
        let mirror = &self.parts.mirror;
        let pushed = async {
            let commit = mirror.commit(Some(self.tracked), edits, message).await?;
            mirror.push_tracked(commit, Some(self.tracked)).await
        };
        match pushed.await {
            Ok(()) => {
                self.memory.push_pause.worked();
                self.memory.committed = Some((self.tracked, Instant::now()));
                self.on_their_way
                    .extend(devices.into_iter().map(|it| it.id));
                self.pushed = true;
            }
            Err(error) if error.is_race() => {
                self.on_their_way
                    .extend(devices.into_iter().map(|it| it.id));
                self.pushed = true;
            }
            Err(error) if error.is_declined() => {
                warn!(
                    error = %chain(&error),
                    "the tracked branch refuses enrollments; people are asked instead"
                );
                self.memory.refused = Some((self.tracked, Instant::now()));
                self.fallback.extend(devices.into_iter().map(|it| it.id));
            }
            Err(error) => {
                let problem = self.memory.push_pause.failed(&error);
                self.obstruct_tracked(&devices, problem);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn obstruct_tracked(&mut self, devices: &[Device], problem: String) {
        let obstacle = Obstacle::Tracked(problem);
        let obstacles = devices.iter().map(|it| (it.id.clone(), obstacle.clone()));
        self.obstacles.extend(obstacles);
    }

    /// Deletes the folders of decommissioned devices from the tracked branch.
    pub(super) async fn delete_folders(&mut self) -> Result<(), BranchError> {
        // The name may have a new owner already, whose folder it then is.
        let mut db = self.parts.store.read().await?;
        let mut ours = Vec::new();
        for device in std::mem::take(&mut self.to_delete) {
            let named = devices::find(&mut db, &self.parts.fleet, &device.name).await?;
            let is_living =
                |it: Device| matches!(it.state, DeviceState::Pending | DeviceState::Active);
            if !named.is_some_and(is_living) {
                ours.push(device);
            }
        }
        drop(db);
        if ours.is_empty() {
            return Ok(());
        }
        let tree = self.parts.mirror.tree(self.tracked).await?;
        let (there, gone): (Vec<&Device>, Vec<&Device>) = ours
            .iter()
            .partition(|device| matches!(tree.entry(&self.parts.folder(device)), Ok(Some(_))));
        let mut db = self.parts.lease.write(&self.parts.store).await?;
        for device in gone {
            devices::set_folder_to_delete(&mut db, &self.parts.fleet, &device.id, false).await?;
        }
        db.commit().await.map_err(StoreError::from)?;
        if there.is_empty() || self.memory.push_pause.problem().is_some() {
            return Ok(());
        }
        let edits = there
            .iter()
            .map(|device| Edit {
                path: self.parts.folder(device).as_str().to_owned(),
                content: None,
            })
            .collect();
        let names: Vec<_> = there.iter().map(|device| device.name.to_string()).collect();
        let message = format!("Decommission {}\n", names.join(", "));
        let mirror = &self.parts.mirror;
        let commit = mirror.commit(Some(self.tracked), edits, message).await?;
        let pushed = mirror.push_tracked(commit, Some(self.tracked)).await;
        if let Err(error) = pushed
            && !error.is_race()
        {
            self.memory.push_pause.failed(&error);
            return Err(error.into());
        }
        self.pushed = true;
        Ok(())
    }
}
