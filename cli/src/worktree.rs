//! What a fleet repo's working tree gives a device.
//!
//! The same steps as the controller's, by the same crate: read the fleet, find what the overlay's build
//! reads, build it confined, fill in the device's variables. So what is refused here is refused there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use longshore_fleet::{
    ClosureError, Closures, DetectError, DeviceSpec, Fleet, FleetError, Kustomize, Reader, Render,
    RenderError, RenderSettings, RepoPath, Tree, TreeError, Variables, WorkTree,
};
use longshore_protocol::{DeviceName, Object};

use crate::Error;

const FLEET_FILE: &str = "fleet.yaml";

/// Which working tree, and how it may be built.
#[derive(Args, Debug)]
pub struct Source {
    /// The fleet's folder [default: the nearest one above that has a `fleet.yaml`]
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// Build without Landlock where the kernel has none, rather than not at all
    #[arg(long)]
    allow_unsandboxed: bool,
}

/// The objects that the working tree gives `device`, in the order of their keys.
///
/// # Errors
/// Where there is no fleet, no such device, or where the device's overlay cannot be built.
pub(crate) async fn render(source: &Source, device: &DeviceName) -> Result<Vec<Object>, Error> {
    let place = Place::find(source.repo.as_deref())?;
    let tree: Arc<dyn Tree> = Arc::new(WorkTree::open(&place.root).map_err(unreadable)?);
    let fleet = Reader::new().read(&*tree, &place.fleet).map_err(no_fleet)?;
    let spec = spec(&fleet, device)?;
    let kustomize = kustomize(source).await?;
    let closure = Closures::new(&*tree, kustomize.identity())
        .closure(&spec.overlay)
        .map_err(|error| match error {
            ClosureError::Refused(problem) => Error::usage(problem.to_string()),
            ClosureError::Tree(error) => unreadable(error),
        })?;
    let built = kustomize
        .render("here", &tree, &closure)
        .await
        .map_err(|error| not_built(spec, error))?;
    let mut objects = Variables::of(spec).substitute(&built).map_err(|error| {
        Error::usage(format!("{}: {error}", spec.file))
            .hint("set it in `spec.variables`, or give it a default: `${NAME:=default}`")
    })?;
    objects.sort_by(|one, other| one.key().cmp(other.key()));
    Ok(objects)
}

async fn kustomize(source: &Source) -> Result<Kustomize, Error> {
    let settings = RenderSettings {
        allow_unsandboxed: source.allow_unsandboxed,
        parallelism: 1,
        ..RenderSettings::default()
    };
    Kustomize::detect(settings).await.map_err(|error| {
        let hint = match error {
            DetectError::NoSandbox => {
                "use a kernel with Landlock, or add `--allow-unsandboxed` for a repo that you trust"
            }
            _ => "install `kustomize` (5.x) or `kubectl`",
        };
        Error::usage("nothing can be rendered here")
            .because(error)
            .hint(hint)
    })
}

/// Where a fleet stands on disk.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The repo's root: what a path may not leave.
    root: PathBuf,
    /// The fleet's folder in it.
    fleet: RepoPath,
}

impl Place {
    fn find(repo: Option<&Path>) -> Result<Self, Error> {
        let start = repo.unwrap_or(Path::new("."));
        let start = start.canonicalize().map_err(|error| {
            Error::usage(format!("there is no directory {}", start.display())).because(error)
        })?;
        let fleet = match repo {
            Some(_) => Some(start.as_path()).filter(|folder| folder.join(FLEET_FILE).exists()),
            None => start
                .ancestors()
                .find(|folder| folder.join(FLEET_FILE).exists()),
        };
        let fleet = fleet.ok_or_else(|| {
            Error::usage(format!(
                "{} is no fleet repo: it has no `{FLEET_FILE}`",
                start.display()
            ))
            .hint("name the fleet's folder with `--repo DIR`")
            .hint("or start a fleet repo with `longshore init DIR`")
        })?;
        let root = fleet
            .ancestors()
            .find(|folder| folder.join(".git").exists())
            .unwrap_or(fleet);
        let inside = fleet
            .strip_prefix(root)
            .ok()
            .and_then(Path::to_str)
            .ok_or_else(|| Error::usage(format!("the path {} is not UTF-8", fleet.display())))?;
        let inside = RepoPath::new(inside)
            .map_err(|error| Error::internal("the fleet's folder has no path").because(error))?;
        Ok(Self {
            root: root.to_owned(),
            fleet: inside,
        })
    }
}

/// The device, or why there is none.
fn spec<'a>(fleet: &'a Fleet, device: &DeviceName) -> Result<&'a DeviceSpec, Error> {
    if let Some(spec) = fleet.devices.get(device) {
        return Ok(spec);
    }
    let problems: Vec<_> = fleet
        .problems
        .iter()
        .filter(|problem| problem.device.as_ref() == Some(device))
        .map(ToString::to_string)
        .collect();
    if !problems.is_empty() {
        return Err(Error::usage(problems.join("\n")));
    }
    let names: Vec<_> = fleet
        .devices
        .keys()
        .take(5)
        .map(DeviceName::as_str)
        .collect();
    let error = Error::usage(format!("the working tree has no device `{device}`"));
    Err(match names.as_slice() {
        [] => error.hint(format!("add `devices/{device}/device.yaml`")),
        names if names.len() < fleet.devices.len() => error.hint(format!(
            "it has {}, and {} more",
            names.join(", "),
            fleet.devices.len() - names.len()
        )),
        names => error.hint(format!("it has {}", names.join(", "))),
    })
}

fn no_fleet(error: FleetError) -> Error {
    match error {
        FleetError::Tree(error) => unreadable(error),
        error @ (FleetError::Missing(_) | FleetError::Invalid(_)) => {
            Error::usage(error.to_string())
        }
    }
}

fn not_built(spec: &DeviceSpec, error: RenderError) -> Error {
    let message = format!("{}: the overlay cannot be built", spec.overlay);
    match error {
        RenderError::Environment { .. } => Error::internal(message).because(error),
        error => Error::usage(message).because(error),
    }
}

fn unreadable(error: TreeError) -> Error {
    Error::usage("the working tree cannot be read").because(error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_fleet_may_be_a_folder_of_its_repo() {
        let repo = tempfile::tempdir().unwrap();
        let root = repo.path().canonicalize().unwrap();
        let fleet = root.join("edge/shops");
        fs::create_dir_all(root.join(".git")).unwrap();
        fs::create_dir_all(&fleet).unwrap();
        assert_eq!(
            Place::find(Some(&fleet)).unwrap_err().exit(),
            crate::Exit::Usage
        );
        fs::write(fleet.join(FLEET_FILE), "").unwrap();
        let place = Place {
            root: root.clone(),
            fleet: RepoPath::new("edge/shops").unwrap(),
        };
        assert_eq!(Place::find(Some(&fleet)).unwrap(), place);
        fs::remove_dir(root.join(".git")).unwrap();
        let place = Place {
            root: fleet.clone(),
            fleet: RepoPath::root(),
        };
        assert_eq!(
            Place::find(Some(&fleet)).unwrap(),
            place,
            "without Git, the folder is the repo"
        );
    }
}
