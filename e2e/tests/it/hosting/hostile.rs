//! What is in a repo makes the server run nothing and read nothing.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};

use super::{git, hosted, is_whole, push};

#[tokio::test]
async fn a_hostile_repo_runs_and_reads_nothing() -> Result<()> {
    let world = hosted().await?;
    let copy = world.repo.copy();
    let base = copy.git(["rev-parse", "HEAD"])?;
    let canary = world.path().join("canary");
    let program = format!("#!/bin/sh\ntouch {}\n", canary.display());
    let command = format!("touch {}", canary.display());
    let secret = world.controller.data_dir().join("secret.key");
    let key = fs::read_to_string(&secret)?;

    // What a bare repo is made of, as files of the tree.
    for hook in [
        "pre-receive",
        "update",
        "post-receive",
        "post-checkout",
        "reference-transaction",
    ] {
        for folder in ["hooks", ".githooks", "objects/hooks"] {
            let path = format!("{folder}/{hook}");
            copy.write(&path, &program)?;
            copy.git(["add", &path])?;
            copy.git(["update-index", "--chmod=+x", &path])?;
        }
    }
    copy.write(
        "config",
        format!(
            "[core]\n\tbare = true\n\thooksPath = {}\n\tfsmonitor = {command}\n\tsshCommand = {command}\n\
             [uploadpack]\n\tpackObjectsHook = {command}\n[filter \"x\"]\n\tsmudge = {command}\n\tclean = {command}\n",
            copy.path().join("hooks").display()
        ),
    )?;
    copy.write("HEAD", "ref: refs/heads/main\n")?;
    copy.write(
        "objects/info/alternates",
        format!("{}\n", world.repo.bare().join("objects").display()),
    )?;
    copy.write(".gitattributes", "* filter=x export-subst\n")?;
    // Symlinks to the controller's own files.
    symlink(&secret, copy.path().join("groups/kiosk/stolen"))?;
    symlink(
        world.controller.data_dir(),
        copy.path().join("devices/stolen"),
    )?;
    copy.git(["add", "--all"])?;
    copy.git(["commit", "--quiet", "-m", "Look what I have"])?;
    push(copy, &["main:hostile"]).await?.worked()?;

    // An overlay that reads through such a link is refused with file and line.
    copy.git(["reset", "--quiet", "--hard", &base])?;
    symlink(&secret, copy.path().join("groups/kiosk/stolen"))?;
    copy.write(
        "groups/kiosk/kustomization.yaml",
        "resources:\n  - ../../base\nconfigMapGenerator:\n  - name: stolen\n    files: [stolen]\n",
    )?;
    copy.commit("Steal")?;
    let said = push(copy, &["main"]).await?.refused()?;
    said.says("remote: problem: groups/kiosk/kustomization.yaml:5")?;
    ensure!(!said.text.contains(key.trim()), "{said:?}");

    // Submodules and paths that have bitten Git before do not even get in.
    copy.git(["reset", "--quiet", "--hard", &base])?;
    copy.write(
        ".gitmodules",
        format!("[submodule \"x\"]\n\tpath = x\n\turl = \"--upload-pack={command}\"\n"),
    )?;
    copy.commit("Call")?;
    push(copy, &["main:modules"])
        .await?
        .refused()?
        .says("gitmodules")?;
    copy.git(["reset", "--quiet", "--hard", &base])?;
    let blob = copy.git(["hash-object", "-w", "--stdin", "--path", "fleet.yaml"]);
    ensure!(blob.is_ok());
    let tree = tree_with(&world, ".GIT/config").await?;
    let said = push(copy, &[&format!("{tree}:refs/heads/dotgit")]).await?;
    said.refused()?.says("hasDotgit")?;
    // A submodule itself is only a name of a commit elsewhere: it is looked for nowhere.
    copy.git([
        "update-index",
        "--add",
        "--cacheinfo",
        &format!("160000,{base},groups/other"),
    ])?;
    copy.git(["commit", "--quiet", "-m", "Elsewhere"])?;
    push(copy, &["main:elsewhere"]).await?.worked()?;

    // A server that would act on any of it did so when it was pushed, cloned or fetched.
    let url = copy.git(["remote", "get-url", "origin"])?;
    let ca = format!("http.sslCAInfo={}", copy.git(["config", "http.sslCAInfo"])?);
    git(
        world.path(),
        &[
            "-c",
            &ca,
            "clone",
            "--quiet",
            "--no-checkout",
            &url,
            "clone",
        ],
    )
    .await?
    .worked()?;
    ensure!(!canary.exists(), "the repo ran something");
    let config = fs::read_to_string(world.repo.bare().join("config"))?;
    ensure!(!config.contains("canary"), "{config}");
    ensure!(!world.repo.bare().join("objects/info/alternates").exists());
    is_whole(&world).await
}

/// A commit whose tree has a folder that Git would not let anybody check in.
async fn tree_with(world: &longshore_e2e::World, path: &str) -> Result<String> {
    let copy = world.repo.copy();
    let (folder, file) = path.split_once('/').unwrap_or((path, "x"));
    let blob = copy.git(["rev-parse", "HEAD:fleet.yaml"])?;
    let make = format!(
        "inner=$(printf '100644 blob {blob}\\t{file}\\n' | git mktree) && \
         outer=$(printf '040000 tree %s\\t{folder}\\n' \"$inner\" | git mktree) && \
         git commit-tree -m 'Not for checking out' \"$outer\""
    );
    let mut command = std::process::Command::new("sh");
    command.current_dir(copy.path()).args(["-c", &make]);
    longshore_e2e::repo::isolate(&mut command);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
