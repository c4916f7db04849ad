//! Large pushes, long ones, and those that never end.

use std::{
    fs,
    io::{self, Read as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Process, World, WorldOptions, eventually, repo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    access::{authorization, raw},
    git, hosted, is_whole, nothing_left, nothing_stays, push,
};

const MIB: usize = 1024 * 1024;

/// Writes a file that does not compress.
fn noise(path: PathBuf, mebibytes: usize) -> Result<()> {
    let random = fs::File::open("/dev/urandom")?;
    let mut file = fs::File::create(path)?;
    io::copy(&mut random.take((mebibytes * MIB) as u64), &mut file)?;
    Ok(())
}

/// The most memory that the process uses while `work` runs.
async fn peak<T>(process: &Process, work: impl Future<Output = Result<T>>) -> Result<(u64, T)> {
    let status = PathBuf::from(format!("/proc/{}/status", process.id()));
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    let watching = thread::spawn(move || {
        let mut most = 0;
        while !seen.load(Ordering::Relaxed) {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes = resident.and_then(|it| it.trim().trim_end_matches(" kB").parse().ok());
            most = most.max(kibibytes.unwrap_or(0_u64) * 1024);
            thread::sleep(Duration::from_millis(5));
        }
        most
    });
    let result = work.await;
    done.store(true, Ordering::Relaxed);
    let most = watching
        .join()
        .map_err(|_panic| anyhow::anyhow!("no peak"))?;
    Ok((most, result?))
}

#[tokio::test]
async fn a_large_push_and_its_clone_are_not_held_in_memory() -> Result<()> {
    let mut world = hosted().await?;
    let copy = world.repo.copy();
    noise(copy.path().join("noise.bin"), 100)?;
    copy.commit("A film for the kiosks")?;
    let commit = copy.git(["rev-parse", "HEAD"])?;
    let before = world.controller.process()?.resident_memory()?;
    let pushing = push(world.repo.copy(), &["main"]);
    let (most, said) = peak(world.controller.process()?, pushing).await?;
    said.worked()?.says("remote: no device changes")?;
    let grown = most.saturating_sub(before);
    eprintln!(
        "the controller grew by {} KiB over 100 MiB pushed",
        grown / 1024
    );
    ensure!(grown < 32 * MIB as u64, "{before} {most}");
    world.api.sees(&commit).await?;

    let copy = world.repo.copy();
    let url = copy.git(["remote", "get-url", "origin"])?;
    let ca = format!("http.sslCAInfo={}", copy.git(["config", "http.sslCAInfo"])?);
    let before = world.controller.process()?.resident_memory()?;
    let path = world.path().to_owned();
    let arguments = ["-c", &ca, "clone", "--quiet", &url, "clone"];
    let cloning = git(&path, &arguments);
    let (most, said) = peak(world.controller.process()?, cloning).await?;
    said.worked()?;
    let grown = most.saturating_sub(before);
    eprintln!(
        "the controller grew by {} KiB over 100 MiB cloned",
        grown / 1024
    );
    ensure!(grown < 32 * MIB as u64, "{before} {most}");
    ensure!(fs::metadata(path.join("clone/noise.bin"))?.len() == 100 * MIB as u64);
    is_whole(&world).await
}

#[tokio::test]
async fn chunked_and_compressed_bodies_are_understood() -> Result<()> {
    let world = hosted().await?;
    let copy = world.repo.copy();
    // Over http.postBuffer git sends chunks of unknown total over HTTP/1.1.
    noise(copy.path().join("noise.bin"), 3)?;
    copy.commit("Some noise")?;
    for (version, branch) in [("HTTP/1.1", "one"), ("HTTP/2", "two")] {
        let setting = format!("http.version={version}");
        let refs = format!("main:{branch}");
        git(copy.path(), &["-c", &setting, "push", "origin", &refs])
            .await?
            .worked()?;
    }
    // Long requests of a fetch are compressed: this one tells of many commits that the server does not have.
    for number in 0..200 {
        let message = format!("Local {number}");
        copy.git(["commit", "--quiet", "--allow-empty", "-m", &message])?;
    }
    let path = world.path().join("other");
    let url = copy.git(["remote", "get-url", "origin"])?;
    let ca = copy.git(["config", "http.sslCAInfo"])?;
    let setting = format!("http.sslCAInfo={ca}");
    git(
        world.path(),
        &[
            "-c", &setting, "clone", "--quiet", "-b", "one", &url, "other",
        ],
    )
    .await?
    .worked()?;
    repo::git(&path, ["config", "http.sslCAInfo", &ca])?;
    repo::git(&path, ["commit", "--quiet", "--allow-empty", "-m", "News"])?;
    repo::git(&path, ["push", "--quiet", "origin", "HEAD:news"])?;
    let directory = copy.path().to_owned();
    // Version 2 needs fewer words.
    let fetch = ["-c", "protocol.version=0", "fetch", "origin", "news"];
    let said = trace(directory, &fetch).await?;
    ensure!(said.contains("content-encoding: gzip"), "{said}");
    let news = copy.git(["rev-parse", "FETCH_HEAD"])?;
    ensure!(news == repo::git(world.repo.bare(), ["rev-parse", "news"])?);
    Ok(())
}

/// What git says, with its headers.
async fn trace(directory: PathBuf, arguments: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new("git");
    command.current_dir(directory).args(arguments);
    repo::isolate(&mut command);
    command.env("GIT_TRACE_CURL", "1");
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

#[tokio::test]
async fn a_push_that_is_too_large_is_refused() -> Result<()> {
    let mut options = WorldOptions {
        hosted: true,
        ..WorldOptions::default()
    };
    options.controller.arguments = ["--hosted-push-limit", "1", "--hosted-repo-limit", "2"]
        .map(Into::into)
        .into();
    let world = World::with(options).await?;
    let copy = world.repo.copy();
    let base = copy.git(["rev-parse", "HEAD"])?;
    noise(copy.path().join("noise.bin"), 4)?;
    copy.commit("Too much")?;
    push(copy, &["main"])
        .await?
        .refused()?
        .says("pack exceeds maximum allowed size")?;
    nothing_stays(&world).await?;

    copy.git(["reset", "--quiet", "--hard", &base])?;
    let mut full = None;
    for round in 0..10 {
        // Three quarters of a mebibyte.
        noise(copy.path().join(format!("noise-{round}.bin")), 1)?;
        let file = fs::File::options()
            .write(true)
            .open(copy.path().join(format!("noise-{round}.bin")))?;
        file.set_len(MIB as u64 * 3 / 4)?;
        copy.commit("Some more")?;
        let said = push(copy, &["main"]).await?;
        if !said.worked {
            full = Some((round, said));
            break;
        }
    }
    let (round, said) = full.context("a repo that never gets full")?;
    ensure!((1..5).contains(&round), "{round}: {said:?}");
    is_whole(&world).await
}

#[tokio::test]
async fn a_push_whose_connection_breaks_leaves_nothing() -> Result<()> {
    let mut world = hosted().await?;
    let copy = world.repo.copy();
    let before = copy.git(["rev-parse", "HEAD"])?;
    noise(copy.path().join("noise.bin"), 2)?;
    let commit = copy.commit("Half of it")?;
    let pack = pack_of(&world, &commit, &before).await?;
    let controller = world.controller.process()?.id();
    let mut half = raw(&world).await?;
    let command = format!("{before} {commit} refs/heads/main\0 report-status");
    let command = format!("{:04x}{command}0000", command.len() + 4);
    let head = format!(
        "POST /git/default/example.git/git-receive-pack HTTP/1.1\r\nHost: localhost\r\n{}\
         Content-Type: application/x-git-receive-pack-request\r\nContent-Length: {}\r\n\r\n{command}",
        authorization(&world)?,
        command.len() + pack.len(),
    );
    half.write_all(head.as_bytes()).await?;
    half.write_all(&pack[..pack.len() / 2]).await?;
    half.flush().await?;
    eventually("a push is under way", async || {
        ensure!(nothing_left(&world).is_err());
        ensure!(!children(controller)?.is_empty());
        Ok(())
    })
    .await?;
    drop(half);
    eventually("nothing is left of the push", async || {
        nothing_left(&world)?;
        ensure!(children(controller)?.is_empty());
        Ok(())
    })
    .await?;
    ensure!(repo::git(world.repo.bare(), ["rev-parse", "main"])? == before);

    // The whole of it is a push like any other.
    let mut whole = raw(&world).await?;
    whole.write_all(head.as_bytes()).await?;
    whole.write_all(&pack).await?;
    let mut answer = vec![0; 4096];
    let length = whole.read(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    eventually("the commit is there", async || {
        ensure!(repo::git(world.repo.bare(), ["rev-parse", "main"])? == commit);
        Ok(())
    })
    .await?;
    is_whole(&world).await
}

/// What `commit` has and `known` has not, as a pack.
async fn pack_of(world: &World, commit: &str, known: &str) -> Result<Vec<u8>> {
    let mut command = std::process::Command::new("sh");
    let script = format!("printf '{commit}\\n^{known}\\n' | git pack-objects --revs --stdout -q");
    command
        .current_dir(world.repo.copy().path())
        .args(["-c", &script]);
    repo::isolate(&mut command);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(output.stdout)
}

/// The processes that the process with this id started and that live.
fn children(id: u32) -> Result<Vec<String>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        // proc(5): the state and the parent's id follow the name in parentheses.
        let Some((name, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        if rest.split_whitespace().nth(1) == Some(&id.to_string()) {
            children.push(name.to_owned());
        }
    }
    Ok(children)
}
