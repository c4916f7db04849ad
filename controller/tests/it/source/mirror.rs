//! Fetching and pushing.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use longshore_controller::source::mirror::{Edit, Push};

use super::Mirrored;
use crate::repo::{Repo, git};

fn edit(path: &str, content: Option<&str>) -> Edit {
    Edit {
        path: path.to_owned(),
        content: content.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_fetch_finds_the_tip_and_its_first_line() {
    let repo = Repo::new();
    repo.commit("main", &[("a", Some("1"))]);
    let tip = repo.commit("main", &[("a", Some("2"))]);
    repo.commit("other", &[("a", Some("3"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let tracked = mirrored.mirror.fetch().await.unwrap().tracked.unwrap();
    assert_eq!(tracked.id, tip);
    assert_eq!(
        (&*tracked.summary, &*tracked.author),
        ("Change something", "A Person")
    );
    let refs = git(&mirrored.path(), &["for-each-ref", "--format=%(refname)"]);
    assert_eq!(refs, "refs/longshore/tracked\n", "nothing else is mirrored");
}

#[tokio::test]
async fn rewritten_history_and_lost_branches_are_followed() {
    let repo = Repo::new();
    repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    mirrored.mirror.fetch().await.unwrap();
    let other = repo.make(None, &[("b", Some("1"))]);
    repo.point("main", other);
    let refs = mirrored.mirror.fetch().await.unwrap();
    assert_eq!(refs.tracked.unwrap().id, other);
    repo.delete("main");
    assert_eq!(mirrored.mirror.fetch().await.unwrap().tracked, None);
    assert_eq!(
        mirrored.mirror.fetch().await.unwrap().tracked,
        None,
        "and again"
    );
    let back = repo.commit("main", &[("c", Some("1"))]);
    let refs = mirrored.mirror.fetch().await.unwrap();
    assert_eq!(refs.tracked.unwrap().id, back);
}

#[tokio::test]
async fn an_empty_repo_is_no_error() {
    let repo = Repo::new();
    let mirrored = Mirrored::of(&repo, "main").await;
    let refs = mirrored.mirror.fetch().await.unwrap();
    assert!(refs.tracked.is_none() && refs.enrollment.is_empty());
}

#[tokio::test]
async fn a_repo_that_is_gone_is_an_error_and_its_last_refs_stay() {
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    mirrored.mirror.fetch().await.unwrap();
    drop(repo);
    let error = mirrored.mirror.fetch().await.unwrap_err();
    assert!(!error.is_missing_branch() && !error.is_race(), "{error:?}");
    let refs = mirrored.mirror.refs().await.unwrap();
    assert_eq!(refs.tracked.unwrap().id, tip);
    // What was fetched can still be read.
    mirrored.mirror.tree(tip).await.unwrap();
}

#[tokio::test]
async fn a_branchs_name_may_have_slashes() {
    let repo = Repo::new();
    let tip = repo.commit("release/2026.10/eu", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "release/2026.10/eu").await;
    let refs = mirrored.mirror.fetch().await.unwrap();
    assert_eq!(refs.tracked.unwrap().id, tip);
    let commit = mirrored
        .mirror
        .commit(Some(tip), vec![edit("b", Some("1"))], "Add b".to_owned())
        .await
        .unwrap();
    mirrored
        .mirror
        .push_tracked(commit, Some(tip))
        .await
        .unwrap();
    assert_eq!(repo.tip("release/2026.10/eu"), Some(commit));
}

#[tokio::test]
async fn enrollment_branches_come_and_go() {
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    for branch in ["device-1", "device-2", "not/a/device", "Neither_This"] {
        repo.point(&format!("longshore/enroll/{branch}"), tip);
    }
    let mirrored = Mirrored::of(&repo, "main").await;
    let refs = mirrored.mirror.fetch().await.unwrap();
    let names: Vec<_> = refs.enrollment.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "longshore/enroll/Neither_This",
            "longshore/enroll/device-1",
            "longshore/enroll/device-2",
            "longshore/enroll/not/a/device"
        ]
    );
    repo.delete("longshore/enroll/device-1");
    // A folder becomes a branch.
    repo.delete("longshore/enroll/not/a/device");
    repo.point("longshore/enroll/not", tip);
    let refs = mirrored.mirror.fetch().await.unwrap();
    let names: Vec<_> = refs.enrollment.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "longshore/enroll/Neither_This",
            "longshore/enroll/device-2",
            "longshore/enroll/not"
        ]
    );
    // They come and go without the tracked branch as well.
    repo.delete("main");
    repo.delete("longshore/enroll/not");
    repo.point("longshore/enroll-batch/a", tip);
    let refs = mirrored.mirror.fetch().await.unwrap();
    assert_eq!(refs.tracked, None);
    let names: Vec<_> = refs.enrollment.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "longshore/enroll-batch/a",
            "longshore/enroll/Neither_This",
            "longshore/enroll/device-2"
        ]
    );
}

#[tokio::test]
async fn a_push_that_lost_a_race_says_so() {
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let mirror = &mirrored.mirror;
    mirror.fetch().await.unwrap();
    let ours = mirror
        .commit(Some(tip), vec![edit("b", Some("1"))], "Ours".to_owned())
        .await
        .unwrap();
    let theirs = repo.commit("main", &[("c", Some("1"))]);
    let error = mirror.push_tracked(ours, Some(tip)).await.unwrap_err();
    assert!(error.is_race(), "{error:?}");
    assert_eq!(repo.tip("main"), Some(theirs), "nobody's work is lost");

    // A branch that is to be new, and is not.
    let push = async |commit, expected| {
        let branch = "longshore/enroll/device-1".to_owned();
        let push = Push {
            branch,
            commit,
            expected,
        };
        mirror.push_all(&[push]).await
    };
    push(Some(ours), None).await.unwrap();
    let error = push(Some(tip), None).await.unwrap_err();
    assert!(error.is_race(), "{error:?}");
    // One that is to be deleted, and moved; and one that is gone already.
    let error = push(None, Some(tip)).await.unwrap_err();
    assert!(error.is_race(), "{error:?}");
    assert_eq!(repo.tip("longshore/enroll/device-1"), Some(ours));
    push(None, Some(ours)).await.unwrap();
    assert_eq!(repo.tip("longshore/enroll/device-1"), None);
    let again = push(None, Some(ours)).await;
    assert!(again.is_ok() || again.unwrap_err().is_race());
}

#[tokio::test]
async fn a_refusal_by_the_other_side_is_no_race() {
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    let hook = repo.path().join("hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\necho 'main is protected' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let mirrored = Mirrored::of(&repo, "main").await;
    let mirror = &mirrored.mirror;
    mirror.fetch().await.unwrap();
    let ours = mirror
        .commit(Some(tip), vec![edit("b", Some("1"))], "Ours".to_owned())
        .await
        .unwrap();
    let error = mirror.push_tracked(ours, Some(tip)).await.unwrap_err();
    assert!(!error.is_race(), "{error:?}");
    assert!(error.to_string().contains("main is protected"), "{error}");
    assert!(error.is_declined(), "{error:?}");
}

#[tokio::test]
async fn the_first_commit_of_an_empty_repo() {
    let repo = Repo::new();
    let mirrored = Mirrored::of(&repo, "main").await;
    let mirror = &mirrored.mirror;
    mirror.fetch().await.unwrap();
    let first = mirror
        .commit(None, vec![edit("a/b/c", Some("1"))], "First".to_owned())
        .await
        .unwrap();
    mirror.push_tracked(first, None).await.unwrap();
    assert_eq!(repo.tip("main"), Some(first));
    assert_eq!(repo.read("main", "a/b/c").as_deref(), Some("1"));
    let refs = mirror.fetch().await.unwrap();
    assert_eq!(refs.tracked.unwrap().summary, "First");
    // It is a repo that git has nothing to say against.
    repo.git(&["fsck", "--strict"]);
}

#[tokio::test]
async fn folders_are_deleted_whole() {
    let repo = Repo::new();
    let tip = repo.commit(
        "main",
        &[
            ("devices/x/a", Some("1")),
            ("devices/x/b/c", Some("1")),
            ("other", Some("1")),
        ],
    );
    let mirrored = Mirrored::of(&repo, "main").await;
    let mirror = &mirrored.mirror;
    mirror.fetch().await.unwrap();
    let edits = vec![edit("devices/x", None), edit("new/file", Some("2"))];
    let commit = mirror
        .commit(Some(tip), edits, "Delete x".to_owned())
        .await
        .unwrap();
    mirror.push_tracked(commit, Some(tip)).await.unwrap();
    let files = repo.git(&["ls-tree", "-r", "-t", "--name-only", "main"]);
    assert_eq!(files, "new\nnew/file\nother\n");
    repo.git(&["fsck", "--strict"]);
}

#[tokio::test]
async fn a_merge_joins_both_sides_or_says_that_they_conflict() {
    let repo = Repo::new();
    let base = repo.commit("main", &[("a", Some("1")), ("b", Some("1"))]);
    let ours = repo.commit("main", &[("a", Some("2"))]);
    let theirs = repo.make(Some(base), &[("b", Some("2"))]);
    let conflicting = repo.make(Some(base), &[("a", Some("3"))]);
    repo.point("longshore/enroll/device-1", theirs);
    repo.point("longshore/enroll/device-2", conflicting);
    let mirrored = Mirrored::of(&repo, "main").await;
    let mirror = &mirrored.mirror;
    mirror.fetch().await.unwrap();
    let conflict = mirror
        .merge(ours, conflicting, "No".to_owned())
        .await
        .unwrap();
    assert_eq!(conflict, None);
    let merged = mirror
        .merge(ours, theirs, "Merge".to_owned())
        .await
        .unwrap()
        .unwrap();
    mirror.push_tracked(merged, Some(ours)).await.unwrap();
    assert_eq!(repo.read("main", "a").as_deref(), Some("2"));
    assert_eq!(repo.read("main", "b").as_deref(), Some("2"));
    let parents = repo.git(&["rev-list", "--parents", "-n", "1", "main"]);
    assert_eq!(parents.trim(), format!("{merged} {ours} {theirs}"));
}

#[tokio::test]
async fn the_mirrors_hooks_do_not_run() {
    let repo = Repo::new();
    let tip = repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let ran = mirrored.directory.path().join("ran");
    let hooks = mirrored.path().join("hooks");
    fs::create_dir_all(&hooks).unwrap();
    for hook in [
        "pre-push",
        "reference-transaction",
        "post-merge",
        "pre-auto-gc",
    ] {
        let file = hooks.join(hook);
        fs::write(&file, format!("#!/bin/sh\ntouch '{}'\n", ran.display())).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mirror = &mirrored.mirror;
    mirror.fetch().await.unwrap();
    let commit = mirror
        .commit(Some(tip), vec![edit("b", Some("1"))], "b".to_owned())
        .await
        .unwrap();
    mirror.push_tracked(commit, Some(tip)).await.unwrap();
    mirror.fetch().await.unwrap();
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_lock_that_a_killed_git_left_behind_is_no_end() {
    let repo = Repo::new();
    repo.commit("main", &[("a", Some("1"))]);
    let mirrored = Mirrored::of(&repo, "main").await;
    mirrored.mirror.fetch().await.unwrap();
    repo.point("longshore/enroll/device-1", repo.tip("main").unwrap());
    let tip = repo.commit("main", &[("a", Some("2"))]);
    let path = mirrored.path();
    fs::create_dir_all(path.join("refs/longshore/enroll")).unwrap();
    let locks = ["refs/longshore/tracked.lock", "packed-refs.lock"];
    for lock in locks {
        fs::write(path.join(lock), "").unwrap();
    }
    let error = mirrored.mirror.fetch().await.unwrap_err();
    assert!(error.is_locked(), "somebody may hold it still: {error}");
    let long_ago = SystemTime::now() - Duration::from_mins(10);
    for lock in locks {
        let file = fs::File::options().write(true).open(path.join(lock));
        file.unwrap().set_modified(long_ago).unwrap();
    }
    let refs = mirrored.mirror.fetch().await.unwrap();
    assert_eq!(refs.tracked.unwrap().id, tip);
    assert_eq!(refs.enrollment.len(), 1);
}

#[tokio::test]
async fn addresses_that_run_programs_or_are_options_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let path = ran.display();
    for (trusted, url) in [
        (true, format!("ext::sh -c 'touch {path}'")),
        (false, format!("ext::sh -c 'touch {path}'")),
        (true, format!("--upload-pack=touch {path}")),
        (false, format!("--upload-pack=touch {path}")),
        (true, "git://127.0.0.1:1/x".to_owned()),
        (true, "http://127.0.0.1:1/x".to_owned()),
        (true, format!("-oProxyCommand=touch {path}")),
        (true, format!("ssh://-oProxyCommand=touch%20{path}/x")),
    ] {
        let mirrored = Mirrored::at(&url, "main", trusted).await;
        let error = mirrored.mirror.fetch().await.unwrap_err();
        assert!(!ran.exists(), "{url}: {error}");
        assert!(!error.is_missing_branch(), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_tenant_reads_nothing_of_this_machine() {
    let repo = Repo::new();
    repo.commit("main", &[("a", Some("1"))]);
    let path = repo.path().display().to_string();
    for url in [
        path.clone(),
        format!("file://{path}"),
        format!("localhost:{path}"),
    ] {
        let mirrored = Mirrored::at(&url, "main", false).await;
        let error = mirrored.mirror.fetch().await.unwrap_err();
        assert!(error.to_string().contains("not allowed"), "{url}: {error}");
        assert_eq!(mirrored.mirror.refs().await.unwrap().tracked, None);
    }
    let mirrored = Mirrored::at(&format!("file://{path}"), "main", true).await;
    mirrored.mirror.fetch().await.unwrap();
}

#[tokio::test]
async fn a_branch_that_is_another_thing_than_text_is_still_read() {
    let repo = Repo::new();
    repo.commit("main", &[("a", Some("1"))]);
    // A commit of bytes that are not UTF-8, and without a message's first line.
    let tree = repo.git(&["rev-parse", "main^{tree}"]);
    let commit = format!(
        "tree {}\nauthor  <> 0 +0000\ncommitter  <> 0 +0000\n\n\n\nafter two\n",
        tree.trim()
    );
    let mut bytes = commit.into_bytes();
    bytes.extend(b"\xff\xfe");
    let file = repo.path().join("raw");
    fs::write(&file, bytes).unwrap();
    let id = repo.git(&[
        "hash-object",
        "-t",
        "commit",
        "-w",
        "--literally",
        file.to_str().unwrap(),
    ]);
    repo.git(&["update-ref", "refs/heads/main", id.trim()]);
    let mirrored = Mirrored::of(&repo, "main").await;
    let tracked = mirrored.mirror.fetch().await.unwrap().tracked.unwrap();
    assert_eq!((&*tracked.summary, &*tracked.author), ("after two", ""));
}
