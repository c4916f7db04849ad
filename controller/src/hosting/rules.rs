//! What may be pushed to a hosted repo, whatever is in it.

use super::hook::Update;

/// Why these updates are refused, for the person who pushes; nothing where they are not.
pub(super) fn refusals(updates: &[Update], tracked: &str) -> Vec<String> {
    updates
        .iter()
        .filter_map(|update| refusal(update, tracked))
        .collect()
}

fn refusal(update: &Update, tracked: &str) -> Option<String> {
    let Update { new, name, .. } = update;
    if branch(name).is_none() && !name.starts_with("refs/tags/") {
        return Some(format!(
            "Refused: {name} is neither a branch nor a tag. Push to refs/heads/ or refs/tags/."
        ));
    }
    (branch(name) == Some(tracked) && is_none(new)).then(|| {
        format!(
            "Refused: {tracked} is the branch that the fleet follows, and cannot be deleted. \
             To go back to an earlier state, push that commit to it; to give the fleet up, \
             use `longshore fleets remove`."
        )
    })
}

/// The branch that a ref is, if it is one.
pub(super) fn branch(name: &str) -> Option<&str> {
    name.strip_prefix("refs/heads/")
}

/// Whether an id stands for no commit.
pub(super) fn is_none(id: &str) -> bool {
    id.bytes().all(|byte| byte == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &str = "0000000000000000000000000000000000000000";
    const SOME: &str = "89e6c98d92887913cadf06b2adb97f26cde4849b";

    fn refused(name: &str, new: &str) -> Option<String> {
        let update = Update {
            old: SOME.to_owned(),
            new: new.to_owned(),
            name: name.to_owned(),
        };
        refusals(&[update], "live").pop()
    }

    #[test]
    fn branches_and_tags_may_be_pushed_and_deleted() {
        for name in [
            "refs/heads/main",
            "refs/heads/longshore/enroll/store-0001",
            "refs/tags/v1",
        ] {
            assert_eq!(refused(name, SOME), None);
            assert_eq!(refused(name, NONE), None);
        }
    }

    #[test]
    fn the_tracked_branch_stays() {
        assert_eq!(refused("refs/heads/live", SOME), None);
        let why = refused("refs/heads/live", NONE).unwrap();
        assert!(why.contains("cannot be deleted"), "{why}");
        assert_eq!(refused("refs/tags/live", NONE), None);
    }

    #[test]
    fn other_refs_are_not_for_people() {
        for name in [
            "refs/longshore/tracked",
            "refs/replace/x",
            "refs/notes/x",
            "HEAD",
        ] {
            assert!(refused(name, SOME).unwrap().contains(name));
            assert!(refused(name, NONE).unwrap().contains(name));
        }
    }
}
