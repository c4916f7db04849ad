//! What is on the device itself.

use std::{io::ErrorKind, path::Path};

use rustix::{
    fs::{Access, StatVfs, access, statvfs},
    process::geteuid,
};

use super::Check;
use crate::{
    causes,
    config::IdentitySecret,
    identity::{Keep as _, StateDir},
    runtime::{Runtime, kube::rights, podman},
};

/// With less than this, the next set may not fit.
const LITTLE: u64 = 64 * 1024 * 1024;
/// With less than this, nothing does.
const NONE: u64 = 256 * 1024;

/// Whether the agent can work in its directory.
pub(super) fn state_directory(path: &Path) -> Vec<Check> {
    const NAME: &str = "state";
    let shown = path.display();
    let state = match StateDir::peek(path) {
        Ok(Some(state)) => state,
        Ok(None) => {
            return vec![Check::ok(
                NAME,
                format!("there is no {shown} yet; the first start makes it"),
            )];
        }
        Err(error) => {
            let advice =
                format!("run this as the user who runs the agent, or give {shown} to that user");
            return vec![Check::fail(NAME, causes(&error), advice)];
        }
    };
    [Some(permissions(path, &state)), membership(&state)]
        .into_iter()
        .flatten()
        .collect()
}

fn permissions(path: &Path, state: &StateDir) -> Check {
    const NAME: &str = "permissions";
    let shown = path.display();
    let (owner, mode) = match state.owner_and_mode() {
        Ok(found) => found,
        Err(error) => return Check::fail(NAME, causes(&error), "look at the file system"),
    };
    let ours = geteuid().as_raw();
    if owner != ours {
        let found = format!("{shown} belongs to user {owner}, and this runs as user {ours}");
        let advice =
            format!("run this as the agent does: sudo -u '#{owner}' longshore-agent doctor");
        return if ours == 0 {
            Check::warn(NAME, found, advice)
        } else {
            Check::fail(NAME, found, advice)
        };
    }
    if let Err(error) = access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        let advice = match std::io::Error::from(error).kind() {
            ErrorKind::ReadOnlyFilesystem => {
                "the file system is mounted read-only, often after an error: look at `dmesg`, check it with fsck, and \
                 mount it read-write. What runs keeps running, and nothing new is accepted"
            }
            _ => "give the directory to the user who runs the agent, with mode 0700",
        };
        return Check::fail(NAME, format!("{shown} cannot be written: {error}"), advice);
    }
    if mode & 0o077 != 0 {
        let found = format!("{shown} is open to others (mode {mode:o})");
        return Check::warn(
            NAME,
            found,
            format!("chmod 700 {shown}; the agent does it at its next start"),
        );
    }
    Check::ok(
        NAME,
        format!("{shown} is the agent's alone, and can be written"),
    )
}

/// How far the device is with becoming part of a fleet; nothing where its identity is damaged, which is a check of
/// its own.
fn membership(state: &StateDir) -> Option<Check> {
    const NAME: &str = "enrollment";
    if let Some(identity) = state.identity().ok()? {
        let found = format!("enrolled as {} ({})", identity.name, identity.device_id);
        return Some(Check::ok(NAME, found));
    }
    if let Ok(Some(note)) = state.decommissioned() {
        let found = format!("the device was decommissioned: {}", note.reason);
        let advice = "start the agent with a new token to enroll it anew";
        return Some(Check::fail(NAME, found, advice));
    }
    Some(match state.enrollment() {
        Ok(Some(enrollment)) if enrollment.registered.is_some() => Check::warn(
            NAME,
            format!("{} is registered and waits for approval", enrollment.name),
            "approve it, in its pull request or with `longshore devices approve`",
        ),
        Ok(_) => Check::ok(NAME, "not enrolled yet"),
        Err(error) => Check::fail(
            NAME,
            causes(&error),
            "remove the file to enroll with a new key",
        ),
    })
}

/// Whether there is room.
pub(super) fn disk(path: &Path) -> Check {
    const NAME: &str = "disk";
    // Before the first start, what matters is where the directory will be made.
    let there = path.ancestors().find(|path| path.exists());
    let there = there.unwrap_or_else(|| Path::new("/"));
    match statvfs(there) {
        Ok(found) => room(there, &found),
        Err(error) => Check::fail(
            NAME,
            format!("{}: {error}", there.display()),
            "look at the file system",
        ),
    }
}

fn room(path: &Path, found: &StatVfs) -> Check {
    const NAME: &str = "disk";
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let shown = format!("{} MiB free for {}", free / 1024 / 1024, path.display());
    let advice = "make room: old logs (`journalctl --vacuum-size=50M`), unused images (`podman image prune`). \
                  Without room no new set is accepted; what runs keeps running";
    // Some file systems do not count files.
    if found.f_files > 0 && found.f_ffree == 0 {
        return Check::fail(
            NAME,
            format!("{shown}, but not for a single file (no inodes)"),
            advice,
        );
    }
    match free {
        0..NONE => Check::fail(NAME, shown, advice),
        NONE..LITTLE => Check::warn(NAME, shown, advice),
        _ => Check::ok(NAME, shown),
    }
}

/// Whether what the agent applies to is there.
pub(super) async fn runtime(runtime: &mut dyn Runtime) -> Check {
    const NAME: &str = "runtime";
    let kind = runtime.name();
    match runtime.probe().await {
        Ok(found) => Check::ok(NAME, format!("{kind}: {found}")),
        Err(error) => {
            let advice = match kind {
                "podman" => {
                    let (major, minor) = podman::LEAST;
                    &format!(
                        "install Podman {major}.{minor} or newer, or name the program with --podman"
                    )
                }
                "kube" => {
                    "look whether the API server runs, and whether --kubeconfig names a file that this user can read"
                }
                "command" => "name a program that is there and can be run with --command",
                _ => {
                    "make the directory writable for the user who runs the agent, or name another one with --directory"
                }
            };
            Check::fail(NAME, format!("{kind}: {}", error.explanation()), advice)
        }
    }
}

/// Whether the agent may do there what it has to do.
pub(super) async fn rights(runtime: &mut dyn Runtime) -> Check {
    const NAME: &str = "rights";
    let lacks = runtime.lacks().await;
    judged(
        NAME,
        lacks.map_err(|error| error.explanation()),
        "what sets need at least",
        "bind a role with these rights to the agent's user or service account: the chart's `rbac`, or `kubectl create \
         rolebinding`; `kubectl auth can-i --list` shows what it has",
    )
}

/// Whether the agent may use the Secret that its identity is kept in.
pub(super) async fn identity_secret(secret: &IdentitySecret) -> Check {
    const NAME: &str = "identity-secret";
    let lacks = rights::lacks_for_identity(&secret.cluster, &secret.name).await;
    judged(
        NAME,
        lacks,
        &format!("the Secret {}", secret.name),
        "let the agent's role get and patch that Secret, and create Secrets where it is not there: the chart's `identity.secret` \
         does both",
    )
}

fn judged(
    name: &'static str,
    lacks: Result<Vec<String>, String>,
    what: &str,
    advice: &str,
) -> Check {
    match lacks {
        Ok(lacks) if lacks.is_empty() => {
            Check::ok(name, format!("the agent has the rights to {what}"))
        }
        Ok(lacks) => {
            let lacks = lacks.join("; ");
            Check::fail(name, format!("the agent may not: {lacks}"), advice)
        }
        // Whoever cannot ask may still be allowed to.
        Err(why) => Check::warn(name, format!("it cannot be asked for: {why}"), advice),
    }
}
