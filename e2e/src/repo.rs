//! A fleet repo, and what people do with it: edit, commit, push, merge.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::programs;

const AUTHOR: &str = "Olivia Operator";
const EMAIL: &str = "olivia@fleet.example";

/// Runs `git`, untouched by the machine's and the user's settings.
///
/// # Errors
/// With what it printed, where it fails.
pub fn git<S: AsRef<OsStr>>(
    directory: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let mut command = Command::new(programs::installed("git")?);
    command.current_dir(directory).args(arguments);
    isolate(&mut command);
    let output = command.output().context("start git")?;
    let text = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    if output.status.success() {
        Ok(text)
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {text}{}", errors.trim_end())
    }
}

/// Takes away whatever a `git` below `command` could find around us, and says who commits.
pub fn isolate(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", AUTHOR)
        .env("GIT_AUTHOR_EMAIL", EMAIL)
        .env("GIT_COMMITTER_NAME", AUTHOR)
        .env("GIT_COMMITTER_EMAIL", EMAIL);
}

/// The bare repo that the controller follows, and a working copy to push from.
#[derive(Debug)]
pub struct FleetRepo {
    bare: PathBuf,
    copy: WorkingCopy,
}

impl FleetRepo {
    /// The template, as `longshore init` writes it, pushed to a new bare repo in `directory`.
    ///
    /// # Errors
    /// Where git or `longshore` fails.
    pub fn from_template(directory: &Path) -> Result<Self> {
        let repo = Self::empty_beside(directory, template(directory)?)?;
        git(
            repo.copy.path(),
            ["push", "--quiet", "-u", "origin", "main"],
        )?;
        Ok(repo)
    }

    /// The template, pushed to the empty repo `bare` that a controller hosts at `url`, as a person would. `ca` is the
    /// file with the controller's root certificates.
    ///
    /// # Errors
    /// Where git or `longshore` fails.
    pub fn hosted(directory: &Path, bare: PathBuf, url: &str, ca: &Path) -> Result<Self> {
        let copy = template(directory)?;
        let ca = ca
            .to_str()
            .context("a temporary directory's name is UTF-8")?;
        git(&copy, ["config", "http.sslCAInfo", ca])?;
        let repo = Self::with_origin(bare, copy, url)?;
        git(
            repo.copy.path(),
            ["push", "--quiet", "-u", "origin", "main"],
        )?;
        Ok(repo)
    }

    /// A bare repo without a commit, and a working copy of it.
    ///
    /// # Errors
    /// Where git fails.
    pub fn empty(directory: &Path) -> Result<Self> {
        let copy = directory.join("fleet");
        git(directory, ["init", "--quiet", "-b", "main", "fleet"])?;
        Self::empty_beside(directory, copy)
    }

    fn empty_beside(directory: &Path, copy: PathBuf) -> Result<Self> {
        let bare = directory.join("fleet.git");
        git(
            directory,
            ["init", "--quiet", "--bare", "-b", "main", "fleet.git"],
        )?;
        let bare_path = bare
            .to_str()
            .context("a temporary directory's name is UTF-8")?;
        let bare_path = bare_path.to_owned();
        Self::with_origin(bare, copy, &bare_path)
    }

    fn with_origin(bare: PathBuf, copy: PathBuf, url: &str) -> Result<Self> {
        git(&copy, ["remote", "add", "origin", url])?;
        // So that people can commit here too, on a machine where git does not know them.
        git(&copy, ["config", "user.name", AUTHOR])?;
        git(&copy, ["config", "user.email", EMAIL])?;
        Ok(Self {
            bare,
            copy: WorkingCopy { path: copy },
        })
    }

    /// The bare repo.
    pub fn bare(&self) -> &Path {
        &self.bare
    }

    /// The bare repo as a URL, which is not watched but polled.
    pub fn url(&self) -> String {
        format!("file://{}", self.bare.display())
    }

    /// Moves the bare repo. The working copy does not know of it before [`Self::push_to`].
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn move_to(&mut self, bare: &Path) -> Result<()> {
        if let Some(above) = bare.parent() {
            fs::create_dir_all(above).with_context(|| format!("make {}", above.display()))?;
        }
        fs::rename(&self.bare, bare).context("move the bare repo")?;
        bare.clone_into(&mut self.bare);
        Ok(())
    }

    /// Makes the working copy push to `url`, whose certificate the file `ca` vouches for.
    ///
    /// # Errors
    /// Where git fails.
    pub fn push_to(&self, url: &str, ca: &Path) -> Result<()> {
        let ca = ca.to_str().context("a path that is UTF-8")?;
        self.copy.git(["remote", "set-url", "origin", url])?;
        self.copy.git(["config", "http.sslCAInfo", ca])?;
        self.copy.git(["config", "http.proxy", ""]).map(drop)
    }

    /// The working copy.
    pub fn copy(&self) -> &WorkingCopy {
        &self.copy
    }

    /// The names of the branches that the bare repo has.
    ///
    /// # Errors
    /// Where git fails.
    pub fn branches(&self) -> Result<Vec<String>> {
        let text = git(
            &self.bare,
            ["for-each-ref", "--format=%(refname:short)", "refs/heads"],
        )?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Fails unless the bare repo has this branch.
    ///
    /// # Errors
    /// Where it has not.
    pub fn has_branch(&self, name: &str) -> Result<()> {
        let branches = self.branches()?;
        if branches.iter().any(|branch| branch == name) {
            Ok(())
        } else {
            bail!("there is no branch {name} among {branches:?}")
        }
    }
}

/// The template, as `longshore init` writes it, in `directory`.
fn template(directory: &Path) -> Result<PathBuf> {
    let copy = directory.join("fleet");
    let mut init = Command::new(programs::find("longshore")?);
    isolate(&mut init);
    let output = init
        .arg("init")
        .arg(&copy)
        .output()
        .context("start longshore")?;
    if !output.status.success() {
        bail!(
            "longshore init failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(copy)
}

/// A clone of the fleet repo.
#[derive(Debug)]
pub struct WorkingCopy {
    path: PathBuf,
}

impl WorkingCopy {
    /// Clones a branch of a repo on this machine.
    ///
    /// # Errors
    /// Where git fails.
    pub fn of_branch(repo: &Path, branch: &str, path: &Path) -> Result<Self> {
        let mut arguments: Vec<&OsStr> = vec!["clone".as_ref(), "--quiet".as_ref()];
        arguments.extend(["--branch".as_ref(), branch.as_ref()] as [&OsStr; 2]);
        arguments.extend([repo.as_os_str(), path.as_os_str()]);
        let above = path.parent().context("a place for the clone")?;
        git(above, arguments)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in it.
    ///
    /// # Errors
    /// Where git fails.
    pub fn git<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        git(&self.path, arguments)
    }

    /// Writes a file, and the directories above it.
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path.join(path);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).with_context(|| format!("make {}", above.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path.join(path)).with_context(|| format!("read {path}"))
    }

    /// Replaces a text in a file.
    ///
    /// # Errors
    /// Where the file does not have it.
    pub fn replace(&self, path: &str, from: &str, to: &str) -> Result<()> {
        let text = self.read(path)?;
        if !text.contains(from) {
            bail!("{path} has no `{from}`:\n{text}");
        }
        self.write(path, text.replace(from, to))
    }

    /// Commits everything that differs.
    ///
    /// # Errors
    /// Where git fails or nothing differs.
    pub fn commit(&self, message: &str) -> Result<String> {
        self.git(["add", "--all"])?;
        self.git(["commit", "--quiet", "--message", message])?;
        self.git(["rev-parse", "HEAD"])
    }

    /// Pushes `main`.
    ///
    /// # Errors
    /// Where git fails.
    pub fn push(&self) -> Result<()> {
        self.git(["push", "--quiet", "origin", "main"]).map(drop)
    }

    /// Brings `main` up to date with the bare repo, keeping what is not pushed yet on top.
    ///
    /// # Errors
    /// Where git fails.
    pub fn pull(&self) -> Result<()> {
        self.git(["pull", "--quiet", "--rebase", "origin", "main"])
            .map(drop)
    }

    /// Commits everything that differs and pushes it, on top of what others pushed meanwhile. Returns the
    /// commit's id.
    ///
    /// # Errors
    /// Where git fails.
    pub fn publish(&self, message: &str) -> Result<String> {
        self.commit(message)?;
        for _ in 0..20 {
            self.pull()?;
            if self.push().is_ok() {
                return self.git(["rev-parse", "HEAD"]);
            }
        }
        self.push()?;
        self.git(["rev-parse", "HEAD"])
    }

    /// Merges a branch of the bare repo into `main` and pushes that, as a person would.
    ///
    /// # Errors
    /// Where git fails.
    pub fn merge(&self, branch: &str) -> Result<()> {
        self.git(["fetch", "--quiet", "origin"])?;
        self.pull()?;
        let remote = format!("origin/{branch}");
        self.git(["merge", "--quiet", "--no-edit", &remote])?;
        self.push()
    }
}
