//! What containers say: `podman logs`, one for each container, for as long as somebody reads.

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use longshore_protocol::{
    DeviceId, ObjectKey,
    message::{LogEnd, LogRequest},
};

use super::{
    observed::{ObservedPod, is_of},
    program::{PodmanError, Program},
};
use crate::{
    causes,
    runtime::logs::{self, Lines, LogStream, Logs, Source, chosen, lines},
};

/// The logs of this device's containers.
#[derive(Debug)]
pub(super) struct PodmanLogs {
    pub(super) program: Program,
    pub(super) device: DeviceId,
}

/// A container of an object.
struct Container {
    /// In Podman.
    id: String,
    pod: String,
    /// In the object.
    name: String,
}

#[async_trait]
impl Logs for PodmanLogs {
    async fn open(&self, request: &LogRequest) -> Result<LogStream, LogEnd> {
        let Some(object) = &request.object else {
            return Err(LogEnd::Refused("no object is named".to_owned()));
        };
        let pods = self.program.pods().await.map_err(|it| failed(&it))?;
        let found = self.containers(&pods, object);
        if found.is_empty() {
            let why = format!("no pod of {object} is there on the device");
            return Err(LogEnd::Refused(why));
        }
        let found = chosen(found, |it| &it.name, request.container.as_deref())?;
        let several = found.len() > 1;
        let pods = found
            .iter()
            .any(|it| Some(&it.pod) != found.first().map(|it| &it.pod));
        let mut sources = Vec::new();
        for container in &found {
            let name = if pods {
                format!("{}/{}", container.pod, container.name)
            } else {
                container.name.clone()
            };
            let prefix = logs::prefix(&name, several);
            let lines = self.follow(container, request, &prefix);
            let lines = lines.map_err(|it| failed(&it));
            sources.push(Source { prefix, lines });
        }
        LogStream::of_all(sources)
    }
}

impl PodmanLogs {
    fn containers(&self, pods: &[ObservedPod], object: &ObjectKey) -> Vec<Container> {
        let object = object.to_string();
        let of_object = pods
            .iter()
            .filter(|pod| is_of(&pod.labels, &self.device) && pod.object() == object);
        let containers = of_object.flat_map(|pod| {
            pod.workers().map(|container| {
                let name = container.name.strip_prefix(&pod.name);
                let name = name.and_then(|name| name.strip_prefix('-'));
                Container {
                    id: container.id.clone(),
                    pod: pod.name.clone(),
                    name: name.unwrap_or(&container.name).to_owned(),
                }
            })
        });
        containers.collect()
    }

    /// What a container says, to stdout and to stderr. Its `podman` lives as long as what is returned here.
    fn follow(
        &self,
        container: &Container,
        request: &LogRequest,
        prefix: &str,
    ) -> Result<Lines, PodmanError> {
        let mut group = self.program.logs(&container.id, request)?;
        let output = group.output().map(|pipe| lines(pipe, prefix));
        let errors = group.errors().map(|pipe| lines(pipe, prefix));
        let said = stream::select_all([output, errors].into_iter().flatten());
        let name = container.name.clone();
        let end = stream::once(async move {
            match group.end().await {
                Ok(status) if status.success() => None,
                Ok(status) => Some(Err(format!("`podman logs` of {name} ended with {status}"))),
                Err(error) => Some(Err(error.to_string())),
            }
        });
        Ok(said.chain(end.filter_map(|end| async { end })).boxed())
    }
}

fn failed(error: &PodmanError) -> LogEnd {
    LogEnd::Failed(causes(error))
}
