//! What becomes of a device on an enrollment branch, and of the branch: pure.
//!
//! Approval is not decided here: whose key the tracked branch has is approved, and no longer waits. Of the others,
//! people reject a device by closing the pull request, by deleting the branch, or by taking the device's folder off
//! it. Each of these is believed only of a branch that was seen with the device on it, and where the forge knows
//! the pull request, only once it said how that ended: a branch that was merged is deleted, too.

use git2::Oid;

use crate::store::proposals::Proposal;

/// What the repo shows of a device on its branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// There is no such branch.
    Absent,
    /// The branch is there, without the device.
    Without,
    /// The branch is there, and carries the device.
    With,
}

/// How the device stands to the last commit of a decided pull request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is in it.
    In,
    /// It was in it before.
    Removed,
    /// It came later.
    Later,
}

/// What the forge says of the branch's pull request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// There never was one, or there is no forge.
    None,
    /// There is one; the forge does not say how it stands.
    Unknown,
    /// It waits.
    Open,
    /// It was merged.
    Merged(Held),
    /// It was closed without merging.
    Closed(Held),
}

/// What becomes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Waits,
    /// It needs another branch: nobody was asked about it.
    Anew,
    /// Somebody closed the pull request.
    Closed,
    /// Somebody deleted the branch.
    Deleted,
    /// Somebody took it off the branch.
    Removed,
}

/// What becomes of a pending device whose key the tracked branch does not have. `seen` is whether the repo had the
/// branch with the device on it.
pub fn verdict(seen: bool, sight: Sight, request: Request) -> Verdict {
    match (request, sight) {
        (Request::Closed(Held::Later) | Request::Merged(Held::Later), _) => Verdict::Anew,
        (Request::Closed(_), _) => Verdict::Closed,
        (Request::Merged(Held::Removed), _) => Verdict::Removed,
        (Request::Merged(Held::In), _) | (_, Sight::With) | (Request::Unknown, Sight::Absent) => {
            Verdict::Waits
        }
        (_, _) if !seen => Verdict::Waits,
        (_, Sight::Absent) => Verdict::Deleted,
        (_, Sight::Without) => Verdict::Removed,
    }
}

/// What is to be done to a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is as it should be, or people decide what it should be.
    Nothing,
    /// A push did not arrive.
    PushAgain(Oid),
    /// All its commits are to be made, on the tracked branch as it is.
    Make,
    /// Commits are to be added on top of this one.
    Append(Oid),
}

/// What is to be done to a branch whose tip is `tip`.
///
/// `seen` is whether it was in the repo, `stale` whether it would be made differently now, and `missing` whether it
/// lacks something. A branch that people pushed to is only added to.
pub fn work(proposal: &Proposal, tip: Option<Oid>, seen: bool, stale: bool, missing: bool) -> Work {
    let Some(tip) = tip else {
        return match proposal.pushed {
            _ if seen => Work::Nothing,
            Some(pushed) if !stale && !missing => Work::PushAgain(pushed),
            _ => Work::Make,
        };
    };
    if stale && !proposal.edited {
        return Work::Make;
    }
    match proposal.pushed.filter(|_| is_ours(proposal, tip)) {
        Some(pushed) if missing => Work::Append(pushed),
        Some(pushed) if pushed != tip => Work::PushAgain(pushed),
        None if missing => Work::Append(tip),
        _ => Work::Nothing,
    }
}

/// Whether the controller made this tip.
pub fn is_ours(proposal: &Proposal, tip: Oid) -> bool {
    [proposal.pushed, proposal.pushed_before].contains(&Some(tip))
}

#[cfg(test)]
mod tests {
    use longshore_protocol::TokenId;
    use proptest::prelude::*;

    use super::*;

    const SIGHTS: [Sight; 3] = [Sight::Absent, Sight::Without, Sight::With];
    const REQUESTS: [Request; 9] = [
        Request::None,
        Request::Unknown,
        Request::Open,
        Request::Merged(Held::In),
        Request::Merged(Held::Removed),
        Request::Merged(Held::Later),
        Request::Closed(Held::In),
        Request::Closed(Held::Removed),
        Request::Closed(Held::Later),
    ];

    #[test]
    fn verdicts() {
        let all = SIGHTS
            .into_iter()
            .flat_map(|sight| REQUESTS.map(|request| (sight, request)))
            .flat_map(|(sight, request)| [true, false].map(|seen| (seen, sight, request)));
        for (seen, sight, request) in all {
            let is = verdict(seen, sight, request);
            let at = format!("{seen} {sight:?} {request:?}: {is:?}");
            match request {
                // What was merged is about to be approved, and nothing about the branch says otherwise.
                Request::Merged(Held::In) => assert_eq!(is, Verdict::Waits, "{at}"),
                Request::Merged(Held::Later) | Request::Closed(Held::Later) => {
                    assert_eq!(is, Verdict::Anew, "{at}");
                }
                Request::Merged(Held::Removed) => assert_eq!(is, Verdict::Removed, "{at}"),
                Request::Closed(_) => assert_eq!(is, Verdict::Closed, "{at}"),
                // A branch that was never there with the device on it says nothing about the device.
                _ if !seen => assert_eq!(is, Verdict::Waits, "{at}"),
                Request::Unknown if sight == Sight::Absent => {
                    assert_eq!(is, Verdict::Waits, "{at}");
                }
                _ => match sight {
                    Sight::With => assert_eq!(is, Verdict::Waits, "{at}"),
                    Sight::Without => assert_eq!(is, Verdict::Removed, "{at}"),
                    Sight::Absent => assert_eq!(is, Verdict::Deleted, "{at}"),
                },
            }
        }
    }

    fn commit(n: u8) -> Oid {
        Oid::from_bytes(&[n; 20]).unwrap()
    }

    prop_compose! {
        fn proposals()(
            pushed in prop::option::of(1_u8..4),
            pushed_before in prop::option::of(1_u8..4),
            edited: bool,
        ) -> Proposal {
            Proposal {
                pushed: pushed.map(commit),
                pushed_before: pushed_before.map(commit),
                edited,
                ..Proposal::new("longshore/enroll/a".to_owned(), TokenId::from_random([1; 16]), 0)
            }
        }
    }

    proptest! {
        /// Nothing that people pushed is ever replaced, and whatever is done ends with nothing to do.
        #[test]
        fn work_ends_and_spares_peoples_commits(
            mut proposal in proposals(),
            tip in prop::option::of(1_u8..6),
            seen: bool,
            stale: bool,
            missing: bool,
        ) {
            let mut tip = tip.map(commit);
            let peoples = tip.filter(|tip| !is_ours(&proposal, *tip));
            // A look comes before work.
            proposal.edited |= peoples.is_some();
            let (edited, mut stale, mut missing) = (proposal.edited, stale, missing);
            let mut done = Vec::new();
            loop {
                let next = work(&proposal, tip, seen, stale, missing);
                match next {
                    Work::Nothing => break,
                    Work::PushAgain(commit) => {
                        prop_assert!(peoples.is_none(), "{done:?}");
                        tip = Some(commit);
                    }
                    Work::Make => {
                        prop_assert!(tip.is_none() || !edited, "{done:?}");
                        proposal.pushed_before = tip;
                        proposal.pushed = Some(commit(7));
                        tip = proposal.pushed;
                        (stale, missing) = (false, false);
                    }
                    Work::Append(on) => {
                        // On top of people's commit, or of our own that is on its way there.
                        prop_assert!(peoples.is_none_or(|tip| tip == on), "{done:?}");
                        proposal.pushed_before = tip;
                        proposal.pushed = Some(commit(8));
                        tip = proposal.pushed;
                        missing = false;
                    }
                }
                done.push(next);
                prop_assert!(done.len() < 4, "{done:?}");
            }
            // A branch that was there and is gone was deleted by people.
            prop_assert!(tip.is_some() || seen, "{done:?}");
            if tip.is_some() {
                prop_assert!(!missing, "{done:?}");
            }
        }
    }
}
