//! What a push to one branch would do to the fleet's devices, told while its objects are in quarantine.
//!
//! A push to the tracked branch is compared with what is in force, one to another branch as if it were merged now.
//! Only problems that the push itself brings to the tracked branch stand in its way, and only those that would come
//! again: a build that ran out of time is nobody's mistake.

use std::{path::Path, sync::Arc};

use git2::{Oid, Repository};
use longshore_fleet::Tree;
use longshore_protocol::api::preview::Preview;

use super::{
    hook::{Question, Update},
    pushes::Push,
    quarantine::{self, Merged},
    rules,
};
use crate::{
    preview::{Engine, PreviewError, Report},
    source::tree::GitTree,
};

/// Why a push is not reviewed. Then it is accepted: devices keep their last good state anyway.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReviewError {
    #[error("the repo cannot be read")]
    Repo(#[from] git2::Error),
    #[error(transparent)]
    Preview(#[from] PreviewError),
    #[error("it was cut off")]
    Cut,
}

/// What is said to a push, and whether that is no.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Review {
    pub(super) lines: Vec<String>,
    pub(super) refused: bool,
}

/// Reviews one branch of a push.
pub(super) async fn review(
    engine: &Engine,
    push: &Push,
    question: &Question,
    update: &Update,
) -> Result<Review, ReviewError> {
    let tracked = rules::branch(&update.name) == Some(&*push.branch);
    let (push, asked) = (push.clone(), (question.quarantine.clone(), update.clone()));
    let span = tracing::Span::current();
    let trees = tokio::task::spawn_blocking(move || {
        let (quarantine, update) = asked;
        span.in_scope(|| Trees::of(&push, quarantine.as_deref(), &update))
    })
    .await
    .map_err(|_cut| ReviewError::Cut)??;
    let (base, head): (_, Arc<dyn Tree>) = match trees {
        Trees::Both(base, head) => (base.map(|base| Arc::new(base) as _), Arc::new(head)),
        Trees::Conflict => {
            let line = "It conflicts with the branch that the fleet follows, so what it would change cannot be told. Merge that branch into it.";
            return Ok(Review {
                lines: vec![line.to_owned()],
                refused: false,
            });
        }
        Trees::None => return Ok(Review::default()),
    };
    let report = engine.preview(base, head).await?;
    Ok(if tracked {
        verdict(&report)
    } else {
        Review {
            lines: report.preview.lines(),
            refused: false,
        }
    })
}

/// What is to be compared.
enum Trees {
    Both(Option<GitTree>, GitTree),
    Conflict,
    /// What is pushed is no commit.
    None,
}

impl Trees {
    fn of(push: &Push, quarantine: Option<&Path>, update: &Update) -> Result<Self, git2::Error> {
        let open = || quarantine::open(&push.repo, quarantine);
        let repo = open()?;
        let Ok(pushed) = repo
            .find_object(Oid::from_str(&update.new)?, None)?
            .peel_to_commit()
            .map(|commit| commit.id())
        else {
            return Ok(Self::None);
        };
        let is_tracked = rules::branch(&update.name) == Some(&*push.branch);
        let tracked = if is_tracked {
            Some(Oid::from_str(&update.old)?).filter(|id| !id.is_zero())
        } else {
            tip(&repo, &push.branch)?
        };
        let base = match tracked {
            Some(tracked) => Some(GitTree::of(open()?, tracked)?),
            None => None,
        };
        match tracked {
            Some(tracked) if !is_tracked => match quarantine::merged(repo, tracked, pushed)? {
                Merged::Tree(head) => Ok(Self::Both(base, head)),
                Merged::Conflict => Ok(Self::Conflict),
            },
            _ => Ok(Self::Both(base, GitTree::of(repo, pushed)?)),
        }
    }
}

fn tip(repo: &Repository, branch: &str) -> Result<Option<Oid>, git2::Error> {
    match repo.refname_to_id(&format!("refs/heads/{branch}")) {
        Ok(tip) => Ok(Some(tip)),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether what the push does to the tracked branch stands in its way.
fn verdict(report: &Report) -> Review {
    let Report {
        preview,
        may_pass,
        settings,
    } = report;
    let Preview { problems, .. } = preview;
    let mut lines = preview.lines();
    let refuses = settings.as_ref().is_none_or(|it| it.refuse_broken);
    let broken = problems.count > 0;
    let brings = match problems.count {
        1 => "The push brings a problem".to_owned(),
        several => format!("The push brings {several} problems"),
    };
    lines.extend(match (broken, *may_pass, refuses) {
        (false, ..) => None,
        (true, true, _) => Some(
            "Not everything could be built this time, so the push is accepted as it is. Devices \
             whose overlays fail keep their last good state."
                .to_owned(),
        ),
        (true, false, true) => Some(format!(
            "{brings}, so it is refused. Fix it, and push again. A fleet takes such pushes where \
             its fleet.yaml says `spec.push.refuseBroken: false`; its devices then keep their last \
             good state."
        )),
        (true, false, false) => Some(format!(
            "{brings}; it is accepted, because fleet.yaml says `spec.push.refuseBroken: false`. \
             Devices whose overlays fail keep their last good state."
        )),
    });
    Review {
        lines,
        refused: broken && !may_pass && refuses,
    }
}

#[cfg(test)]
mod tests {
    use longshore_fleet::{EnrollmentSettings, FleetSettings, MaxDecommission};
    use longshore_protocol::api::preview::Problems;

    use super::*;

    fn reviewed(problems: u64, may_pass: bool, refuse_broken: Option<bool>) -> Review {
        let settings = refuse_broken.map(|refuse_broken| FleetSettings {
            name: "shops".parse().unwrap(),
            max_decommission: MaxDecommission::default(),
            enrollment: EnrollmentSettings::default(),
            labels_from_facts: std::collections::BTreeSet::new(),
            preview_forks: false,
            refuse_broken,
        });
        let preview = Preview {
            problems: Problems {
                lines: vec!["fleet.yaml:3: no".to_owned(); usize::try_from(problems).unwrap()],
                count: problems,
            },
            ..Preview::default()
        };
        verdict(&Report {
            preview,
            may_pass,
            settings,
        })
    }

    #[test]
    fn only_a_lasting_problem_that_is_new_refuses() {
        assert!(!reviewed(0, false, None).refused);
        assert!(reviewed(1, false, None).refused, "the default");
        assert!(reviewed(2, false, Some(true)).refused);
        assert!(!reviewed(2, false, Some(false)).refused);
        assert!(!reviewed(2, true, Some(true)).refused);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let Review { lines, .. } = reviewed(2, false, None);
        let last = lines.last().unwrap();
        assert!(last.starts_with("The push brings 2 problems"), "{last}");
        assert!(last.contains("spec.push.refuseBroken: false"), "{last}");
        assert!(lines.iter().any(|line| line.contains("fleet.yaml:3: no")));
    }
}
