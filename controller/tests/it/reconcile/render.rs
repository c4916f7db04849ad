//! Builds that a test holds in its hands.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
};

use longshore_fleet::{Closure, Render, RenderError, RenderFuture, Tree};
use longshore_protocol::Object;
use serde_json::json;
use tokio::sync::watch;

/// How the builds of an overlay fail.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The overlay is broken.
    Lasting,
    /// The machine is.
    Passing,
}

/// Makes one `ConfigMap` of each file that an overlay reads, except its kustomizations.
#[derive(Debug, Default)]
pub struct Builder {
    /// The overlays whose builds wait.
    hanging: watch::Sender<BTreeSet<String>>,
    failing: Mutex<BTreeMap<String, Failure>>,
    begun: Mutex<Vec<String>>,
}

impl Builder {
    /// Makes the builds of an overlay wait, from now on.
    pub fn hang(&self, overlay: &str) {
        self.hanging.send_modify(|hanging| {
            hanging.insert(overlay.to_owned());
        });
    }

    /// Lets the builds of an overlay go on.
    pub fn release(&self, overlay: &str) {
        self.hanging.send_modify(|hanging| {
            hanging.remove(overlay);
        });
    }

    /// Makes the builds of an overlay fail, or no longer.
    pub fn fail(&self, overlay: &str, failure: Option<Failure>) {
        let mut failing = self.failing.lock().unwrap();
        match failure {
            Some(failure) => failing.insert(overlay.to_owned(), failure),
            None => failing.remove(overlay),
        };
    }

    /// How many builds were begun.
    pub fn count(&self) -> usize {
        self.begun.lock().unwrap().len()
    }

    /// How many builds of one overlay were begun.
    pub fn count_of(&self, overlay: &str) -> usize {
        let begun = self.begun.lock().unwrap();
        begun.iter().filter(|it| *it == overlay).count()
    }
}

impl Render for Builder {
    fn identity(&self) -> &'static str {
        "the tests' builder"
    }

    fn parallelism(&self) -> usize {
        100
    }

    fn render<'a>(
        &'a self,
        _owner: &'a str,
        tree: &'a Arc<dyn Tree>,
        closure: &'a Closure,
    ) -> RenderFuture<'a> {
        Box::pin(async move {
            let overlay = closure.overlay.as_str();
            self.begun.lock().unwrap().push(overlay.to_owned());
            let mut hanging = self.hanging.subscribe();
            hanging
                .wait_for(|hanging| !hanging.contains(overlay))
                .await
                .unwrap();
            match self.failing.lock().unwrap().get(overlay) {
                None => {}
                Some(Failure::Lasting) => {
                    let message = "it is broken".to_owned();
                    return Err(RenderError::Build { message });
                }
                Some(Failure::Passing) => {
                    return Err(RenderError::Environment {
                        operation: "write to the disk",
                        source: io::Error::other("it is full"),
                    });
                }
            }
            let files = closure.files.iter();
            files
                .filter(|file| !file.path.as_str().ends_with("kustomization.yaml"))
                .map(|file| {
                    let content = String::from_utf8(tree.blob(file.id)?).unwrap();
                    Ok(object(file.path.as_str(), &content))
                })
                .collect()
        })
    }
}

fn object(path: &str, content: &str) -> Object {
    Object::from_value(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": path.replace(['/', '.'], "-")},
        "data": {"content": content},
    }))
    .unwrap()
}
