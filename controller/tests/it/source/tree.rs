//! A commit's tree, against what `git ls-tree` says of it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use longshore_fleet::{ContentId, EntryKind, RepoPath, Tree as _};

use super::Mirrored;
use crate::repo::{Repo, git};

#[tokio::test]
async fn it_says_what_git_says() {
    let repo = Repo::new();
    let work = tempfile::tempdir().unwrap();
    let root = work.path();
    git(root, &["init", "--quiet", "--initial-branch=main"]);
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("plain"), "plain text").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("a/b/deep"), vec![0xff; 100_000]).unwrap();
    fs::write(root.join("a/run"), "#!/bin/sh").unwrap();
    fs::set_permissions(root.join("a/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../plain", root.join("a/link")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfename")), "odd").unwrap();
    fs::write(root.join("with space and \u{1f6a2}"), "ship").unwrap();
    git(root, &["add", "--all"]);
    // A submodule needs no repo behind it to stand in a tree.
    let id = "0123456789012345678901234567890123456789";
    git(
        root,
        &[
            "update-index",
            "--add",
            "--cacheinfo",
            &format!("160000,{id},module"),
        ],
    );
    git(
        root,
        &[
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@example.com",
            "commit",
            "--quiet",
            "-m",
            "All",
        ],
    );
    git(
        root,
        &["push", "--quiet", repo.path().to_str().unwrap(), "main"],
    );

    let mirrored = Mirrored::of(&repo, "main").await;
    let tip = mirrored.mirror.fetch().await.unwrap().tracked.unwrap().id;
    let tree = mirrored.mirror.tree(tip).await.unwrap();

    let output = std::process::Command::new("git")
        .args(["ls-tree", "-r", "-t", "-z", "--long", "main"])
        .current_dir(repo.path())
        .output()
        .unwrap();
    let mut truth = BTreeMap::new();
    for line in output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty())
    {
        let tab = line.iter().position(|byte| *byte == b'\t').unwrap();
        let head = std::str::from_utf8(&line[..tab]).unwrap();
        let fields: Vec<_> = head.split_whitespace().map(str::to_owned).collect();
        truth.insert(line[tab + 1..].to_vec(), fields);
    }
    assert_eq!(truth.len(), 10);

    let mut seen = BTreeMap::new();
    let mut folders = vec![(RepoPath::root(), Vec::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for listed in &*tree.list(&folder).unwrap() {
            let path: Vec<u8> = [prefix.clone(), listed.name.to_vec()].concat();
            if let Ok(text) = std::str::from_utf8(&listed.name) {
                let here = folder.join(text);
                assert_eq!(tree.entry(&here).unwrap(), Some(listed.entry), "{here:?}");
                if listed.entry.kind == EntryKind::Directory {
                    folders.push((here, [path.clone(), b"/".to_vec()].concat()));
                } else {
                    assert!(tree.list(&here).unwrap().is_empty(), "{here:?}");
                    let below = here.join("below");
                    assert_eq!(tree.entry(&below).unwrap(), None, "{below:?}");
                }
            }
            seen.insert(path, listed.entry);
        }
    }
    assert!(seen.keys().eq(truth.keys()));
    for (path, entry) in &seen {
        let [mode, _, id, size] = truth[path].as_slice() else {
            panic!("{path:?}");
        };
        let expected = match mode.as_str() {
            "100644" => EntryKind::File { executable: false },
            "100755" => EntryKind::File { executable: true },
            "120000" => EntryKind::Symlink,
            "160000" => EntryKind::Submodule,
            "040000" => EntryKind::Directory,
            other => panic!("{other}"),
        };
        assert_eq!(entry.kind, expected, "{path:?}");
        let bytes = git2::Oid::from_str(id).unwrap();
        assert_eq!(entry.id, ContentId::padded(bytes.as_bytes()), "{path:?}");
        if let Ok(size) = size.parse::<u64>() {
            assert_eq!(tree.size(entry.id).unwrap(), size, "{path:?}");
            assert_eq!(tree.blob(entry.id).unwrap().len() as u64, size, "{path:?}");
        }
    }
    let link = seen[b"a/link".as_slice()];
    assert_eq!(tree.blob(link.id).unwrap(), b"../plain");
    let module = seen[b"module".as_slice()];
    tree.blob(module.id).unwrap_err();
    tree.size(module.id).unwrap_err();
    assert_eq!(
        tree.entry(&RepoPath::root()).unwrap().unwrap().kind,
        EntryKind::Directory
    );
    let nowhere = RepoPath::root().join("no").join("where");
    assert_eq!(tree.entry(&nowhere).unwrap(), None);
    assert!(tree.list(&nowhere).unwrap().is_empty());
}
